//! What the value about traces changes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::render;
use serde_json::{Value, json};

fn spec<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    &manifests.iter().find(found).unwrap()["spec"]
}

#[test]
fn controller_and_pullers_get_the_collector_and_pullers_may_reach_it() {
    let endpoint = "http://collector.monitoring:14317/";
    let on = render(&json!({"tracing": {"otlpEndpoint": endpoint}})).unwrap();
    let off = render(&json!({})).unwrap();
    let flag = json!(format!("--otlp-endpoint={endpoint}"));
    for (kind, name) in [
        ("Deployment", "kubefledged-controller"),
        ("DaemonSet", "kubefledged-puller"),
    ] {
        let args = |manifests| {
            let args = &spec(manifests, kind, name)["template"]["spec"]["containers"][0]["args"];
            args.as_array().unwrap().clone()
        };
        assert!(args(&on).contains(&flag), "{name}");
        assert!(
            !args(&off)
                .iter()
                .any(|arg| arg.as_str().unwrap().contains("otlp"))
        );
    }
    let egress = |manifests: &[Value]| {
        spec(manifests, "NetworkPolicy", "kubefledged-puller")["egress"].clone()
    };
    let rule = json!({"ports": [{"port": 14317}, {"port": 53, "protocol": "UDP"}, {"port": 53}]});
    assert!(egress(&on).as_array().unwrap().contains(&rule));
    assert!(!egress(&off).as_array().unwrap().contains(&rule));
    let alone =
        render(&json!({"tracing": {"otlpEndpoint": endpoint}, "peers": {"enabled": false}}));
    assert_eq!(egress(&alone.unwrap()), json!([rule]));
    assert_eq!(
        egress(&render(&json!({"peers": {"enabled": false}})).unwrap()),
        json!([])
    );
}

#[test]
fn an_endpoint_that_the_binaries_refuse_is_refused_by_the_chart() {
    for wrong in [
        "https://collector:4317",
        "collector:4317",
        "http://collector",
        "http://me:x@collector:4317",
    ] {
        let error = render(&json!({"tracing": {"otlpEndpoint": wrong}}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("otlpEndpoint"), "{wrong}: {error}");
    }
    // A variable of the container: a collector on every node.
    assert!(render(&json!({"tracing": {"otlpEndpoint": "http://$(HOST_IP):4317"}})).is_ok());
}
