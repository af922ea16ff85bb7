//! The node gate: which nodes are held, until when, and what is written to their Node objects.

use kubefledged_api_types::{GoDuration, NodeGate, names::failure};

use super::{
    gate::{gated, required},
    *,
};

#[test]
fn a_node_that_joins_loses_only_our_taint_and_only_when_every_gating_image_is_there() {
    let mut h = Harness::gating(required(&["a:1", "slow:1"]));
    h.slow.insert("slow:1".into());
    h.join_with_puller("n1", 5);
    assert!(h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "Pulling");
    assert_eq!(h.status().held_nodes, Some(1));
    h.end_slow("slow:1");
    assert!(!h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "ImagesCached");
    let left = h.object("n1").facts.taints.iter();
    let left: Vec<&str> = left.map(|taint| &*taint.key).collect();
    assert_eq!(left, ["other/first", "other/last"]);
    assert_eq!(h.object("n1").tries, 3, "False, the taint, True");
    assert_eq!(h.count("event n1 released"), 0);
    h.wait(5);
    assert_eq!(h.status().held_nodes, Some(0));
}

#[test]
fn without_its_flags_the_gate_writes_to_no_node_and_counts_none() {
    let mut h = Harness::with(Settings::default(), &[]);
    h.create(required(&["a:1"]));
    h.lead();
    h.join_with_puller("n1", 5);
    h.wait(1200);
    assert!(h.is_tainted("n1"));
    assert_eq!((h.object("n1").tries, h.status().held_nodes), (0, None));
}

#[test]
fn a_cache_that_does_not_gate_holds_no_node() {
    let mut h = Harness::gating(images(&["slow:1"]));
    h.slow.insert("slow:1".into());
    h.join_with_puller("n1", 0);
    assert!(!h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "NothingToCache");
    assert_eq!(h.status().held_nodes, None);
}

#[test]
fn an_image_that_cannot_be_pulled_releases_the_node_as_soon_as_the_others_are_there() {
    for reason in [failure::IMAGE_NOT_FOUND, failure::PLATFORM_MISMATCH] {
        let mut h = Harness::gating(required(&["a:1", "broken:1", "slow:1"]));
        h.slow.insert("slow:1".into());
        h.broken.insert("broken:1".into(), reason);
        h.join_with_puller("n1", 5);
        assert!(h.is_tainted("n1"), "{reason}");
        assert_eq!(h.gate_reason("n1"), "PullFailed");
        h.end_slow("slow:1");
        assert!(!h.is_tainted("n1"), "{reason}");
        assert_eq!(h.gate_reason("n1"), "ReleasedAfterFailure");
        assert_eq!(
            h.count("event n1 released: ReleasedAfterFailure broken:1 +0"),
            1
        );
    }
}

#[test]
fn a_failure_that_may_pass_holds_the_node_until_the_time_out_and_is_told_once() {
    let mut h = Harness::gating(required(&["a:1", "broken:1"]));
    h.broken
        .insert("broken:1".into(), failure::REGISTRY_UNAVAILABLE);
    h.join_with_puller("n1", 5);
    h.wait(594);
    assert!(h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "PullFailed");
    h.wait(1);
    assert!(!h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "ReleasedByTimeout");
    h.broken.clear();
    h.wait(900);
    assert_eq!(h.gate_reason("n1"), "ImagesCached");
    assert_eq!(
        h.count("event n1 released: ReleasedByTimeout broken:1 +0"),
        1
    );
    assert_eq!(h.count("event n1 released"), 1);
}

#[test]
fn a_time_out_of_a_cache_counts_instead_of_the_flag_and_the_longest_decides() {
    let with = |timeout| ImageCacheSpec {
        node_gate_timeout: Some(GoDuration(Duration::from_secs(timeout))),
        ..required(&["slow:1"])
    };
    let mut h = Harness::gating(with(60));
    h.create_as("b", with(90));
    h.slow.insert("slow:1".into());
    h.join_with_puller("n1", 0);
    h.wait(89);
    assert!(h.is_tainted("n1"));
    h.wait(1);
    assert!(!h.is_tainted("n1"));
}

#[test]
fn a_node_without_a_puller_is_unknown_after_the_grace_time_and_released_by_the_time_out() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_tainted("n1");
    assert_eq!(h.gate_reason("n1"), "", "nothing is known yet");
    h.wait(121);
    assert_eq!(h.gate_reason("n1"), "PullerUnavailable");
    assert!(h.is_tainted("n1"));
    h.wait(479);
    assert!(!h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "ReleasedByTimeout");
}

