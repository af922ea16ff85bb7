//! Edits at any moment, and caches that share images.

use super::*;

#[test]
fn an_image_dropped_from_the_list_goes_from_the_nodes_and_an_added_one_comes() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    harness.lead();
    harness.edit(spec(&[(&["r.test/b:1", "r.test/c:1"], &[])]));
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n2"), ["r.test/b:1", "r.test/c:1"]);
    harness.wait(2);
    let names: Vec<_> = harness
        .status()
        .applied_images
        .iter()
        .map(|a| a.name.as_str())
        .collect();
    assert_eq!(names, ["r.test/b:1", "r.test/c:1"]);
}

#[test]
fn an_image_that_another_cache_desires_stays_where_that_one_desires_it() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.handle(Event::NodeApplied(node("n1"), facts(&[("tier", "x")])));
    harness.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    let mut other = harness.objects[&key()].clone();
    other.key = CacheKey {
        namespace: "ns".into(),
        name: "other".into(),
    };
    other.uid = "v".into();
    other.spec = spec(&[(&["r.test/a:1"], &[("tier", "x")])]);
    harness.objects.insert(other.key.clone(), other.clone());
    harness.handle(Event::CacheApplied(Box::new(other)));
    harness.lead();
    harness.edit(spec(&[(&["r.test/b:1"], &[])]));
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(harness.held("n2"), ["r.test/b:1"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn an_edit_during_a_pull_ends_what_it_no_longer_desires() {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/big:1".into());
    harness.create(spec(&[(&["r.test/big:1"], &[])]));
    harness.lead();
    assert_eq!(harness.reported().0, "Processing");
    harness.edit(spec(&[(&["r.test/b:1"], &[])]));
    harness.run();
    assert_eq!(harness.count("cancel n1 r.test/big:1"), 1);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
}

#[test]
fn editing_a_selector_or_adding_a_list_changes_what_is_desired_where() {
    let mut harness = Harness::new(&[]);
    harness.join("n1", &[("tier", "x")]);
    harness.join("n2", &[("tier", "y")]);
    harness.create(spec(&[(&["r.test/a:1"], &[("tier", "x")])]));
    harness.lead();
    harness.edit(spec(&[
        (&["r.test/a:1"], &[("tier", "y")]),
        (&["r.test/b:1"], &[]),
    ]));
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(
        harness.held("n1"),
        ["r.test/a:1", "r.test/b:1"],
        "nothing is removed from n1"
    );
    assert_eq!(harness.held("n2"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn an_edit_that_changes_nothing_desired_begins_no_operation() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.log.clear();
    harness.change(|spec| {
        spec.cache_spec[0].priority = Some(7);
        spec.cache_spec[0].pull_deadline = Some("1h".parse().unwrap());
        spec.refresh = Some(kubefledged_api_types::RefreshSpec {
            interval: "1h".parse().ok(),
        });
        spec.max_concurrent_nodes = "10%".parse().ok();
        spec.min_ready_nodes = "90%".parse().ok();
        spec.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    });
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.status().observed_generation, Some(2));
    assert!(harness.log.is_empty(), "{:?}", harness.log);
}

#[test]
fn the_last_edit_wins_and_what_it_still_desires_goes_on() {
    let mut harness = Harness::new(&["n1"]);
    harness
        .slow
        .extend(["r.test/a:1".into(), "r.test/b:1".into()]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.edit(images(&["r.test/b:1", "r.test/c:1"]));
    harness.edit(images(&["r.test/b:1"]));
    assert_eq!(harness.count("cancel n1 r.test/a:1"), 1);
    assert_eq!(harness.count("cancel n1 r.test/b:1"), 0);
    harness.slow.clear();
    harness.end_slow("r.test/b:1");
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    harness.wait(2);
    assert_eq!(harness.status().applied_images.len(), 1);
}

#[test]
fn two_caches_desire_one_image_and_it_is_pulled_once() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1"]));
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.count("pull"), 2);
    assert_eq!(harness.objects[&named("b")].status.status, "Succeeded");
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn deleting_a_cache_keeps_images_and_pulls_that_another_cache_desires() {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.run();
    harness.delete();
    assert_eq!(harness.count("cancel"), 0);
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.objects[&named("b")].status.status, "Succeeded");
    assert_eq!(
        (harness.held("n1"), harness.count("remove")),
        (vec!["r.test/a:1"], 0)
    );
}

#[test]
fn a_wrong_secret_of_one_cache_does_not_keep_the_right_one_of_another_waiting() {
    let mut harness = Harness::new(&["n1"]);
    harness.broken.insert("r.test/a:1".into(), "Unauthorized");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.broken.clear();
    let mut right = images(&["r.test/a:1"]);
    right.image_pull_secrets = vec![PullSecretReference {
        name: "right".into(),
    }];
    harness.create_as("b", right);
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.wait(2);
    assert_eq!(
        harness.reported(),
        ("Succeeded", "ImageCacheCreate"),
        "it healed"
    );
}

#[test]
fn an_edit_during_a_purge_waits_for_its_end_and_is_then_taken_up() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.writes_fail = true;
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(
        harness.held("n1"),
        ["r.test/a:1"],
        "nothing before the purge is written"
    );
    harness.writes_fail = false;
    harness.wait(3);
    harness.wait(3);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    let purges = harness
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
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.handle(Event::Leadership(None));
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn an_invalid_spec_is_reported_keeps_images_and_can_be_corrected() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.asked();
    harness.break_spec("spec: nonsense");
    harness.run();
    assert_eq!(harness.reported(), ("Failed", "CacheSpecValidationFailed"));
    assert_eq!(harness.status().message, "spec: nonsense");
    assert_eq!(harness.status().applied_images.len(), 1);
    assert!(harness.asked().is_empty());
    harness.apply(|object| object.generation = 3);
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
}

/// However many names other caches want: a message has room for 8 MiB.
#[test]
fn a_removal_lists_only_desired_names_that_may_be_present() {
    let mut harness = Harness::new(&["n1"]);
    harness.broken.insert("r.test/b:1".into(), "ImagePullError");
    harness.create(images(&["r.test/a:1", "r.test/c:1"]));
    harness.create_as("other", images(&["r.test/b:1", "r.test/d:1"]));
    harness.lead();
    harness.edit(images(&["r.test/c:1"]));
    let removals = harness
        .batches
        .iter()
        .filter_map(|batch| match &batch.work {
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
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.stuck.insert("r.test/a:1".into());
    harness.edit(images(&["r.test/b:1"]));
    harness.is("Degraded", "True", "RemovalFailed");
    assert_eq!(harness.reported(), ("Failed", "ImageCacheUpdate"));
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.run();
    harness.wait(2);
    harness.is("Degraded", "False", "None");
    assert_eq!(
        harness.reported(),
        ("Succeeded", "ImageCacheUpdate"),
        "it healed"
    );
    assert!(harness.status().failures.is_empty());
}

#[test]
fn the_removal_of_a_name_dropped_without_a_leader_is_also_pending_on_silent_nodes() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.handle(Event::Leadership(None));
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    harness.unreachable.insert("n1".into());
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    harness.wait(600);
    let applied = &harness.status().applied_images;
    assert_eq!(applied.len(), 2, "{applied:?}");
    assert!(
        applied[0]
            .since
            .is_some_and(|since| since.0 > 1_700_000_000 - 10)
    );
    harness.unreachable.clear();
    harness.wait(60);
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    harness.wait(2);
    assert_eq!(harness.status().applied_images.len(), 1);
}

#[test]
fn a_recreated_cache_is_not_ready_because_of_old_observations() {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let batch = harness.batches.last().unwrap().id;
    harness.objects.clear();
    harness.handle(Event::CacheDeleted(key()));
    let pulled = ImageOutcome::new(0, ImageResult::Pulled);
    let mut out = Vec::new();
    let now = harness.now;
    harness.engine().poll(now, &mut out);
    harness.handle(Event::Outcomes(batch, vec![pulled]));
    harness.handle(Event::BatchEnded(batch, BatchEnd::Done));
    harness.run();
    harness.statuses.clear();
    harness.create(images(&["r.test/a:1"]));
    harness.run();
    let ready = harness
        .statuses
        .iter()
        .flat_map(|(_, status)| &status.conditions);
    assert!(
        ready
            .filter(|c| c.type_ == "Ready")
            .all(|c| c.status != "True")
    );
    harness.end_slow("r.test/a:1");
    harness.is("Ready", "True", "AllImagesPresent");
}

#[test]
fn failures_with_secrets_that_no_cache_names_any_more_are_forgotten() {
    let mut harness = Harness::new(&["n1"]);
    harness.broken.insert("r.test/a:1".into(), "Unauthorized");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let remembered = |harness: &mut Harness| {
        harness
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
    assert_eq!(remembered(&mut harness), 1);
    harness.change(|spec| {
        spec.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    });
    assert_eq!(remembered(&mut harness), 2);
    harness.wait(400);
    assert_eq!(remembered(&mut harness), 1);
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    assert_eq!(remembered(&mut harness), 0);
}

/// Resource versions of an etcd that was restored from a backup are older than those known before.
#[test]
fn what_a_new_list_brings_counts_also_where_it_is_older_but_not_an_older_event_of_the_watch() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.version += 1000;
    harness.edit(images(&["r.test/a:1", "r.test/b:1"]));
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);

    harness.version -= 900;
    harness.edit(images(&["r.test/c:1"]));
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"], "late");

    harness.handle(Event::Listing(Source::Caches));
    harness.edit(images(&["r.test/c:1"]));
    harness.handle(Event::Synced(Source::Caches));
    harness.wait(5);
    assert_eq!(harness.held("n1"), ["r.test/c:1"]);
    harness.edit(images(&["r.test/d:1"]));
    assert_eq!(harness.held("n1"), ["r.test/d:1"], "and edits after it");
}

#[test]
fn with_only_pulled_pulls_are_remembered_and_what_we_did_not_pull_stays_without_another_question() {
    let mut harness = Harness::new(&["n1"]);
    harness.foreign.insert("r.test/a:1".into());
    let mut spec = images(&["r.test/a:1", "r.test/b:1"]);
    spec.removal_policy = Some(RemovalPolicy::OnlyPulled);
    harness.create(spec);
    harness.lead();
    assert!(harness.batches.iter().all(|batch| match &batch.work {
        Work::Pull { images, .. } => images.iter().all(|item| item.mark),
        _ => true,
    }));
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/c:1".into()]);
    harness.wait(5);
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/c:1"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(
        harness.status().applied_images.len(),
        1,
        "no name is pending"
    );
    let asked = harness.count("remove");
    harness.wait(3600);
    assert_eq!(harness.count("remove"), asked);
}
