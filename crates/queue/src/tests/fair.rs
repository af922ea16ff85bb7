//! Nobody's images wait for somebody else's registry.

use super::*;

fn of(cache: &str, name: &str) -> PullRequest {
    PullRequest {
        cache: cache.to_owned(),
        ..request(name)
    }
}

impl Node {
    fn pull_of(&mut self, stream: u64, cache: &str, names: &[String]) {
        let images = names.iter().map(|name| of(cache, name)).collect();
        self.handle(Event::Pull(StreamId(stream), authority(1, stream), images));
    }

    /// Answers whatever is asked, except pulls from this host.
    fn answer_all_but(&mut self, host: &str) {
        let silent = |call: &Call| matches!(call, Call::Pull(name, ..) if name.starts_with(host));
        while let Some(at) = self.calls.iter().position(|(_, call)| !silent(call)) {
            self.answer_one(at);
        }
    }

    fn pulls_of(&self, host: &str) -> usize {
        let calls = self.calls.iter();
        let pulls = calls
            .filter(|(_, call)| matches!(call, Call::Pull(name, ..) if name.starts_with(host)));
        pulls.count()
    }
}

fn names(host: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{host}/i{i}:1")).collect()
}

#[test]
fn an_image_of_another_cache_does_not_wait_for_a_silent_registry() {
    for (priority, slots) in [(0, 1), (0, 2), (1000, 2)] {
        let mut node = Node::containerd(Settings {
            max_parallel_pulls: slots,
            ..Settings::default()
        });
        let images = names("silent.test", 60)
            .into_iter()
            .map(|name| PullRequest {
                priority,
                ..of("ns/big", &name)
            });
        let event = Event::Pull(StreamId(1), authority(1, 1), images.collect());
        node.handle(event);
        node.answer_all_but("silent.test");
        assert_eq!(node.pulls_of("silent.test"), slots);
        node.pull_of(2, "ns/small", &names("r.test", 3));
        node.answer_all_but("silent.test");
        assert_eq!(node.pulled[&2].len(), 3, "{priority} {slots}");
        assert_eq!(node.pulls_of("silent.test"), slots);
    }
}

