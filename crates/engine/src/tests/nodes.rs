//! Nodes that come, go and change.

use kubefledged_api_types::DeletionPolicy;

use super::*;

#[test]
fn a_node_that_joins_gets_its_images_without_an_operation() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    harness.join("n2", &[]);
    harness.run();
    assert_eq!(harness.held("n2"), ["r.test/a:1"]);
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.status().ready, "2/2");
    assert_eq!(harness.count("event ImageCacheCreate"), 2);
}

#[test]
fn a_cordoned_node_is_neither_awaited_nor_failed() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.handle(Event::NodeApplied(
        node("n2"),
        NodeFacts {
            unschedulable: true,
            ..facts(&[])
        },
    ));
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.status().ready, "1/1");
    assert!(harness.held("n2").is_empty());
}

#[test]
fn a_node_without_a_puller_is_awaited_for_the_grace_time_and_then_fails_alone() {
    let mut harness = Harness::new(&["n1"]);
    harness.handle(Event::NodeApplied(node("n2"), facts(&[])));
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    assert_eq!(harness.reported().0, "Processing");
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.wait(121);
    assert_eq!(harness.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        harness.status().failures["r.test/a:1"][0].reason,
        "PullerUnavailable"
    );
    harness.puller("n2");
    harness.run();
    harness.wait(2);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn an_image_that_was_lost_is_seen_by_the_next_check_and_pulled_again() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    harness.held.clear();
    harness.wait(340);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_node_that_becomes_eligible_gets_its_images_at_once() {
    let mut harness = Harness::new(&["n1"]);
    let change = |harness: &mut Harness, change: fn(&mut NodeFacts)| {
        let mut changed = facts(&[]);
        change(&mut changed);
        harness.handle(Event::NodeApplied(node("n2"), changed));
        harness.run();
    };
    change(&mut harness, |facts| facts.ready = false);
    harness.puller("n2");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.reported().0, "Succeeded");
    assert!(harness.held("n2").is_empty());
    for not_yet in [
        (|f: &mut NodeFacts| f.unschedulable = true) as fn(&mut NodeFacts),
        |f| {
            f.taints = vec![taint("node.kubernetes.io/disk-pressure", "NoSchedule")];
        },
        |f| f.labels = [("kubefledged.io/exclude".into(), String::new())].into(),
        |f| f.labels = [("type".into(), "virtual-kubelet".into())].into(),
    ] {
        change(&mut harness, not_yet);
        assert!(harness.held("n2").is_empty());
    }
    harness.asked();
    change(&mut harness, |_| {});
    assert_eq!(
        harness.asked(),
        ["check n2 r.test/a:1", "pull n2 r.test/a:1"]
    );
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn a_running_pull_survives_a_cordon_and_the_operation_does_not_await_it() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.slow.insert("r.test/big:1".into());
    harness.create(images(&["r.test/big:1"]));
    harness.lead();
    harness.asked();
    let cordoned = NodeFacts {
        unschedulable: true,
        ..facts(&[])
    };
    harness.handle(Event::NodeApplied(node("n1"), cordoned.clone()));
    harness.run();
    assert!(harness.asked().is_empty(), "it is not cancelled");
    harness.handle(Event::NodeApplied(node("n2"), cordoned));
    harness.run();
    assert_eq!(
        harness.reported().0,
        "NoImagesPulledOrDeleted",
        "nobody is left, and that is no success"
    );
    harness.is("Ready", "False", "NodesNotEligible");
    let said = harness.message("Ready");
    assert!(said.ends_with("2 cordoned (n1, n2)"), "{said}");
    harness.end_slow("r.test/big:1");
    assert_eq!(harness.held("n1"), ["r.test/big:1"]);
}

#[test]
fn a_node_that_leaves_during_an_operation_is_not_awaited() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.slow.insert("r.test/big:1".into());
    harness.create(images(&["r.test/big:1"]));
    harness.lead();
    harness.handle(Event::NodeDeleted(node("n2")));
    harness.handle(Event::PullerChanged(node("n2"), None));
    harness.end_slow("r.test/big:1");
    harness.wait(2);
    assert_eq!(harness.reported().0, "Succeeded");
    assert_eq!(harness.status().ready, "1/1");
}

#[test]
fn a_label_change_brings_a_node_its_images_and_takes_none_away() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[
        (&["r.test/a:1"], &[("tier", "x")]),
        (&["r.test/b:1"], &[("tier", "y")]),
    ]));
    harness.lead();
    assert!(harness.held("n1").is_empty());
    harness.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "x")])));
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.wait(2);
    assert_eq!(
        harness.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "it healed"
    );
    harness.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "y")])));
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(
        harness.count("remove"),
        0,
        "the kubelet collects what merely does not match"
    );
}

