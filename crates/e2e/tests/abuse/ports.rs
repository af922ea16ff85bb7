//! Anybody's network: one pod that reaches the ports of all parts, without any certificate.

use std::{sync::Arc, thread, time::Duration};

use kubefledged_e2e::{
    Cluster,
    call::Answer,
    demo,
    fleet::{OURS, Pod, entry},
};
use kubefledged_process::tls::Identity;
use serde_json::json;

use super::{
    ATTACKER, Memory, NAMESPACE, VICTIM, assert_unhurt, attack, attack_with, cluster, delete,
    middle_and_worst, ours, row, seconds_to_succeed, spec,
};

/// Component, beginning of its process's name, plain HTTP port.
const PARTS: [(&str, &str, u16); 3] = [
    ("puller", "kubefledged-pul", 8082),
    ("webhook-server", "kubefledged-web", 8081),
    ("controller", "kubefledged-con", 8080),
];
/// What an attack may cost, in MiB.
const COST: f64 = 5.0;
/// Seconds.
const LONG: u64 = 15;

/// A pod of this component elsewhere than the attacker; of the controllers the leader.
fn victim(cluster: &Cluster, component: &str) -> Pod {
    let leader = cluster.leader().unwrap().pod;
    let mut pods = cluster.pods(component).unwrap();
    pods.retain(|pod| pod.node != ATTACKER && (component != "controller" || pod.name == leader));
    pods.sort_by(|one, other| one.node.cmp(&other.node));
    pods.swap_remove(0)
}

/// Another pod of the component, which nobody attacks: what its probes take is the machine's.
fn bystander(cluster: &Cluster, component: &str, victim: &Pod) -> Pod {
    let mut pods = cluster.pods(component).unwrap();
    pods.retain(|pod| pod.name != victim.name);
    pods.swap_remove(0)
}

#[test]
#[ignore = "make test-abuse"]
fn bodies_and_half_sent_requests_cost_five_mebibytes_at_most_and_delay_no_probe() {
    let cluster = cluster();
    let before = ours(&cluster);
    for (component, process, port) in PARTS {
        let pod = victim(&cluster, component);
        let at = |pod: &Pod| format!("{}:{port}", pod.address);
        let (address, other) = (at(&pod), at(&bystander(&cluster, component, &pod)));
        let memory = Memory::of(&cluster, &pod, process);
        attack(VICTIM, "probe", &address, 1, 2).join().unwrap();
        let calm = memory.now();
        memory.forget_peak();
        let bodies = attack(ATTACKER, "bodies", &address, 40, LONG);
        let heads = attack(ATTACKER, "heads", &address, 64, LONG);
        let elsewhere = attack(VICTIM, "probe", &other, 1, LONG);
        let probes = attack(VICTIM, "probe", &address, 1, LONG).join().unwrap();
        let elsewhere = elsewhere.join().unwrap();
        let (bodies, heads) = (bodies.join().unwrap(), heads.join().unwrap());
        let peak = memory.peak();
        thread::sleep(Duration::from_secs(10));
        let after = memory.now();
        row(
            &format!("{component}: 40 bodies of 2 MB, 64 half-sent requests"),
            &format!(
                "{calm:.1} MiB before, {peak:.1} at most, {after:.1} afterwards; {} connections; {} probes, \
                 median {} ms, slowest {} ms, of a pod that is not attacked {} ms",
                bodies["opened"].as_u64().unwrap() + heads["opened"].as_u64().unwrap(),
                probes["answered"],
                probes["median"],
                probes["worst"],
                elsewhere["worst"],
            ),
        );
        assert!(bodies["opened"].as_u64().unwrap() > 40, "{bodies}");
        assert!(peak <= calm + COST && after <= calm + COST, "{component}");
        assert_eq!(probes["refused"], 0, "{probes}");
        let answers = probes["answers"].as_object().unwrap();
        assert!(answers.keys().all(|line| line.contains("200")), "{probes}");
        let slowest = probes["worst"].as_u64().unwrap();
        assert!(
            slowest < elsewhere["worst"].as_u64().unwrap() + 1000,
            "{probes}"
        );
    }
    assert_unhurt(&cluster, &before);
}

