//! Edits at any moment, and caches that share images.

use super::*;

#[test]
fn an_image_dropped_from_the_list_goes_from_the_nodes_and_an_added_one_comes() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    world.edit(spec(&[(&["r.test/b:1", "r.test/c:1"], &[])]));
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n2"), ["r.test/b:1", "r.test/c:1"]);
    world.wait(2);
    let names: Vec<_> = world
        .status()
        .applied_images
        .iter()
        .map(|a| a.name.as_str())
        .collect();
    assert_eq!(names, ["r.test/b:1", "r.test/c:1"]);
}

#[test]
fn an_image_that_another_cache_desires_stays_where_that_one_desires_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "x")])));
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    let mut other = world.objects[&key()].clone();
    other.key = CacheKey {
        namespace: "ns".into(),
        name: "other".into(),
    };
    other.uid = "v".into();
    other.spec = spec(&[(&["r.test/a:1"], &[("tier", "x")])]);
    world.objects.insert(other.key.clone(), other.clone());
    world.handle(Event::CacheApplied(Box::new(other)));
    world.lead();
    world.edit(spec(&[(&["r.test/b:1"], &[])]));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(world.held("n2"), ["r.test/b:1"]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn an_edit_during_a_pull_ends_what_it_no_longer_desires() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/big:1".into());
    world.create(spec(&[(&["r.test/big:1"], &[])]));
    world.lead();
    assert_eq!(world.reported().0, "Processing");
    world.edit(spec(&[(&["r.test/b:1"], &[])]));
    world.run();
    assert_eq!(world.count("cancel n1 r.test/big:1"), 1);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
}

#[test]
fn editing_a_selector_or_adding_a_list_changes_what_is_desired_where() {
    let mut world = World::new(&[]);
    world.join("n1", &[("tier", "x")]);
    world.join("n2", &[("tier", "y")]);
    world.create(spec(&[(&["r.test/a:1"], &[("tier", "x")])]));
    world.lead();
    world.edit(spec(&[
        (&["r.test/a:1"], &[("tier", "y")]),
        (&["r.test/b:1"], &[]),
    ]));
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(
        world.held("n1"),
        ["r.test/a:1", "r.test/b:1"],
        "nothing is removed from n1"
    );
    assert_eq!(world.held("n2"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn an_edit_that_changes_nothing_desired_begins_no_operation() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.log.clear();
    world.change(|spec| {
        spec.cache_spec[0].priority = Some(7);
        spec.cache_spec[0].pull_deadline = Some("1h".parse().unwrap());
        spec.refresh = Some(kubefledged_api_types::RefreshSpec {
            interval: "1h".parse().ok(),
        });
        spec.max_concurrent_nodes = "10%".parse().ok();
        spec.min_ready_nodes = "90%".parse().ok();
        spec.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    });
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().observed_generation, Some(2));
    assert!(world.log.is_empty(), "{:?}", world.log);
}

#[test]
fn the_last_edit_wins_and_what_it_still_desires_goes_on() {
    let mut world = World::new(&["n1"]);
    world
        .slow
        .extend(["r.test/a:1".into(), "r.test/b:1".into()]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.edit(images(&["r.test/b:1", "r.test/c:1"]));
    world.edit(images(&["r.test/b:1"]));
    assert_eq!(world.count("cancel n1 r.test/a:1"), 1);
    assert_eq!(world.count("cancel n1 r.test/b:1"), 0);
    world.slow.clear();
    world.end_slow("r.test/b:1");
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
    world.wait(2);
    assert_eq!(world.status().applied_images.len(), 1);
}

#[test]
fn two_caches_desire_one_image_and_it_is_pulled_once() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(images(&["r.test/a:1"]));
    world.create_as("b", images(&["r.test/a:1"]));
    world.lead();
    assert_eq!(world.count("pull"), 2);
    assert_eq!(world.objects[&named("b")].status.status, "Succeeded");
    assert_eq!(world.reported().0, "Succeeded");
}

#[test]
fn deleting_a_cache_keeps_images_and_pulls_that_another_cache_desires() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.create_as("b", images(&["r.test/a:1"]));
    world.run();
    world.delete();
    assert_eq!(world.count("cancel"), 0);
    world.end_slow("r.test/a:1");
    assert_eq!(world.objects[&named("b")].status.status, "Succeeded");
    assert_eq!(
        (world.held("n1"), world.count("remove")),
        (vec!["r.test/a:1"], 0)
    );
}

#[test]
fn a_wrong_secret_of_one_cache_does_not_keep_the_right_one_of_another_waiting() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("r.test/a:1".into(), "Unauthorized");
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.broken.clear();
    let mut right = images(&["r.test/a:1"]);
    right.image_pull_secrets = vec![PullSecretReference {
        name: "right".into(),
    }];
    world.create_as("b", right);
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(2);
    assert_eq!(
        world.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "it healed"
    );
}

