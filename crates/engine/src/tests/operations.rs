//! Operations from their begin to their end, annotations, and what a new leader does.

use super::*;

#[test]
fn a_new_cache_is_pulled_to_every_node_and_says_so() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    harness.lead();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.status().ready, "2/2");
    assert_eq!(
        harness.condition("Ready"),
        ("True".into(), "AllImagesPresent".into())
    );
    assert_eq!(
        harness.condition("Progressing"),
        ("False".into(), "Idle".into())
    );
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(
        (
            harness.count("pull"),
            harness.count("check"),
            harness.count("remove")
        ),
        (2, 2, 0)
    );
    assert_eq!(harness.count("event ImageCacheCreate"), 2);
}

#[test]
fn begin_and_end_of_an_operation_emit_one_event_each() {
    let mut harness = Harness::new(&["n1"]);
    harness.watch_is_faster = true;
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    assert_eq!(harness.count("event ImageCacheCreate"), 2);
}

#[test]
fn the_status_lists_every_name_before_its_first_pull() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    let first = &harness.statuses[0].1;
    assert_eq!(first.status, "Processing");
    assert_eq!(first.applied_images.len(), 1);
    assert_eq!(first.applied_images[0].name, "r.test/a:1");
}

#[test]
fn a_selector_that_matches_no_node_is_no_failure() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[("tier", "backend")])]));
    harness.lead();
    assert_eq!(
        harness.reported(),
        ("NoImagesPulledOrDeleted", "ImageCacheCreate")
    );
    assert_eq!(harness.count("pull"), 0);
}

#[test]
fn one_failed_image_fails_the_operation_and_its_healing_mends_the_status() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness
        .broken
        .insert("r.test/b:1".into(), "RegistryUnavailable");
    harness.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    harness.lead();
    assert_eq!(harness.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(harness.status().failures["r.test/b:1"].len(), 2);
    assert_eq!(
        harness.status().failures["r.test/b:1"][0].reason,
        "RegistryUnavailable"
    );
    assert_eq!(
        harness.condition("Degraded"),
        ("True".into(), "PullFailed".into())
    );
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.broken.clear();
    harness.wait(20);
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert!(harness.status().failures.is_empty());
}

#[test]
fn what_the_registry_does_not_have_is_asked_for_again_at_once_by_a_refresh() {
    let mut harness = Harness::new(&["n1"]);
    harness.broken.insert("r.test/b:1".into(), "ImageNotFound");
    harness.create(spec(&[(&["r.test/b:1"], &[])]));
    harness.lead();
    harness.wait(80);
    assert_eq!(harness.count("pull"), 1);
    harness.apply(|object| object.refresh = Some(String::new()));
    harness.run();
    assert_eq!(harness.count("pull"), 2);
}

#[test]
fn a_name_that_does_not_parse_fails_alone() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1", "UPPER/case:x"], &[])]));
    harness.lead();
    assert_eq!(harness.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        harness.status().failures["UPPER/case:x"][0].reason,
        "InvalidImageName"
    );
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn an_empty_refresh_annotation_is_removed_when_done_and_before_the_end_is_written() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    harness.held.clear();
    harness.apply(|object| object.refresh = Some(String::new()));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(harness.count("clear kubefledged.io/refresh-imagecache"), 1);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.wait(10);
    assert_eq!(harness.count("pull"), 2);
}

#[test]
fn a_refresh_token_is_handled_once_and_left_in_place() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    harness.apply(|object| object.refresh = Some("t1".into()));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(harness.status().last_handled_refresh.as_deref(), Some("t1"));
    let pulls = harness.count("pull");
    harness.apply(|_| {});
    harness.run();
    assert_eq!(harness.count("pull"), pulls);
    assert_eq!(harness.count("clear"), 0);
}

#[test]
fn a_purge_empties_the_nodes_and_the_cache_stays_purged_until_a_refresh() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));
    assert_eq!(
        harness.status().message,
        "All cached images succesfully deleted from respective nodes"
    );
    assert!(harness.held("n1").is_empty() && harness.held("n2").is_empty());
    harness.wait(2000);
    assert!(
        harness.held("n1").is_empty(),
        "intervals do not bring it back"
    );
    harness.has_no("Ready");
    harness.is("Progressing", "False", "Purged");
    harness.apply(|object| object.refresh = Some(String::new()));
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
}

#[test]
fn a_new_leader_checks_nodes_and_starts_no_operation() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1", "r.test/b"], &[])]));
    harness.lead();
    let written = harness.statuses.len();
    harness.log.clear();
    harness.handle(Event::Leadership(None));
    harness.run();
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    assert_eq!(harness.log, ["check n1 r.test/a:1 r.test/b"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(
        harness.statuses.len(),
        written,
        "nothing changed, nothing is written"
    );
}

#[test]
fn a_purged_cache_lists_no_applied_names_under_a_new_leader() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    harness.wait(2);
    assert!(harness.status().applied_images.is_empty());
    let written = harness.statuses.len();
    harness.change_leader();
    harness.wait(1000);
    assert!(harness.status().applied_images.is_empty());
    assert_eq!(harness.statuses.len(), written);
}