/// Seconds of a call of the victim's puller with the debug certificate, from the connection on.
fn calls(cluster: &Cluster, pod: &Pod, count: usize) -> Vec<f64> {
    let secret = cluster.secret("kubefledged-debug-tls").unwrap();
    let part = |name: &str| entry(&secret, name).unwrap();
    let (certificate, key, ca) = (part("tls.crt"), part("tls.key"), part("ca.crt"));
    let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes(), ca.as_bytes());
    let client = Arc::new(identity.unwrap().client().unwrap());
    let puller = cluster.reach(pod).unwrap();
    let call = |_| {
        let begin = std::time::Instant::now();
        let answer = puller.call(&client, "kubefledged.puller.v1.PullerService/GetInfo");
        assert_eq!(answer.unwrap(), Answer::Reached);
        begin.elapsed().as_secs_f64()
    };
    (0..count).map(call).collect()
}

#[test]
#[ignore = "make test-abuse"]
fn a_thousand_idle_connections_keep_nobody_from_a_puller() {
    let cluster = cluster();
    let before = ours(&cluster);
    let pod = victim(&cluster, "puller");
    assert_eq!(pod.node, VICTIM);
    let wanted = spec(&[demo("web")], Some(VICTIM));
    seconds_to_succeed(&cluster, "first", &wanted, Duration::from_secs(60));
    let rounds = |name: &str| {
        let round = |turn| {
            // Longer than the controller keeps a connection that it does not need.
            thread::sleep(Duration::from_secs(7));
            let name = format!("{name}-{turn}");
            let took = seconds_to_succeed(&cluster, &name, &wanted, Duration::from_secs(30));
            delete(&cluster, &name);
            took
        };
        middle_and_worst((0..5).map(round).collect())
    };
    let calm = (rounds("calm"), middle_and_worst(calls(&cluster, &pod, 10)));
    let memory = Memory::of(&cluster, &pod, "kubefledged-pul");
    let idle_memory = memory.now();
    memory.forget_peak();
    let flood = attack(ATTACKER, "idle", &format!("{}:7443", pod.address), 1000, 75);
    thread::sleep(Duration::from_secs(2));
    let held = (rounds("held"), middle_and_worst(calls(&cluster, &pod, 10)));
    let flood = flood.join().unwrap();
    row(
        "1,000 idle connections to a puller's port 7443, reopened when they are closed",
        &format!(
            "an ImageCache whose image is there succeeds in {:.1} s (slowest of 5: {:.1} s), without the attack in {:.1} s ({:.1} s); \
             a call with its handshake takes {:.0} ms (slowest of 10: {:.0} ms), without {:.0} ms ({:.0} ms); {} connections; \
             the puller's memory: {idle_memory:.1} MiB before, {:.1} at most",
            held.0.0,
            held.0.1,
            calm.0.0,
            calm.0.1,
            held.1.0 * 1e3,
            held.1.1 * 1e3,
            calm.1.0 * 1e3,
            calm.1.1 * 1e3,
            flood["opened"],
            memory.peak(),
        ),
    );
    assert!(flood["opened"].as_u64().unwrap() > 1000, "{flood}");
    // What kubectl takes is in both. A single one can be late because of the machine, where a puller has a
    // hundredth of a processor for certain; a dial that fails is tried again.
    assert!(held.0.0 < calm.0.1 + 1.0, "{held:?}, {calm:?}");
    assert!(held.0.1 < calm.0.1 + 10.0, "{held:?}, {calm:?}");
    assert!(held.1.0 < 1.0, "{held:?}");
    assert!(memory.peak() < idle_memory + COST);
    assert_unhurt(&cluster, &before);
}