#[test]
fn an_edit_during_a_purge_waits_for_its_end_and_is_then_taken_up() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.writes_fail = true;
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(
        world.held("n1"),
        ["r.test/a:1"],
        "nothing before the purge is written"
    );
    world.writes_fail = false;
    world.wait(3);
    world.wait(3);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
    let purges = world
        .statuses
        .iter()
        .filter(|(_, s)| s.reason == "ImageCachePurge");
    assert!(
        purges.count() >= 2,
        "begin and end of the purge were written"
    );
}

#[test]
fn an_edit_while_nobody_leads_removes_what_was_applied() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.handle(Event::Leadership(None));
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    world.handle(Event::Leadership(Some(2)));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn an_invalid_spec_is_reported_keeps_images_and_can_be_corrected() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let object = world.objects[&key()].clone();
    world.asked();
    world.handle(Event::CacheInvalid(Box::new(InvalidCache {
        key: key(),
        uid: object.uid.clone(),
        resource_version: object.resource_version.clone(),
        generation: 2,
        status: object.status.clone(),
        finalizer: false,
        deleting: false,
        message: "spec: nonsense".into(),
    })));
    world.run();
    assert_eq!(world.reported(), ("Failed", "CacheSpecValidationFailed"));
    assert_eq!(world.status().message, "spec: nonsense");
    assert_eq!(world.status().applied_images.len(), 1);
    assert!(world.asked().is_empty());
    world.apply(|object| object.generation = 3);
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
}

/// However many names other caches want: a message has room for 8 MiB.
#[test]
fn a_removal_lists_only_desired_names_that_may_be_present() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("r.test/b:1".into(), "ImagePullError");
    world.create(images(&["r.test/a:1", "r.test/c:1"]));
    world.create_as("other", images(&["r.test/b:1", "r.test/d:1"]));
    world.lead();
    world.edit(images(&["r.test/c:1"]));
    let removals = world.batches.iter().filter_map(|batch| match &batch.work {
        Work::Remove {
            references,
            desired,
            ..
        } => Some((references, desired)),
        _ => None,
    });
    let [(references, desired)] = removals.collect::<Vec<_>>()[..] else {
        panic!("one removal");
    };
    let texts = |names: &[std::sync::Arc<str>]| names.join(" ");
    assert_eq!(texts(references), "r.test/a:1");
    assert_eq!(texts(desired), "r.test/c:1 r.test/d:1");
}

#[test]
fn a_failed_removal_is_dropped_when_another_cache_desires_the_image() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.stuck.insert("r.test/a:1".into());
    world.edit(images(&["r.test/b:1"]));
    world.is("Degraded", "True", "RemovalFailed");
    assert_eq!(world.reported(), ("Failed", "ImageCacheUpdate"));
    world.create_as("b", images(&["r.test/a:1"]));
    world.run();
    world.wait(2);
    world.is("Degraded", "False", "None");
    assert_eq!(
        world.reported(),
        ("Succeeded", "ImageCacheUpdate"),
        "it healed"
    );
    assert!(world.status().failures.is_empty());
}

#[test]
fn the_removal_of_a_name_dropped_without_a_leader_is_also_pending_on_silent_nodes() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.handle(Event::Leadership(None));
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    world.unreachable.insert("n1".into());
    world.handle(Event::Leadership(Some(2)));
    world.run();
    world.wait(600);
    let applied = &world.status().applied_images;
    assert_eq!(applied.len(), 2, "{applied:?}");
    assert!(
        applied[0]
            .since
            .is_some_and(|since| since.0 > 1_700_000_000 - 10)
    );
    world.unreachable.clear();
    world.wait(60);
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
    world.wait(2);
    assert_eq!(world.status().applied_images.len(), 1);
}

#[test]
fn a_recreated_cache_is_not_ready_because_of_old_observations() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let batch = world.batches.last().unwrap().id;
    world.objects.clear();
    world.handle(Event::CacheDeleted(key()));
    let pulled = ImageOutcome::new(0, ImageResult::Pulled);
    let mut out = Vec::new();
    let now = world.now;
    world.engine().poll(now, &mut out);
    world.handle(Event::Outcomes(batch, vec![pulled]));
    world.handle(Event::BatchEnded(batch, BatchEnd::Done));
    world.run();
    world.statuses.clear();
    world.create(images(&["r.test/a:1"]));
    world.run();
    let ready = world
        .statuses
        .iter()
        .flat_map(|(_, status)| &status.conditions);
    assert!(
        ready
            .filter(|c| c.type_ == "Ready")
            .all(|c| c.status != "True")
    );
    world.end_slow("r.test/a:1");
    world.is("Ready", "True", "AllImagesPresent");
}

#[test]
fn failures_with_secrets_that_no_cache_names_any_more_are_forgotten() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("r.test/a:1".into(), "Unauthorized");
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let remembered = |world: &mut World| {
        world
            .engine()
            .model
            .nodes
            .iter()
            .next()
            .unwrap()
            .1
            .attempts
            .len()
    };
    assert_eq!(remembered(&mut world), 1);
    world.change(|spec| {
        spec.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    });
    assert_eq!(remembered(&mut world), 2);
    world.wait(400);
    assert_eq!(remembered(&mut world), 1);
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(remembered(&mut world), 0);
}
