//! Nothing is green that is not there, and every problem is told with its cause.

use super::*;

fn unready() -> NodeFacts {
    NodeFacts {
        ready: false,
        ..facts(&[])
    }
}

fn tainted() -> NodeFacts {
    NodeFacts {
        taints: vec![Taint {
            key: "node.kubernetes.io/disk-pressure".into(),
            ..Taint::default()
        }],
        ..facts(&[])
    }
}

/// An operation under way on one node, which then changes.
fn pulling_to(changed: NodeFacts) -> Harness {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/big:1".into());
    harness.create(images(&["r.test/big:1"]));
    harness.lead();
    harness.wait(2);
    harness.handle(Event::NodeApplied(node("n1"), changed));
    harness.run();
    harness
}

#[test]
fn a_node_that_is_unfit_for_a_moment_stays_in_the_operation() {
    for changed in [unready(), tainted()] {
        let mut harness = pulling_to(changed);
        harness.wait(60);
        assert_eq!(harness.reported().0, "Processing");
        assert_eq!(harness.status().ready, "0/1");
        let message = harness.message("Progressing");
        assert!(message.contains("(n1)"), "{message}");
        harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
        harness.end_slow("r.test/big:1");
        harness.wait(2);
        assert_eq!(harness.reported().0, "Succeeded");
        harness.is("Ready", "True", "AllImagesPresent");
    }
}

#[test]
fn an_operation_whose_nodes_have_all_left_is_no_success() {
    for changed in [unready(), tainted()] {
        let mut harness = pulling_to(changed);
        harness.wait(130);
        assert_eq!(
            harness.reported(),
            ("NoImagesPulledOrDeleted", "ImageCacheCreate")
        );
        harness.is("Ready", "False", "NodesNotEligible");
        assert_eq!(harness.status().ready, "0/0");
        harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
        harness.end_slow("r.test/big:1");
        harness.wait(10);
        assert_eq!(harness.reported().0, "Succeeded", "it is there now");
        harness.is("Ready", "True", "AllImagesPresent");
    }
}

#[test]
fn a_pool_without_nodes_is_ready_only_after_it_had_one() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[("pool", "gpu")])]));
    harness.lead();
    harness.is("Ready", "False", "NoNodeMatches");
    harness.join("g1", &[("pool", "gpu")]);
    harness.run();
    harness.wait(2);
    harness.is("Ready", "True", "AllImagesPresent");
    harness.handle(Event::NodeDeleted(node("g1")));
    harness.handle(Event::PullerChanged(node("g1"), None));
    harness.run();
    harness.wait(2);
    harness.is("Ready", "True", "NoEligibleNodes");
    harness.change_leader();
    harness.wait(2);
    harness.is("Ready", "True", "NoEligibleNodes");
    harness.change(|spec| spec.priority_of_the_first_list(3));
    harness.wait(2);
    harness.is("Ready", "True", "NoEligibleNodes");
    harness.change(|spec| {
        let selector = &mut spec.cache_spec[0].node_selector;
        selector.insert("pool".into(), "gpus".into());
    });
    harness.wait(2);
    harness.is("Ready", "False", "NoNodeMatches");
}

trait Edit {
    fn priority_of_the_first_list(&mut self, priority: i32);
}

impl Edit for ImageCacheSpec {
    fn priority_of_the_first_list(&mut self, priority: i32) {
        self.cache_spec[0].priority = Some(priority);
    }
}

#[test]
fn a_list_that_matches_nothing_is_named_once_also_beside_one_that_does() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[
        (&["r.test/a:1"], &[]),
        (&["r.test/b:1"], &[("teir", "backend")]),
    ]));
    harness.lead();
    harness.wait(2);
    harness.is("Ready", "True", "AllImagesPresent");
    harness.is("Degraded", "True", "NoNodeMatches");
    let message = harness.message("Degraded");
    assert!(
        message.contains("spec.cacheSpec[1] (teir=backend)"),
        "{message}"
    );
    assert_eq!(harness.status().lists_without_nodes, [1]);
    harness.change_leader();
    harness.wait(400);
    assert_eq!(harness.count("event NoNodeMatches"), 1);
    harness.join("n2", &[("teir", "backend")]);
    harness.run();
    harness.wait(2);
    harness.is("Degraded", "False", "None");
    assert!(harness.status().lists_without_nodes.is_empty());
}

