//! Every example of docs/debug.md, run as it stands there: by kubectl, a port-forward and grpcurl.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_e2e::{Cluster, demo};
use serde_json::json;

const DOCUMENT: &str = include_str!("../../../docs/debug.md");

/// Headings, and the commands below each.
fn examples() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut examples: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in DOCUMENT.lines() {
        match line.trim_start_matches('#') {
            heading if heading != line => examples.push((heading.trim(), Vec::new())),
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => examples.last_mut().unwrap().1.push(command),
            _ => {}
        }
    }
    examples.retain(|(_, commands)| !commands.is_empty());
    examples
}

/// Waits until the ports are there, runs the command, and ends what was put in the background.
fn script(forwards: &[&str], ports: &[u16], command: &str) -> String {
    let wait = ports.iter().map(|port| {
        format!("for i in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.1; done\n")
    });
    format!(
        "set -euo pipefail\ntrap 'kill $(jobs -p)' EXIT\n{}\n{}{command}\n",
        forwards.join("\n"),
        wait.collect::<String>()
    )
}

#[test]
fn every_example_of_the_documentation_works_as_it_stands_there() {
    let cluster = Cluster::default();
    cluster.clean("shop").unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}]});
    cluster.create("shop", "web", &spec).unwrap();
    cluster.ended("shop", "web", "ImageCacheCreate").unwrap();
    let examples = examples();
    let forwards = &examples[0].1;
    let (forwards, lists) = forwards.split_at(3);
    let run = |ports: &[u16], forwards: &[&str], command: &str| {
        let script = script(forwards, ports, command);
        cluster.run(&["run", "bash", "-c", &script], "").unwrap()
    };
    let said = run(&[7070, 7071], forwards, &lists.join("\n"));
    for service in [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "rpc ExplainPlan",
    ] {
        assert!(said.contains(service), "{said}");
    }
    let expected = [
        ("ListCaches", "\"ready\": 4"),
        ("GetCache", "AllImagesPresent"),
        ("StreamCacheNodes", "\"sizeBytes\""),
        ("GetNode", "\"eligible\": true"),
        ("ListBatches", "{"),
        ("ListRegistries", "\"registry.test:5000\""),
        ("ExplainPlan", "\"reason\": \"Present\""),
        ("WatchProgress", "\"caches\""),
        ("GetQueue", "PULL_STATE_FINISHED"),
        ("ListImages", "demo/web:1.0"),
        ("GetRuntime", "\"answers\": true"),
        ("GetDisk", "\"node\": \"n1\""),
    ];
    for (heading, part) in expected {
        let (_, commands) = examples
            .iter()
            .find(|(known, _)| *known == heading)
            .unwrap();
        let said = run(&[7070, 7071], forwards, &commands.join("\n"));
        assert!(said.contains(part), "{heading}: {said}");
    }
    let (_, level) = examples.last().unwrap();
    let (forward, change) = level.split_at(1);
    let said = run(&[8080], forward, &change.join("\n"));
    assert_eq!(said.trim(), "info,kubefledged_engine=debug");
    run(
        &[8080],
        forward,
        "curl -sf -X PUT -d info localhost:8080/log-level",
    );
    // No method without an example.
    for (port, service) in [
        (7070, "ControllerDebugService"),
        (7071, "PullerDebugService"),
    ] {
        let list =
            format!("grpcurl -plaintext localhost:{port} list kubefledged.debug.v1.{service}");
        for method in run(&[7070, 7071], forwards, &list).lines() {
            let method = method.rsplit('.').next().unwrap();
            assert!(
                expected.iter().any(|(heading, _)| *heading == method),
                "{method}"
            );
        }
    }
}
