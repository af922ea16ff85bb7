//! Every example of docs/debug.md, run as it stands there: by kubectl, a port-forward and grpcurl.

use kubefledged_e2e::{
    Cluster, demo,
    examples::{DEBUG, examples},
};
use serde_json::json;

const PORTS: [u16; 2] = [7070, 7071];
/// Each method, and a part of what its example prints.
const EXPECTED: [(&str, &str); 17] = [
    ("ListCaches", "\"ready\": 4"),
    ("GetCache", "AllImagesPresent"),
    ("StreamCacheNodes", "\"sizeBytes\""),
    ("GetNode", "\"eligible\": true"),
    ("ListNodes", "\"desiredImages\": 2"),
    ("StreamMatrix", "\"states\""),
    ("PlanSpec", "\"architecture\""),
    ("ListBatches", "{"),
    ("ListRegistries", "\"registry.test:5000\""),
    // None: the cache follows none.
    ("ListWorkloads", "{"),
    ("ExplainPlan", "\"reason\": \"Present\""),
    ("WatchProgress", "\"caches\""),
    ("GetQueue", "PULL_STATE_FINISHED"),
    ("ListImages", "demo/web:1.0"),
    ("GetRuntime", "\"answers\": true"),
    ("GetDisk", "\"node\": \"n1\""),
    ("ListUnknownErrors", "\"node\": \"n1\""),
];

#[test]
fn every_example_of_the_documentation_works_as_it_stands_there() {
    let cluster = Cluster::default();
    cluster.clean("shop").unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}]});
    cluster.create("shop", "web", &spec).unwrap();
    cluster.ended("shop", "web", "ImageCacheCreate").unwrap();
    let examples = examples(DEBUG);
    let (forwards, lists) = examples[0].1.split_at(3);
    let run = |commands: &[&str]| cluster.forwarded(forwards, &PORTS, commands).unwrap();
    let said = run(lists);
    for service in [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "rpc ExplainPlan",
    ] {
        assert!(said.contains(service), "{said}");
    }
    for (heading, part) in EXPECTED {
        let (_, commands) = examples
            .iter()
            .find(|(known, _)| *known == heading)
            .unwrap();
        let said = run(commands);
        assert!(said.contains(part), "{heading}: {said}");
    }
    // No method without an example.
    for (port, service) in [
        (7070, "ControllerDebugService"),
        (7071, "PullerDebugService"),
    ] {
        let list =
            format!("grpcurl -plaintext localhost:{port} list kubefledged.debug.v1.{service}");
        for method in run(&[&list]).lines() {
            let method = method.rsplit('.').next().unwrap();
            assert!(
                EXPECTED.iter().any(|(heading, _)| *heading == method),
                "{method}"
            );
        }
    }
    let (_, level) = examples.last().unwrap();
    let (forward, change) = level.split_at(1);
    let said = cluster.forwarded(forward, &[8080], change).unwrap();
    assert_eq!(said.trim(), "info,kubefledged_engine=debug");
    let back = ["curl -sf -X PUT -d info localhost:8080/log-level"];
    cluster.forwarded(forward, &[8080], &back).unwrap();
}
