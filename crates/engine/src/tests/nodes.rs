//! Nodes that come, go and change.

use super::*;

#[test]
fn a_node_that_joins_gets_its_images_without_an_operation() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.join("n2", &[]);
    world.run();
    assert_eq!(world.held("n2"), ["r.test/a:1"]);
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "2/2");
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn a_cordoned_node_is_neither_awaited_nor_failed() {
    let mut world = World::new(&["n1", "n2"]);
    world.handle(Event::NodeApplied(
        node("n2"),
        NodeFacts {
            unschedulable: true,
            ..facts(&[])
        },
    ));
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "1/1");
    assert!(world.held("n2").is_empty());
}

#[test]
fn a_node_without_a_puller_is_awaited_for_the_grace_time_and_then_fails_alone() {
    let mut world = World::new(&["n1"]);
    world.handle(Event::NodeApplied(node("n2"), facts(&[])));
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.reported().0, "Processing");
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(121);
    assert_eq!(world.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        world.status().failures["r.test/a:1"][0].reason,
        "PullerUnavailable"
    );
    world.puller("n2");
    world.run();
    world.wait(2);
    assert_eq!(world.reported().0, "Succeeded");
}

#[test]
fn an_image_that_was_lost_is_seen_by_the_next_check_and_pulled_again() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.held.clear();
    world.wait(340);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_node_that_becomes_eligible_gets_its_images_at_once() {
    let mut world = World::new(&["n1"]);
    let change = |world: &mut World, change: fn(&mut NodeFacts)| {
        let mut changed = facts(&[]);
        change(&mut changed);
        world.handle(Event::NodeApplied(node("n2"), changed));
        world.run();
    };
    change(&mut world, |facts| facts.ready = false);
    world.puller("n2");
    world.create(images(&["r.test/a:1"]));
    world.lead();
    assert_eq!(world.reported().0, "Succeeded");
    assert!(world.held("n2").is_empty());
    for not_yet in [
        (|f: &mut NodeFacts| f.unschedulable = true) as fn(&mut NodeFacts),
        |f| f.taints = vec!["node.kubernetes.io/disk-pressure".into()],
        |f| f.labels = [("kubefledged.io/exclude".into(), String::new())].into(),
        |f| f.labels = [("type".into(), "virtual-kubelet".into())].into(),
    ] {
        change(&mut world, not_yet);
        assert!(world.held("n2").is_empty());
    }
    world.asked();
    change(&mut world, |_| {});
    assert_eq!(world.asked(), ["check n2 r.test/a:1", "pull n2 r.test/a:1"]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn a_running_pull_survives_a_cordon_and_the_operation_does_not_await_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.slow.insert("r.test/big:1".into());
    world.create(images(&["r.test/big:1"]));
    world.lead();
    world.asked();
    let cordoned = NodeFacts {
        unschedulable: true,
        ..facts(&[])
    };
    world.handle(Event::NodeApplied(node("n1"), cordoned.clone()));
    world.run();
    assert!(world.asked().is_empty(), "it is not cancelled");
    world.handle(Event::NodeApplied(node("n2"), cordoned));
    world.run();
    assert_eq!(world.reported().0, "Succeeded");
    world.end_slow("r.test/big:1");
    assert_eq!(world.held("n1"), ["r.test/big:1"]);
}

#[test]
fn a_node_that_leaves_during_an_operation_is_not_awaited() {
    let mut world = World::new(&["n1", "n2"]);
    world.slow.insert("r.test/big:1".into());
    world.create(images(&["r.test/big:1"]));
    world.lead();
    world.handle(Event::NodeDeleted(node("n2")));
    world.handle(Event::PullerChanged(node("n2"), None));
    world.end_slow("r.test/big:1");
    world.wait(2);
    assert_eq!(world.reported().0, "Succeeded");
    assert_eq!(world.status().ready, "1/1");
}

#[test]
fn a_label_change_brings_a_node_its_images_and_takes_none_away() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[
        (&["r.test/a:1"], &[("tier", "x")]),
        (&["r.test/b:1"], &[("tier", "y")]),
    ]));
    world.lead();
    assert!(world.held("n1").is_empty());
    world.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "x")])));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(2);
    assert_eq!(
        world.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "it healed"
    );
    world.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "y")])));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(
        world.count("remove"),
        0,
        "the kubelet collects what merely does not match"
    );
}

#[test]
fn a_rolled_out_puller_is_checked_and_pulls_nothing_again() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b"]));
    world.lead();
    world.asked();
    let next = Puller {
        instance: "pod-2".into(),
        address: ([10, 0, 0, 2], 7443).into(),
    };
    world.handle(Event::PullerChanged(node("n1"), None));
    world.run();
    world.handle(Event::PullerChanged(node("n1"), Some(next)));
    world.run();
    assert_eq!(world.asked(), ["check n1 r.test/a:1 r.test/b"]);
}