#[test]
fn a_new_leader_releases_no_node_as_warm_before_it_has_checked_it() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.object_refuses("n1");
    h.join_with_puller("n1", 1);
    assert!(h.is_tainted("n1"));
    // Meanwhile the image vanishes, and its pulls do not end.
    h.held.clear();
    h.slow.insert("a:1".into());
    h.handle(Event::Leadership(None));
    h.run();
    h.object("n1").refuses = false;
    h.handle(Event::Leadership(Some(2)));
    h.run();
    assert!(h.is_tainted("n1"));
    assert_eq!(h.gate_reason("n1"), "Pulling");
    h.end_slow("a:1");
    assert!(!h.is_tainted("n1"));
}

#[test]
fn the_time_out_counts_from_the_creation_of_the_node_also_for_a_leader_that_comes_later() {
    let mut h = Harness::gating(required(&["slow:1"]));
    h.slow.insert("slow:1".into());
    h.join_with_puller("n1", 0);
    h.handle(Event::Leadership(None));
    h.wait(599);
    h.handle(Event::Leadership(Some(2)));
    h.run();
    assert!(h.is_tainted("n1"));
    h.wait(1);
    assert!(!h.is_tainted("n1"));
    // One that nobody led for until it was old is released at once.
    h.handle(Event::Leadership(None));
    h.join_with_puller("n2", 700);
    h.handle(Event::Leadership(Some(3)));
    h.run();
    assert!(!h.is_tainted("n2"));
    assert_eq!(h.gate_reason("n2"), "ReleasedByTimeout");
}

#[test]
fn a_leader_change_rewrites_no_condition_of_a_node_that_is_as_it_was() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_with_puller("n1", 1);
    let tries = h.object("n1").tries;
    h.change_leader();
    h.wait(60);
    assert_eq!(h.object("n1").tries, tries);
    assert_eq!(h.gate_reason("n1"), "ImagesCached");
}

#[test]
fn what_somebody_else_wrote_over_the_condition_is_put_right() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_with_puller("n1", 1);
    let mut facts = h.object("n1").facts.clone();
    facts.images_cached = None;
    h.put_node("n1", facts.clone());
    assert_eq!(h.gate_reason("n1"), "ImagesCached");
    facts.images_cached = Some(NodeCondition {
        status: "True".into(),
        reason: "Nonsense".into(),
    });
    h.put_node("n1", facts);
    // Who undoes it again and again is answered with pauses.
    h.wait(2);
    assert_eq!(h.gate_reason("n1"), "ImagesCached");
}

#[test]
fn a_conflict_is_tried_again_with_the_newer_node_and_other_taints_stay() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_tainted("n1");
    // Somebody removed a taint before ours, and the watch is late.
    let object = h.object("n1");
    object.facts.taints.remove(0);
    object.unseen = true;
    let newer = object.facts.clone();
    h.puller("n1");
    h.run();
    assert!(h.is_tainted("n1"));
    h.object("n1").unseen = false;
    h.put_node(
        "n1",
        NodeFacts {
            images_cached: h.gated["n1"].facts.images_cached.clone(),
            ..newer
        },
    );
    h.wait(1);
    assert!(!h.is_tainted("n1"));
    let left = h.object("n1").facts.taints.iter();
    assert_eq!(
        left.map(|taint| &*taint.key).collect::<Vec<_>>(),
        ["other/last"]
    );
}

#[test]
fn a_write_is_not_repeated_while_the_watch_is_silent() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_tainted("n1");
    h.object("n1").unseen = true;
    h.puller("n1");
    h.run();
    h.wait(50);
    assert_eq!(h.object("n1").tries, 3, "False, the taint, True");
    // A late event of the watch, from before the writes, changes nothing.
    let late = NodeFacts {
        labels: [("a".to_owned(), "b".to_owned())].into(),
        taints: vec![taint(
            kubefledged_api_types::names::IMAGES_NOT_CACHED_TAINT,
            "NoSchedule",
        )],
        uid: "uid-n1".into(),
        created: Some(h.now.wall),
        ..facts(&[])
    };
    h.handle(Event::NodeApplied(node("n1"), late));
    h.run();
    assert_eq!(h.object("n1").tries, 3);
}

#[test]
fn writes_that_fail_are_tried_again_ever_less_often() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.object_refuses("n1");
    h.join_with_puller("n1", 1);
    h.wait(300);
    let tries = h.object("n1").tries;
    assert!((6..=16).contains(&tries), "{tries}");
    h.object("n1").refuses = false;
    h.wait(90);
    assert!(!h.is_tainted("n1"));
}

#[test]
fn a_node_that_comes_again_under_its_name_is_checked_before_it_is_released() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_with_puller("n1", 1);
    assert!(!h.is_tainted("n1"));
    // The machine was replaced; its puller is not.
    h.held.clear();
    h.slow.insert("a:1".into());
    h.join_tainted("n1");
    h.object("n1").facts.uid = "another".into();
    let facts = h.object("n1").facts.clone();
    h.put_node("n1", facts);
    assert!(h.is_tainted("n1"));
    h.end_slow("a:1");
    assert!(!h.is_tainted("n1"));
}

