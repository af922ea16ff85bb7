//! What the status says, how often it is written, and how large it gets.

use super::*;

#[test]
fn of_more_than_a_hundred_failures_the_status_lists_a_sample_and_the_count() {
    let names: Vec<String> = (0..90).map(|number| format!("n{number:02}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::new(&nodes);
    let broken: Vec<String> = (0..4).map(|at| format!("r.test/{at}:1")).collect();
    for name in &broken {
        harness.broken.insert(name.clone(), "ImageNotFound");
    }
    let wanted: Vec<&str> = broken.iter().map(String::as_str).collect();
    harness.create(images(&wanted));
    harness.lead();
    harness.wait(2);
    let status = harness.status();
    let shown: Vec<usize> = status.failures.values().map(Vec::len).collect();
    assert_eq!(shown, [3; 4]);
    assert_eq!(status.failure_count, Some(360));
    assert_eq!(status.failures_truncated, Some(true));
    let size = serde_json::to_string(status).unwrap().len();
    assert!(size < 256 << 10, "{size}");
}

#[test]
fn the_five_parts_of_the_nodes_add_up_and_pairs_are_counted() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.handle(Event::NodeApplied(node("n3"), facts(&[])));
    harness.broken.insert("r.test/b:1".into(), "ImageNotFound");
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.wait(2);
    let nodes = harness.status().nodes.unwrap();
    let parts = (nodes.ready, nodes.failed, nodes.pulling);
    assert_eq!((nodes.desired, parts), (3, (0, 2, 0)));
    assert_eq!((nodes.pending, nodes.unreachable), (1, 0));
    let images = harness.status().images.as_ref().unwrap();
    assert_eq!((images.desired, images.ready), (6, 2));
    assert_eq!(harness.status().ready, "0/3");
}

#[test]
fn conditions_are_there_from_first_sight_and_carry_the_generation() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let first = &harness.statuses[0].1;
    let types: Vec<&str> = first.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["Ready", "Progressing", "Degraded", "Reconciling"]);
    let ready = &first.conditions[0];
    assert_eq!(
        (&*ready.status, &*ready.reason),
        ("Unknown", "NotYetChecked")
    );
    harness.change(|spec| spec.min_ready_nodes = "50%".parse().ok());
    harness.wait(2);
    let mut seen = harness.status().conditions.iter();
    assert!(seen.all(|c| c.observed_generation == Some(2)));
}

#[test]
fn an_unchanged_status_is_not_written() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(2);
    let ready = |harness: &Harness| harness.status().conditions[0].last_transition_time;
    let since = ready(&harness);
    let written = harness.statuses.len();
    harness.apply(|_| {});
    harness.wait(200);
    assert_eq!(harness.statuses.len(), written);
    harness.wait(3600);
    let hourly = harness.statuses.len() - written;
    assert!((2..=16).contains(&hourly), "the looks alone: {hourly}");
    assert_eq!(ready(&harness), since);
}

#[test]
fn progress_is_written_once_per_second_and_an_end_at_once() {
    let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::new(&nodes);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(2);
    let written = harness.statuses.len();
    let open: Vec<BatchId> = harness.open.keys().copied().collect();
    for batch in open {
        let seen = ImageOutcome::new(0, ImageResult::Pulled);
        harness.answer(batch, vec![seen]);
        harness.go_to(harness.now.tick.0 + 50);
        harness.run();
    }
    let writes = harness.statuses.len() - written;
    assert!((2..=4).contains(&writes), "two seconds: {writes}");
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn ready_is_true_only_when_every_eligible_node_holds_every_image() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.slow.insert("r.test/b:1".into());
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.wait(2);
    harness.is("Ready", "False", "ImagesMissing");
    harness.is("Progressing", "True", "Pulling");
    harness.end_slow("r.test/b:1");
    harness.wait(2);
    harness.is("Ready", "True", "AllImagesPresent");
    harness.held.get_mut("n2").unwrap().clear();
    harness.slow.insert("r.test/b:1".into());
    harness.wait(400);
    harness.is("Ready", "False", "ImagesMissing");
}

#[test]
fn an_object_of_kube_fledged_is_adopted_and_names_that_it_drops_are_removed() {
    let mut harness = Harness::new(&["n1"]);
    let held = [("r.test/a:1".into(), 1), ("r.test/b:1".into(), 1)];
    harness.held.insert("n1".into(), held.into());
    harness.apply(|object| {
        object.spec = images(&["r.test/a:1", "r.test/b:1"]);
        object.status.status = "Succeeded".into();
        object.status.reason = "ImageCacheCreate".into();
    });
    harness.lead();
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.count("pull"), 0);
    harness.is("Ready", "True", "AllImagesPresent");
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
}

#[test]
fn removals_pending_on_silent_nodes_are_abandoned_after_a_day() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.unreachable.insert("n2".into());
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    harness.wait(300);
    assert_eq!(harness.status().applied_images.len(), 2, "n2 owes it");
    harness.wait(25 * 3600);
    assert_eq!(harness.status().applied_images.len(), 1);
    harness.unreachable.clear();
    harness.wait(120);
    harness.is("Degraded", "True", "RemovalAbandoned");
    assert_eq!(harness.held("n2"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn an_image_in_use_is_kept_and_removed_when_it_is_free() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.in_use.insert("r.test/a:1".into());
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.count("event ImagesKept"), 1);
    harness.wait(2);
    let kept = harness.status().images.as_ref().unwrap().kept.unwrap();
    assert_eq!((kept.in_use, kept.pinned, kept.shared), (1, 0, 0));
    harness.in_use.clear();
    harness.wait(600);
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    assert_eq!(harness.status().images.as_ref().unwrap().kept, None);
}