#[test]
fn a_rolled_out_puller_is_checked_and_pulls_nothing_again() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b"]));
    harness.lead();
    harness.asked();
    let next = Puller {
        instance: "pod-2".into(),
        address: ([10, 0, 0, 2], 7443).into(),
    };
    harness.handle(Event::PullerChanged(node("n1"), None));
    harness.run();
    harness.handle(Event::PullerChanged(node("n1"), Some(next)));
    harness.run();
    assert_eq!(harness.asked(), ["check n1 r.test/a:1 r.test/b"]);
}

#[test]
fn a_node_that_does_not_answer_is_called_with_back_off_and_takes_no_pull_budget() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.unreachable.insert("n2".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(
        (harness.held("n1"), harness.count("pull n2")),
        (vec!["r.test/a:1"], 0)
    );
    harness.wait(60);
    let calls = harness.count("check n2");
    assert!((4..12).contains(&calls), "{calls}");
    harness.wait(65);
    assert_eq!(harness.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(harness.status().failures["r.test/a:1"].len(), 1);
    assert_eq!(harness.status().nodes.unwrap().unreachable, 1);
    harness.is("Degraded", "True", "PullerUnavailable");
    harness.unreachable.clear();
    harness.wait(60);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.held("n2"), ["r.test/a:1"]);
}

#[test]
fn a_puller_that_did_not_answer_is_asked_until_it_does_also_while_nothing_is_desired() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.unreachable.insert("n2".into());
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    harness.wait(30);
    harness.delete();
    harness.wait(600);
    harness.unreachable.clear();
    harness.wait(60);
    let calls = harness.count("check n2");
    harness.wait(600);
    assert_eq!(harness.count("check n2"), calls, "it answered");
    harness.unreachable.insert("n2".into());
    harness.create(images(&["r.test/a:1"]));
    harness.wait(60);
    let nodes = harness.status().nodes.unwrap();
    assert_eq!((nodes.pending, nodes.unreachable), (1, 0));
    harness.wait(65);
    assert_eq!(harness.status().nodes.unwrap().unreachable, 1);
}

#[test]
fn a_node_that_was_not_ready_gets_the_whole_grace_time_for_its_puller() {
    let mut harness = Harness::new(&["n1"]);
    let away = NodeFacts {
        ready: false,
        ..facts(&[])
    };
    harness.handle(Event::NodeApplied(node("n2"), away));
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(1000);
    harness.handle(Event::NodeApplied(node("n2"), facts(&[])));
    harness.run();
    harness.wait(60);
    assert_eq!(harness.status().nodes.unwrap().pending, 1);
    assert_eq!(harness.status().nodes.unwrap().unreachable, 0);
}

#[test]
fn an_image_lost_again_and_again_is_pulled_ever_later_and_named_with_the_remedy() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let mut pulls = Vec::new();
    for _ in 0..3 {
        harness.held.clear();
        let before = harness.count("pull");
        while harness.count("check") == 0 {
            harness.wait(1);
        }
        let seen = harness.now.tick.0;
        while harness.count("pull") == before {
            harness.log.retain(|line| !line.starts_with("check"));
            harness.wait(1);
            assert!(
                harness.now.tick.0 < seen + 2_000_000,
                "it is never pulled again"
            );
        }
        pulls.push((harness.now.tick.0 - seen) / 1000);
        harness.log.retain(|line| !line.starts_with("check"));
    }
    assert!(pulls[0] <= 400, "{pulls:?}");
    harness.wait(2);
    harness.is("Degraded", "True", "LostToGarbageCollection");
    let conditions = &harness.status().conditions;
    let degraded = conditions.iter().find(|c| c.type_ == "Degraded").unwrap();
    assert!(
        degraded.message.contains("imageMaximumGCAge"),
        "{}",
        degraded.message
    );
    assert_eq!(
        harness.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "healing is no operation"
    );
    harness.wait(2 * 3600);
    harness.is("Degraded", "False", "None");
}

#[test]
fn node_affinity_selects_by_labels_and_by_name() {
    let mut harness = Harness::new(&[]);
    harness.join("n1", &[("gpus", "4")]);
    harness.join("n2", &[("gpus", "8")]);
    harness.join("n3", &[]);
    let list = r#"{"cacheSpec": [
        {"images": ["r.test/a:1"], "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gpus", "operator": "Gt", "values": ["4"]}]}]}}},
        {"images": ["r.test/b:1"], "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n3"]}]}]}}}]}"#;
    harness.create(serde_json::from_str(list).unwrap());
    harness.lead();
    assert!(harness.held("n1").is_empty());
    assert_eq!(
        (harness.held("n2"), harness.held("n3")),
        (vec!["r.test/a:1"], vec!["r.test/b:1"])
    );
}

