//! What the value about traces changes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::render;
use serde_json::{Value, json};

fn spec<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    &manifests.iter().find(found).unwrap()["spec"]
}

#[test]
fn the_controller_gets_the_collector_and_nobody_else() {
    let endpoint = "http://collector.monitoring:14317/";
    let on = render(&json!({"tracing": {"otlpEndpoint": endpoint}})).unwrap();
    let off = render(&json!({})).unwrap();
    let flag = json!(format!("--otlp-endpoint={endpoint}"));
    let has = |manifests: &[Value], kind, name| {
        let args = &spec(manifests, kind, name)["template"]["spec"]["containers"][0]["args"];
        args.as_array().unwrap().contains(&flag)
    };
    let controller = ("Deployment", "kubefledged-controller");
    assert!(has(&on, controller.0, controller.1));
    assert!(!has(&off, controller.0, controller.1));
    assert!(!has(&on, "DaemonSet", "kubefledged-puller"));
}

#[test]
fn an_endpoint_that_the_controller_refuses_is_refused_by_the_chart() {
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