#[test]
fn an_image_whose_pull_the_runtime_broke_off_does_not_wait_for_a_silent_registry() {
    let mut node = Node::containerd(Settings::default());
    node.pull_of(1, "ns/big", &names("silent.test", 5));
    node.answer_all_but("silent.test");
    assert_eq!(node.pulls_of("silent.test"), 2);
    let away = error("Unavailable", "connection refused");
    node.broken.insert("r.test/i0:1".to_owned(), away);
    node.pull_of(2, "ns/small", &names("r.test", 1));
    node.answer_all_but("silent.test");
    assert!(!node.pulled.contains_key(&2), "it is tried again");
    node.broken.clear();
    node.wait(2);
    node.answer_all_but("silent.test");
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn caches_and_registries_take_turns_within_a_priority() {
    let mut node = Node::new();
    node.pull_of(1, "ns/big", &names("r.test/big", 50));
    node.pull_of(2, "ns/small", &names("r.test/small", 5));
    node.run();
    let pulls: Vec<&String> = node
        .log
        .iter()
        .filter(|line| line.starts_with("Pull"))
        .collect();
    let small = pulls
        .iter()
        .rposition(|line| line.contains("small"))
        .unwrap();
    // Some inspections for the large one came first; from then on every second pull is the small one's.
    assert!(small < 20, "{pulls:?}");
}

#[test]
fn a_registry_that_failed_three_times_has_one_pull_at_a_time_until_it_answers() {
    let mut node = Node::new();
    let all = names("r.test", 10);
    for name in &all[..4] {
        let error = error(
            "Unknown",
            "dial tcp 10.0.0.1:443: connect: connection refused",
        );
        node.broken.insert(name.clone(), error);
    }
    node.pull_of(1, "ns/a", &all);
    for _ in 0..10 {
        node.answer("Inspect");
    }
    assert_eq!(node.pulls_of("r.test"), 2);
    for _ in 0..3 {
        node.answer("Pull");
    }
    assert_eq!(node.failure(1), "RegistryUnavailable");
    node.answer_all_but("r.test");
    assert_eq!(node.pulls_of("r.test"), 1);
    node.answer("Pull");
    assert_eq!(node.pulls_of("r.test"), 1, "the fourth failed too");
    node.answer("Pull");
    node.answer_all_but("r.test");
    assert_eq!(node.pulls_of("r.test"), 2, "it answers");
}

#[test]
fn a_silent_registry_that_also_has_the_place_beside_long_pulls_holds_up_no_other_cache() {
    let mut node = Node::new();
    node.pull_of(1, "ns/big", &names("silent.test", 60));
    node.answer_all_but("silent.test");
    node.wait(21);
    node.answer_all_but("silent.test");
    assert_eq!(
        node.pulls_of("silent.test"),
        3,
        "the third beside long ones"
    );
    node.pull_of(2, "ns/small", &names("r.test", 3));
    node.answer_all_but("silent.test");
    assert_eq!(node.pulled[&2].len(), 3);
    assert_eq!(node.pulls_of("silent.test"), 3);
}

#[test]
fn a_namespace_with_many_silent_registries_and_the_highest_priority_holds_up_no_other_namespace() {
    for slots in [1, 2] {
        let mut node = Node::containerd(Settings {
            max_parallel_pulls: slots,
            ..Settings::default()
        });
        // Each image of a registry and a cache of its own.
        let images = (0..60).map(|i| PullRequest {
            priority: 1000,
            deadline: Some(Duration::from_secs(3 * 86400)),
            ..of(&format!("bad/c{i}"), &format!("silent{i}.test/x:1"))
        });
        let images: Vec<PullRequest> = images.collect();
        node.handle(Event::Pull(StreamId(1), authority(1, 1), images));
        node.answer_all_but("silent");
        node.wait(21);
        node.answer_all_but("silent");
        let held = node.pulls_of("silent");
        assert_eq!(held, slots + 1, "one more beside a long pull");
        node.pull_of(2, "good/a", &names("r.test", 5));
        node.pull_of(3, "better/b", &names("s.test", 5));
        node.answer_all_but("silent");
        assert_eq!(node.pulled[&2].len(), 5);
        assert_eq!(node.pulled[&3].len(), 5);
        assert_eq!(node.pulls_of("silent"), held);
    }
}

#[test]
fn pulls_that_were_ended_and_hang_hold_up_no_other_namespace() {
    let mut node = Node::new();
    for batch in 1..=20 {
        let cache = format!("bad/c{batch}");
        let images = vec![of(&cache, &format!("silent{batch}.test/x:1"))];
        let event = Event::Pull(StreamId(batch), authority(1, batch), images);
        node.handle(event);
        node.answer_all_but("silent");
        let images = vec![(batch, Vec::new())];
        node.handle(Event::Cancel(
            StreamId(1000 + batch),
            authority(1, batch),
            images,
        ));
        node.answer_all_but("silent");
    }
    node.pull_of(30, "good/a", &names("r.test", 5));
    node.answer_all_but("silent");
    assert_eq!(node.pulled[&30].len(), 5);
}

#[test]
fn namespaces_take_turns_whatever_they_name() {
    let mut node = Node::new();
    for i in 0..20 {
        let host = format!("many{i}.test");
        node.pull_of(100 + i, &format!("many/c{i}"), &names(&host, 2));
    }
    node.pull_of(1, "one/c", &names("one.test", 10));
    node.run();
    let pulls = node.log.iter().filter(|line| line.starts_with("Pull"));
    let pulls: Vec<&String> = pulls.collect();
    let last = pulls.iter().rposition(|line| line.contains("one.test"));
    assert!(last.unwrap() < 40, "{pulls:?}");
}