#[test]
fn a_new_leader_checks_nodes_and_pulls_nothing() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let before = harness.status().clone();
    harness.log.clear();
    harness.change_leader();
    assert_eq!(
        harness.asked(),
        ["check n1 r.test/a:1", "check n2 r.test/a:1"]
    );
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.status().start_time, before.start_time);
    assert_eq!(harness.why("a", "n1"), [Err(PullBlock::Present)]);
}

#[test]
fn a_node_emits_one_event_when_it_becomes_warm_or_stuck() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["a:1", "b:1"]));
    harness.lead();
    assert_eq!(harness.count("event n1"), 0, "it was there before");
    harness.broken.insert("b:1".into(), "Unauthorized");
    harness.join("n2", &[]);
    harness.run();
    assert_eq!(harness.count("event n2 stuck: b:1 Unauthorized"), 1);
    harness.wait(300);
    assert_eq!(harness.count("event n2"), 1, "{:?}", harness.log);
    harness.broken.clear();
    harness.wait(600);
    assert_eq!(harness.count("event n2 warm"), 1);
    // Out and back: it has what it needs, and says so once.
    let mut cordoned = facts(&[]);
    cordoned.unschedulable = true;
    harness.handle(Event::NodeApplied(node("n1"), cordoned));
    harness.run();
    harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
    harness.run();
    harness.wait(1000);
    assert_eq!(
        (harness.count("event n1 warm"), harness.count("event n")),
        (1, 3)
    );
}

#[test]
fn nodes_that_the_pullers_daemonset_does_not_select_are_neither_awaited_nor_failed() {
    let mut harness = Harness::new(&["n1"]);
    let pool = |pool: &str, taints: &[Taint]| NodeFacts {
        taints: taints.to_vec(),
        ..facts(&[("pool", pool)])
    };
    let gpu = taint("gpu", "NoSchedule");
    harness.handle(Event::NodeApplied(node("n1"), pool("a", &[])));
    harness.handle(Event::NodeApplied(node("n2"), pool("b", &[])));
    harness.handle(Event::NodeApplied(node("n3"), pool("a", &[gpu])));
    let placement = |tolerations: Vec<Toleration>| {
        Event::PullersPlaced(Some(Box::new(Placement {
            node_selector: [("pool".into(), "a".into())].into(),
            tolerations,
            ..Placement::default()
        })))
    };
    harness.handle(placement(Vec::new()));
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(300);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    let nodes = harness.status().nodes.unwrap();
    assert_eq!((nodes.desired, nodes.unreachable), (1, 0));
    // Nothing is pending there either.
    harness.change(|spec| spec.deletion_policy = Some(DeletionPolicy::Purge));
    harness.delete();
    assert!(harness.objects.is_empty());

    harness.create(images(&["r.test/a:1"]));
    let exists = Toleration {
        operator: "Exists".into(),
        ..Toleration::default()
    };
    harness.handle(placement(vec![exists]));
    harness.wait(60);
    let nodes = harness.status().nodes.unwrap();
    assert_eq!((nodes.desired, nodes.pending, nodes.unreachable), (2, 1, 0));
    harness.handle(Event::PullersPlaced(None));
    harness.wait(150);
    assert_eq!(harness.status().nodes.unwrap().unreachable, 2);
}

#[test]
fn a_cache_whose_nodes_get_no_puller_says_so_and_names_them() {
    let mut harness = Harness::new(&[]);
    for (name, pool) in [("n1", "a"), ("n2", "b"), ("n3", "b")] {
        let pool = facts(&[("pool", pool)]);
        harness.handle(Event::NodeApplied(node(name), pool));
    }
    harness.handle(Event::PullersPlaced(Some(Box::new(Placement {
        node_selector: [("pool".into(), "a".into())].into(),
        ..Placement::default()
    }))));
    harness.create(spec(&[(&["r.test/a:1"], &[("pool", "b")])]));
    harness.lead();
    harness.wait(300);
    harness.is("Ready", "False", "NodesNotEligible");
    let said = harness.message("Ready");
    assert!(
        said.contains("2 without a planned puller") && said.ends_with("(n2, n3)"),
        "{said}"
    );
}