#[test]
fn nodes_that_can_never_get_images_do_not_count_as_matched() {
    let mut harness = Harness::new(&["n1"]);
    let labels = [("pool", "win"), ("kubernetes.io/os", "windows")];
    harness.handle(Event::NodeApplied(node("w1"), facts(&labels)));
    harness.create(spec(&[(&["r.test/a:1"], &[("pool", "win")])]));
    harness.lead();
    harness.is("Ready", "False", "NoNodeMatches");
}

#[test]
fn require_nodes_asks_for_so_many_nodes_even_if_there_are_fewer() {
    let mut harness = Harness::new(&["n1", "n2"]);
    let mut wanted = images(&["r.test/a:1"]);
    wanted.require_nodes = Some(3);
    wanted.min_ready_nodes = "1".parse().ok();
    harness.create(wanted);
    harness.lead();
    harness.wait(2);
    harness.is("Ready", "False", "TooFewNodes");
    harness.join("n3", &[]);
    harness.run();
    harness.wait(2);
    harness.is("Ready", "True", "AllImagesPresent");
    let mut empty = spec(&[(&["r.test/a:1"], &[("pool", "later")])]);
    empty.require_nodes = Some(0);
    harness.edit(empty);
    harness.wait(2);
    harness.is("Ready", "True", "NoEligibleNodes");
    harness.is("Degraded", "False", "None");
}

#[test]
fn the_first_loss_of_an_image_is_told_with_the_fill_level() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(2);
    harness.disk_full = true;
    harness.held.clear();
    harness.slow.insert("r.test/a:1".into());
    harness.wait(340);
    assert_eq!(harness.status().ready, "0/1");
    harness.is("Degraded", "True", "LostToGarbageCollection");
    let message = harness.message("Degraded");
    assert!(
        message.starts_with("1 of 1 node lost images (n1), "),
        "{message}"
    );
    assert!(message.contains("95 % full"), "{message}");
    assert_eq!(harness.count("event LostToGarbageCollection"), 1);
    harness.end_slow("r.test/a:1");
    harness.wait(5);
    harness.is("Degraded", "False", "None");
}

#[test]
fn kept_images_are_counted_only_while_they_are_there() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.in_use.insert("r.test/b:1".into());
    harness.edit(images(&["r.test/a:1"]));
    harness.wait(2);
    let kept = |harness: &Harness| harness.status().images.as_ref().unwrap().kept;
    assert_eq!(kept(&harness).unwrap().in_use, 2);
    harness.in_use.clear();
    harness.held.get_mut("n1").unwrap().remove("r.test/b:1");
    harness.handle(Event::NodeDeleted(node("n2")));
    harness.handle(Event::PullerChanged(node("n2"), None));
    harness.run();
    harness.wait(310);
    assert_eq!(kept(&harness), None);
}

#[test]
fn a_failure_names_the_image_the_reason_and_the_nodes_in_conditions_and_event() {
    let names: Vec<String> = (1..=5).map(|number| format!("n{number}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::new(&nodes);
    harness.broken.insert("r.test/b:1".into(), "ImageNotFound");
    harness.broken.insert("r.test/c:1".into(), "RateLimited");
    harness.create(images(&["r.test/a:1", "r.test/b:1", "r.test/c:1"]));
    harness.lead();
    harness.wait(2);
    let cause = "5 of 5 nodes lack r.test/b:1: ImageNotFound (n1, n2, n3, …); 1 more cause in status.failures";
    for condition in ["Ready", "Degraded", "Stalled"] {
        let message = harness.message(condition);
        assert!(message.starts_with(cause), "{condition}: {message}");
    }
    let told = format!(
        "event ImageCacheCreate: Image pull failed for some images. Please see \"failures\" section: {cause}"
    );
    assert_eq!(harness.count(&told), 1, "{:#?}", harness.log);
    assert_eq!(
        harness.status().message,
        "Image pull failed for some images. Please see \"failures\" section"
    );
}

#[test]
fn a_success_says_how_much_was_pulled() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.slow.insert("r.test/b:1".into());
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.wait(38);
    harness.end_slow("r.test/b:1");
    harness.wait(2);
    let ended: Vec<&String> = harness
        .log
        .iter()
        .filter(|line| line.contains("succesfully to respective nodes"))
        .collect();
    assert_eq!(ended.len(), 1);
    assert!(
        ended[0].contains("nodes: 2 nodes, 2 images, 4.1 kB"),
        "{ended:?}"
    );
    assert!(ended[0].ends_with("38 s"), "{ended:?}");
}