#[test]
fn a_node_that_does_not_answer_is_called_with_back_off_and_takes_no_pull_budget() {
    let mut world = World::new(&["n1", "n2"]);
    world.unreachable.insert("n2".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    assert_eq!(
        (world.held("n1"), world.count("pull n2")),
        (vec!["r.test/a:1"], 0)
    );
    world.wait(60);
    let calls = world.count("check n2");
    assert!((4..12).contains(&calls), "{calls}");
    world.wait(65);
    assert_eq!(world.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(world.status().failures["r.test/a:1"].len(), 1);
    assert_eq!(world.status().nodes.unwrap().unreachable, 1);
    world.is("Degraded", "True", "PullerUnavailable");
    world.unreachable.clear();
    world.wait(60);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.held("n2"), ["r.test/a:1"]);
}

#[test]
fn a_node_that_was_not_ready_gets_the_whole_grace_time_for_its_puller() {
    let mut world = World::new(&["n1"]);
    let away = NodeFacts {
        ready: false,
        ..facts(&[])
    };
    world.handle(Event::NodeApplied(node("n2"), away));
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.wait(1000);
    world.handle(Event::NodeApplied(node("n2"), facts(&[])));
    world.run();
    world.wait(60);
    assert_eq!(world.status().nodes.unwrap().pending, 1);
    assert_eq!(world.status().nodes.unwrap().unreachable, 0);
}

#[test]
fn an_image_lost_again_and_again_is_pulled_ever_later_and_named_with_the_remedy() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let mut pulls = Vec::new();
    for _ in 0..3 {
        world.held.clear();
        let before = world.count("pull");
        while world.count("check") == 0 {
            world.wait(1);
        }
        let seen = world.now.tick.0;
        while world.count("pull") == before {
            world.log.retain(|line| !line.starts_with("check"));
            world.wait(1);
            assert!(
                world.now.tick.0 < seen + 2_000_000,
                "it is never pulled again"
            );
        }
        pulls.push((world.now.tick.0 - seen) / 1000);
        world.log.retain(|line| !line.starts_with("check"));
    }
    assert!(pulls[0] <= 400, "{pulls:?}");
    world.wait(2);
    world.is("Degraded", "True", "LostToGarbageCollection");
    let conditions = &world.status().conditions;
    let degraded = conditions.iter().find(|c| c.type_ == "Degraded").unwrap();
    assert!(
        degraded.message.contains("imageMaximumGCAge"),
        "{}",
        degraded.message
    );
    assert_eq!(
        world.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "healing is no operation"
    );
    world.wait(2 * 3600);
    world.is("Degraded", "False", "None");
}

#[test]
fn node_affinity_selects_by_labels_and_by_name() {
    let mut world = World::new(&[]);
    world.join("n1", &[("gpus", "4")]);
    world.join("n2", &[("gpus", "8")]);
    world.join("n3", &[]);
    let list = r#"{"cacheSpec": [
        {"images": ["r.test/a:1"], "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gpus", "operator": "Gt", "values": ["4"]}]}]}}},
        {"images": ["r.test/b:1"], "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n3"]}]}]}}}]}"#;
    world.create(serde_json::from_str(list).unwrap());
    world.lead();
    assert!(world.held("n1").is_empty());
    assert_eq!(
        (world.held("n2"), world.held("n3")),
        (vec!["r.test/a:1"], vec!["r.test/b:1"])
    );
}

#[test]
fn a_new_leader_checks_nodes_and_pulls_nothing() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let before = world.status().clone();
    world.log.clear();
    world.change_leader();
    assert_eq!(
        world.asked(),
        ["check n1 r.test/a:1", "check n2 r.test/a:1"]
    );
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().start_time, before.start_time);
    assert_eq!(world.why("a", "n1"), [Err(PullBlock::Present)]);
}

#[test]
fn a_node_emits_one_event_when_it_becomes_warm_or_stuck() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["a:1", "b:1"]));
    world.lead();
    assert_eq!(world.count("event n1"), 0, "it was there before");
    world.broken.insert("b:1".into(), "Unauthorized");
    world.join("n2", &[]);
    world.run();
    assert_eq!(world.count("event n2 stuck: b:1 Unauthorized"), 1);
    world.wait(300);
    assert_eq!(world.count("event n2"), 1, "{:?}", world.log);
    world.broken.clear();
    world.wait(600);
    assert_eq!(world.count("event n2 warm"), 1);
    // Out and back: it has what it needs, and says so once.
    let mut cordoned = facts(&[]);
    cordoned.unschedulable = true;
    world.handle(Event::NodeApplied(node("n1"), cordoned));
    world.run();
    world.handle(Event::NodeApplied(node("n1"), facts(&[])));
    world.run();
    world.wait(1000);
    assert_eq!(
        (world.count("event n1 warm"), world.count("event n")),
        (1, 3)
    );
}
