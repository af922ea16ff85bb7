//! Operations from their begin to their end, annotations, and what a new leader does.

use super::*;

#[test]
fn a_new_cache_is_pulled_to_every_node_and_says_so() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "2/2");
    assert_eq!(
        world.condition("Ready"),
        ("True".into(), "AllImagesPresent".into())
    );
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "Idle".into())
    );
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(
        (
            world.count("pull"),
            world.count("check"),
            world.count("remove")
        ),
        (2, 2, 0)
    );
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn begin_and_end_of_an_operation_emit_one_event_each() {
    let mut world = World::new(&["n1"]);
    world.watch_is_faster = true;
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn the_status_lists_every_name_before_its_first_pull() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    let first = &world.statuses[0].1;
    assert_eq!(first.status, "Processing");
    assert_eq!(first.applied_images.len(), 1);
    assert_eq!(first.applied_images[0].name, "r.test/a:1");
}

#[test]
fn a_selector_that_matches_no_node_is_no_failure() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[("tier", "backend")])]));
    world.lead();
    assert_eq!(
        world.reported(),
        ("NoImagesPulledOrDeleted", "ImageCacheCreate")
    );
    assert_eq!(
        world.condition("Ready"),
        ("True".into(), "NoEligibleNodes".into())
    );
    assert_eq!(world.count("pull"), 0);
}

#[test]
fn one_failed_image_fails_the_operation_and_its_healing_mends_the_status() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .broken
        .insert("r.test/b:1".into(), "RegistryUnavailable");
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    assert_eq!(world.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(world.status().failures["r.test/b:1"].len(), 2);
    assert_eq!(
        world.status().failures["r.test/b:1"][0].reason,
        "RegistryUnavailable"
    );
    assert_eq!(
        world.condition("Degraded"),
        ("True".into(), "PullFailed".into())
    );
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.broken.clear();
    world.wait(20);
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert!(world.status().failures.is_empty());
}

#[test]
fn what_the_registry_does_not_have_is_asked_for_again_only_by_a_refresh() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("r.test/b:1".into(), "ImageNotFound");
    world.create(spec(&[(&["r.test/b:1"], &[])]));
    world.lead();
    world.wait(200);
    assert_eq!(world.count("pull"), 1);
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.count("pull"), 2);
}

#[test]
fn a_name_that_does_not_parse_fails_alone() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1", "UPPER/case:x"], &[])]));
    world.lead();
    assert_eq!(world.reported(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        world.status().failures["UPPER/case:x"][0].reason,
        "InvalidImageName"
    );
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn an_empty_refresh_annotation_is_removed_when_done_and_before_the_end_is_written() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.held.clear();
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(world.count("clear kubefledged.io/refresh-imagecache"), 1);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(10);
    assert_eq!(world.count("pull"), 2);
}

#[test]
fn a_refresh_token_is_handled_once_and_left_in_place() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.apply(|object| object.refresh = Some("t1".into()));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(world.status().last_handled_refresh.as_deref(), Some("t1"));
    let pulls = world.count("pull");
    world.apply(|_| {});
    world.run();
    assert_eq!(world.count("pull"), pulls);
    assert_eq!(world.count("clear"), 0);
}

#[test]
fn a_purge_empties_the_nodes_and_the_cache_stays_purged_until_a_refresh() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCachePurge"));
    assert_eq!(
        world.status().message,
        "All cached images succesfully deleted from respective nodes"
    );
    assert!(world.held("n1").is_empty() && world.held("n2").is_empty());
    world.wait(2000);
    assert!(
        world.held("n1").is_empty(),
        "intervals do not bring it back"
    );
    assert_eq!(world.condition("Ready"), ("False".into(), "Purged".into()));
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
}

#[test]
fn a_new_leader_checks_nodes_and_starts_no_operation() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b"], &[])]));
    world.lead();
    let written = world.statuses.len();
    world.log.clear();
    world.handle(Event::Leadership(None));
    world.run();
    world.handle(Event::Leadership(Some(2)));
    world.run();
    assert_eq!(world.log, ["check n1 r.test/a:1 r.test/b"]);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(
        world.statuses.len(),
        written,
        "nothing changed, nothing is written"
    );
}

#[test]
fn a_purged_cache_lists_no_applied_names_under_a_new_leader() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    world.wait(2);
    assert!(world.status().applied_images.is_empty());
    let written = world.statuses.len();
    world.change_leader();
    world.wait(1000);
    assert!(world.status().applied_images.is_empty());
    assert_eq!(world.statuses.len(), written);
}

#[test]
fn a_refresh_that_failed_on_one_node_is_no_failure_once_another_has_asked() {
    let mut world = World::new(&["n1", "n2"]);
    let mut always = images(&["r.test/a:1"]);
    always.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    world.create(always);
    world.lead();
    world.broken.insert("r.test/a:1".into(), "ErrImagePull");
    world.apply(|object| object.refresh = Some("1".into()));
    world.run();
    assert_eq!(world.reported(), ("Failed", "ImageCacheRefresh"));
    world.is("Degraded", "True", "RefreshFailed");
    world.is("Ready", "True", "AllImagesPresent");
    world.broken.clear();
    world.asked();
    world.unreachable.insert("n1".into());
    world.apply(|object| object.refresh = Some("2".into()));
    world.run();
    world.unreachable.clear();
    world.wait(5);
    assert_eq!(
        (world.count("pull n1"), world.count("pull n2")),
        (0, 1),
        "n2 asks for both"
    );
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert!(world.status().failures.is_empty());
    world.is("Degraded", "False", "None");
}

#[test]
fn a_missing_secret_causes_one_event_and_pulls_go_on_without_it() {
    let mut world = World::new(&["n1"]);
    let mut wanted = spec(&[(&["r.test/a:1"], &[])]);
    wanted.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    world.create(wanted);
    world.lead();
    let read = |world: &mut World, missing: &[&str]| {
        let missing = missing.iter().map(ToString::to_string).collect();
        let problems = SecretProblems {
            missing,
            ..SecretProblems::default()
        };
        world.handle(Event::SecretsRead(key(), problems));
        world.run();
    };
    read(&mut world, &["s"]);
    read(&mut world, &["s"]);
    assert_eq!(world.count("event ImagePullSecretNotFound"), 1);
    assert_eq!(world.reported().0, "Succeeded");
    world.broken.insert("r.test/a:2".into(), "Unauthorized");
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/a:2".into()]);
    read(&mut world, &["s"]);
    world.wait(2);
    let message = |world: &World| world.status().failures["r.test/a:2"][0].message.clone();
    assert!(
        message(&world).contains("s: not found"),
        "{}",
        message(&world)
    );
    read(&mut world, &[]);
    world.wait(2);
    assert!(!message(&world).contains("not found"), "it is there now");
}

#[test]
fn the_same_events_give_the_same_commands() {
    let story = || {
        let mut world = World::new(&["n1", "n2", "n3"]);
        world.broken.insert("r.test/b:1".into(), "ErrImagePull");
        world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
        world.lead();
        world.wait(500);
        world.edit(spec(&[(&["r.test/c:1"], &[])]));
        world.wait(500);
        world.log
    };
    assert_eq!(story(), story());
}

#[test]
fn a_late_answer_about_an_annotation_of_an_earlier_operation_is_ignored() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    world.slow.insert("r.test/b:1".into());
    world.change(|spec| spec.cache_spec[0].images.push("r.test/b:1".into()));
    let late = Err(WriteError::Failed("timeout".into()));
    world.handle(Event::AnnotationCleared(key(), late));
    world.end_slow("r.test/b:1");
    world.wait(60);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
}