#[test]
fn a_refresh_that_failed_on_one_node_is_no_failure_once_another_has_asked() {
    let mut harness = Harness::new(&["n1", "n2"]);
    let mut always = images(&["r.test/a:1"]);
    always.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    harness.create(always);
    harness.lead();
    harness.broken.insert("r.test/a:1".into(), "ErrImagePull");
    harness.apply(|object| object.refresh = Some("1".into()));
    harness.run();
    assert_eq!(harness.reported(), ("Failed", "ImageCacheRefresh"));
    harness.is("Degraded", "True", "RefreshFailed");
    harness.is("Ready", "True", "AllImagesPresent");
    harness.broken.clear();
    harness.asked();
    harness.unreachable.insert("n1".into());
    harness.apply(|object| object.refresh = Some("2".into()));
    harness.run();
    harness.unreachable.clear();
    harness.wait(5);
    assert_eq!(
        (harness.count("pull n1"), harness.count("pull n2")),
        (0, 1),
        "n2 asks for both"
    );
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert!(harness.status().failures.is_empty());
    harness.is("Degraded", "False", "None");
}

#[test]
fn a_missing_secret_causes_one_event_and_pulls_go_on_without_it() {
    let mut harness = Harness::new(&["n1"]);
    let mut wanted = spec(&[(&["r.test/a:1"], &[])]);
    wanted.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    harness.create(wanted);
    harness.lead();
    let read = |harness: &mut Harness, missing: &[&str]| {
        harness.secrets_read(vec![key()], missing);
    };
    read(&mut harness, &["s"]);
    read(&mut harness, &["s"]);
    assert_eq!(harness.count("event ImagePullSecretNotFound"), 1);
    assert_eq!(harness.reported().0, "Succeeded");
    harness.broken.insert("r.test/a:2".into(), "Unauthorized");
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/a:2".into()]);
    read(&mut harness, &["s"]);
    harness.wait(2);
    let message = |harness: &Harness| harness.status().failures["r.test/a:2"][0].message.clone();
    assert!(
        message(&harness).contains("s: not found"),
        "{}",
        message(&harness)
    );
    read(&mut harness, &[]);
    harness.wait(2);
    assert!(!message(&harness).contains("not found"), "it is there now");
}

#[test]
fn the_same_events_give_the_same_commands() {
    let story = || {
        let mut harness = Harness::new(&["n1", "n2", "n3"]);
        harness.broken.insert("r.test/b:1".into(), "ErrImagePull");
        harness.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
        harness.lead();
        harness.wait(500);
        harness.edit(spec(&[(&["r.test/c:1"], &[])]));
        harness.wait(500);
        harness.log
    };
    assert_eq!(story(), story());
}

#[test]
fn a_late_answer_about_an_annotation_of_an_earlier_operation_is_ignored() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.apply(|object| object.refresh = Some(String::new()));
    harness.run();
    harness.slow.insert("r.test/b:1".into());
    harness.change(|spec| spec.cache_spec[0].images.push("r.test/b:1".into()));
    let late = Err(WriteError::Failed("timeout".into()));
    harness.handle(Event::AnnotationCleared(key(), late));
    harness.end_slow("r.test/b:1");
    harness.wait(60);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn a_batch_names_the_operations_that_wait_for_it() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(spec(&[(&["r.test/a:1"], &[])]));
    harness.lead();
    let waited = |harness: &Harness, kind: fn(&Work) -> bool| -> Vec<Vec<CacheKey>> {
        let batches = harness.batches.iter().filter(|batch| kind(&batch.work));
        batches.map(|batch| batch.operations.clone()).collect()
    };
    let pull = |work: &Work| matches!(work, Work::Pull { .. });
    let check = |work: &Work| matches!(work, Work::Check { .. });
    let remove = |work: &Work| matches!(work, Work::Remove { .. });
    assert_eq!(waited(&harness, pull), [vec![key()]]);

    // Nothing runs: a check is nobody's.
    harness.batches.clear();
    harness.wait(600);
    assert!(waited(&harness, check).iter().all(Vec::is_empty));
    assert!(!waited(&harness, check).is_empty());

    harness.batches.clear();
    harness.apply(|object| object.refresh = Some("1".to_owned()));
    harness.run();
    assert_eq!(waited(&harness, check), [vec![key()]]);

    harness.batches.clear();
    harness.apply(|object| object.purge = Some("1".to_owned()));
    harness.run();
    assert_eq!(waited(&harness, remove), [vec![key()]]);
}