/// Creates an object without storing it, by turns one that the webhook reviews and one that nobody reviews: seconds of
/// both.
fn reviews(cluster: &Cluster, count: usize) -> [(f64, f64); 2] {
    let metadata = json!({"generateName": "review-", "namespace": NAMESPACE});
    let reviewed = json!({
        "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
        "metadata": metadata, "spec": spec(&[demo("web")], None),
    });
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..count {
        for (object, seconds) in [&reviewed, &other].into_iter().zip(&mut seconds) {
            let begin = std::time::Instant::now();
            let args = ["kubectl", "create", "--dry-run=server", "-f", "-"];
            cluster.run(&args, &object.to_string()).unwrap();
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    seconds.map(middle_and_worst)
}

#[test]
#[ignore = "make test-abuse"]
fn the_webhook_answers_while_bodies_of_three_mebibytes_come_without_end() {
    let cluster = cluster();
    let before = ours(&cluster);
    let pods = cluster.pods("webhook-server").unwrap();
    let secret = cluster.secret("kubefledged-webhook-server-tls").unwrap();
    let ca = std::env::temp_dir().join(format!("kubefledged-ca-{}.crt", std::process::id()));
    std::fs::write(&ca, entry(&secret, "ca.crt").unwrap()).unwrap();
    let calm = reviews(&cluster, 5);
    let memory = pods
        .iter()
        .map(|pod| Memory::of(&cluster, pod, "kubefledged-web"));
    let memory: Vec<Memory> = memory.collect();
    let idle: Vec<f64> = memory.iter().map(Memory::now).collect();
    memory.iter().for_each(Memory::forget_peak);
    let floods = pods.iter().flat_map(|pod| {
        let address = format!("{}:10250", pod.address);
        let bodies = attack_with(ATTACKER, "reviews", &address, 32, 40, Some(ca.clone()));
        [bodies, attack(ATTACKER, "idle", &address, 200, 40)]
    });
    let floods: Vec<_> = floods.collect();
    thread::sleep(Duration::from_secs(3));
    let held = reviews(&cluster, 20);
    let seen: Vec<_> = floods
        .into_iter()
        .map(|flood| flood.join().unwrap())
        .collect();
    std::fs::remove_file(&ca).unwrap();
    let peaks: Vec<f64> = memory.iter().map(Memory::peak).collect();
    let most = peaks.iter().copied().fold(0.0, f64::max);
    let opened: u64 = seen
        .iter()
        .step_by(2)
        .map(|flood| flood["opened"].as_u64().unwrap())
        .sum();
    let lines: usize = pods.iter().map(|pod| warnings(&cluster, pod)).sum();
    row(
        "64 connections with bodies of 3 MiB and 400 idle ones to both webhooks",
        &format!(
            "an ImageCache is admitted in {:.1} s (slowest of 20: {:.1} s), an object that nobody reviews in {:.1} s ({:.1} s), \
             without the attack in {:.1} s and {:.1} s; {opened} bodies; {:.1} MiB before, {most:.1} at most; {lines} warnings in the logs",
            held[0].0, held[0].1, held[1].0, held[1].1, calm[0].0, calm[1].0, idle[0],
        ),
    );
    // A third of the container's limit is left.
    assert!(most < 85.0, "{peaks:?}");
    // All were admitted; the API server waits for 5 s. What the machine takes is in both.
    assert!(held[0].0 < held[1].0 + 2.0, "{held:?} {calm:?}");
    assert!(lines <= 2 * 10, "{lines}");
    assert_unhurt(&cluster, &before);
}

/// Lines about bodies, in the last minute.
fn warnings(cluster: &Cluster, pod: &Pod) -> usize {
    let logs = format!("logs -n {OURS} {} --since=1m", pod.name);
    let logs = cluster.kubectl(&logs).unwrap();
    logs.lines().filter(|line| line.contains("WARN")).count()
}