#[test]
fn a_node_that_is_not_ready_yet_is_held_and_one_that_gets_no_images_is_not() {
    let mut h = Harness::gating(required(&["a:1"]));
    h.join_tainted("n1");
    let mut facts = h.object("n1").facts.clone();
    facts.ready = false;
    h.put_node("n1", facts.clone());
    h.puller("n1");
    h.wait(60);
    assert!(h.is_tainted("n1"));
    facts.ready = true;
    h.put_node("n1", facts.clone());
    assert!(!h.is_tainted("n1"));
    facts.uid = "uid-n2".into();
    facts.labels = [("kubefledged.io/exclude".to_owned(), "true".to_owned())].into();
    h.put_node("n2", facts);
    assert!(!h.is_tainted("n2"));
    assert_eq!(h.gate_reason("n2"), "NothingToCache");
}

#[test]
fn a_node_that_the_pullers_do_not_select_is_released_and_one_whose_taint_they_do_not_tolerate_yet_is_held()
 {
    let mut h = Harness::gating(required(&["a:1"]));
    let tolerated = kubefledged_api_types::names::IMAGES_NOT_CACHED_TAINT;
    let placement = |selector: &[(&str, &str)]| Placement {
        node_selector: facts(selector).labels,
        tolerations: vec![Toleration {
            key: tolerated.into(),
            operator: "Exists".into(),
            ..Toleration::default()
        }],
        ..Placement::default()
    };
    h.handle(Event::PullersPlaced(Some(Box::new(placement(&[])))));
    h.join_tainted("n1");
    h.wait(60);
    assert!(h.is_tainted("n1"));
    let none = placement(&[("pool", "other")]);
    h.handle(Event::PullersPlaced(Some(Box::new(none))));
    h.run();
    assert!(!h.is_tainted("n1"));
}

#[test]
fn a_suspended_or_purged_cache_holds_no_node() {
    let mut h = Harness::gating(required(&["slow:1"]));
    h.slow.insert("slow:1".into());
    h.join_with_puller("n1", 0);
    assert!(h.is_tainted("n1"));
    h.change(|spec| spec.suspend = true);
    assert!(!h.is_tainted("n1"));
}

#[test]
fn an_edit_that_makes_a_cache_gate_holds_a_young_node_and_no_old_one() {
    let mut h = Harness::gating(images(&["slow:1"]));
    h.slow.insert("slow:1".into());
    h.join_with_puller("old", 0);
    h.wait(700);
    h.join_with_puller("young", 0);
    assert_eq!(
        (h.gate_reason("old"), h.gate_reason("young")),
        ("NothingToCache", "NothingToCache")
    );
    let writes = h.object("old").writes;
    h.change(|spec| spec.node_gate = Some(NodeGate::Required));
    assert_eq!(h.gate_reason("young"), "Pulling");
    assert_eq!(
        h.object("old").writes,
        writes,
        "an old node is not written for a moment"
    );
    h.end_slow("slow:1");
    assert_eq!(
        (h.gate_reason("old"), h.gate_reason("young")),
        ("ImagesCached", "ImagesCached")
    );
}

#[test]
fn each_half_of_the_gate_works_without_the_other() {
    for (condition, taint, tries) in [(true, false, 2), (false, true, 1)] {
        let mut settings = gated();
        settings.gate.condition = condition;
        settings.gate.taint = settings.gate.taint.filter(|_| taint);
        let mut h = Harness::with(settings, &[]);
        h.create(required(&["slow:1"]));
        h.slow.insert("slow:1".into());
        h.lead();
        h.join_with_puller("n1", 1);
        assert_eq!(h.gate_reason("n1"), if condition { "Pulling" } else { "" });
        assert_eq!(h.status().held_nodes, Some(1));
        h.end_slow("slow:1");
        assert_eq!(h.is_tainted("n1"), !taint);
        assert_eq!(h.object("n1").tries, tries);
    }
}

#[test]
fn five_hundred_nodes_that_join_at_once_cost_three_writes_each() {
    let mut h = Harness::gating(required(&["a:1", "b:1"]));
    for n in 0..500 {
        h.join_tainted(&format!("n{n}"));
    }
    for n in 0..500 {
        h.puller(&format!("n{n}"));
    }
    h.run();
    h.wait(2);
    for n in 0..500 {
        let name = format!("n{n}");
        assert!(!h.is_tainted(&name), "{name}");
        assert!(h.object(&name).tries <= 3, "{name}");
    }
}

impl Harness {
    /// The API server will refuse writes to a Node that joins later.
    fn object_refuses(&mut self, name: &str) {
        let object = self.gated.entry(name.to_owned()).or_default();
        object.refuses = true;
    }
}
