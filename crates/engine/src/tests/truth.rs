//! What the status says, how often it is written, and how large it gets.

use super::*;

#[test]
fn of_more_than_a_hundred_failures_the_status_lists_a_sample_and_the_count() {
    let names: Vec<String> = (0..90).map(|number| format!("n{number:02}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&nodes);
    let broken: Vec<String> = (0..4).map(|at| format!("r.test/{at}:1")).collect();
    for name in &broken {
        world.broken.insert(name.clone(), "ImageNotFound");
    }
    let wanted: Vec<&str> = broken.iter().map(String::as_str).collect();
    world.create(images(&wanted));
    world.lead();
    world.wait(2);
    let status = world.status();
    let shown: Vec<usize> = status.failures.values().map(Vec::len).collect();
    assert_eq!(shown, [3; 4]);
    assert_eq!(status.failure_count, Some(360));
    assert_eq!(status.failures_truncated, Some(true));
    let size = serde_json::to_string(status).unwrap().len();
    assert!(size < 256 << 10, "{size}");
}

#[test]
fn the_five_parts_of_the_nodes_add_up_and_pairs_are_counted() {
    let mut world = World::new(&["n1", "n2"]);
    world.handle(Event::NodeApplied(node("n3"), facts(&[])));
    world.broken.insert("r.test/b:1".into(), "ImageNotFound");
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.wait(2);
    let nodes = world.status().nodes.unwrap();
    let parts = (nodes.ready, nodes.failed, nodes.pulling);
    assert_eq!((nodes.desired, parts), (3, (0, 2, 0)));
    assert_eq!((nodes.pending, nodes.unreachable), (1, 0));
    let images = world.status().images.unwrap();
    assert_eq!((images.desired, images.ready), (6, 2));
    assert_eq!(world.status().ready, "0/3");
}

#[test]
fn conditions_are_there_from_first_sight_and_carry_the_generation() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let first = &world.statuses[0].1;
    let types: Vec<&str> = first.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["Ready", "Progressing", "Degraded"]);
    let ready = &first.conditions[0];
    assert_eq!(
        (&*ready.status, &*ready.reason),
        ("Unknown", "NotYetChecked")
    );
    world.change(|spec| spec.min_ready_nodes = "50%".parse().ok());
    world.wait(2);
    let mut seen = world.status().conditions.iter();
    assert!(seen.all(|c| c.observed_generation == Some(2)));
}

#[test]
fn an_unchanged_status_is_not_written() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.wait(2);
    let ready = |world: &World| world.status().conditions[0].last_transition_time;
    let since = ready(&world);
    let written = world.statuses.len();
    world.apply(|_| {});
    world.wait(200);
    assert_eq!(world.statuses.len(), written);
    world.wait(3600);
    let hourly = world.statuses.len() - written;
    assert!((2..=16).contains(&hourly), "the looks alone: {hourly}");
    assert_eq!(ready(&world), since);
}

#[test]
fn progress_is_written_once_per_second_and_an_end_at_once() {
    let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&nodes);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.wait(2);
    let written = world.statuses.len();
    let open: Vec<BatchId> = world.open.keys().copied().collect();
    for batch in open {
        let seen = ImageOutcome::new(0, ImageResult::Pulled);
        world.answer(batch, vec![seen]);
        world.go_to(world.now.tick.0 + 50);
        world.run();
    }
    let writes = world.statuses.len() - written;
    assert!((2..=4).contains(&writes), "two seconds: {writes}");
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn ready_is_true_only_when_every_eligible_node_holds_every_image() {
    let mut world = World::new(&["n1", "n2"]);
    world.slow.insert("r.test/b:1".into());
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.wait(2);
    world.is("Ready", "False", "ImagesMissing");
    world.is("Progressing", "True", "Pulling");
    world.end_slow("r.test/b:1");
    world.wait(2);
    world.is("Ready", "True", "AllImagesPresent");
    world.held.get_mut("n2").unwrap().clear();
    world.slow.insert("r.test/b:1".into());
    world.wait(400);
    world.is("Ready", "False", "ImagesMissing");
}

#[test]
fn an_object_of_kube_fledged_is_adopted_and_names_that_it_drops_are_removed() {
    let mut world = World::new(&["n1"]);
    let held = [("r.test/a:1".into(), 1), ("r.test/b:1".into(), 1)];
    world.held.insert("n1".into(), held.into());
    world.apply(|object| {
        object.spec = images(&["r.test/a:1", "r.test/b:1"]);
        object.status.status = "Succeeded".into();
        object.status.reason = "ImageCacheCreate".into();
    });
    world.lead();
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.count("pull"), 0);
    world.is("Ready", "True", "AllImagesPresent");
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
}

#[test]
fn removals_pending_on_silent_nodes_are_abandoned_after_a_day() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.unreachable.insert("n2".into());
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    world.wait(300);
    assert_eq!(world.status().applied_images.len(), 2, "n2 owes it");
    world.wait(25 * 3600);
    assert_eq!(world.status().applied_images.len(), 1);
    world.unreachable.clear();
    world.wait(120);
    world.is("Degraded", "True", "RemovalAbandoned");
    assert_eq!(world.held("n2"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn an_image_in_use_is_kept_and_removed_when_it_is_free() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.in_use.insert("r.test/a:1".into());
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.count("event ImagesKept"), 1);
    world.wait(2);
    let kept = world.status().images.unwrap().kept.unwrap();
    assert_eq!((kept.in_use, kept.pinned, kept.shared), (1, 0, 0));
    world.in_use.clear();
    world.wait(600);
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
    assert_eq!(world.status().images.unwrap().kept, None);
}
