//! Caches that are suspended.

use super::*;

#[test]
fn a_suspended_cache_starts_nothing_but_is_checked_and_keeps_its_images_desired() {
    let mut world = World::new(&["n1"]);
    let mut suspended = images(&["r.test/a:1"]);
    suspended.suspend = true;
    world.create(suspended);
    world.create_as("b", images(&["r.test/a:1", "r.test/c:1"]));
    world.lead();
    world.is("Progressing", "False", "Suspended");
    assert_eq!(world.reported().0, "", "no operation has begun");
    assert_eq!(world.count("event ImageCacheCreate"), 2, "of the other one");
    world.apply_to(&named("b"), |object| {
        object.spec = images(&["r.test/c:1"]);
        object.generation += 1;
    });
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/c:1"]);
    let checks = world.count("check");
    world.wait(700);
    assert!(world.count("check") > checks);
    world.apply(|object| object.refresh = Some("t".into()));
    world.run();
    assert_eq!(world.status().last_handled_refresh, None);
    world.change(|spec| spec.suspend = false);
    world.wait(2);
    assert_eq!(world.reported().0, "Succeeded");
    assert_eq!(world.status().last_handled_refresh.as_deref(), Some("t"));
}

#[test]
fn suspending_lets_running_pulls_finish_and_the_operation_wait() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.change(|spec| spec.suspend = true);
    assert_eq!(world.count("cancel"), 0);
    world.end_slow("r.test/a:1");
    world.wait(2);
    assert_eq!(world.reported().0, "Processing");
    world.is("Ready", "True", "AllImagesPresent");
    world.change(|spec| spec.suspend = false);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn an_edit_made_while_suspended_is_an_update_also_under_a_new_leader() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.change(|spec| {
        spec.suspend = true;
        spec.cache_spec[0].images = vec!["r.test/b:1".into(), "r.test/c:1".into()];
    });
    world.wait(2);
    assert_eq!(world.status().observed_generation, Some(2));
    world.change_leader();
    world.wait(400);
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    world.change(|spec| spec.suspend = false);
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1", "r.test/c:1"]);
}

#[test]
fn a_purged_cache_that_is_suspended_and_edited_stays_purged_until_it_goes_on() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    world.change(|spec| {
        spec.suspend = true;
        spec.cache_spec[0].images = vec!["r.test/b:1".into()];
    });
    world.change_leader();
    world.wait(400);
    world.is("Ready", "False", "Purged");
    assert!(world.held("n1").is_empty());
    world.change(|spec| spec.suspend = false);
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
}

#[test]
fn a_new_leader_runs_a_purge_that_was_requested_while_suspended() {
    let mut world = World::new(&["n1"]);
    let mut suspended = images(&["r.test/a:1"]);
    suspended.suspend = true;
    world.create(suspended);
    world.lead();
    world.apply(|object| object.purge = Some("t".into()));
    world.run();
    world.change_leader();
    world.change(|spec| spec.suspend = false);
    world.wait(2);
    assert_eq!(world.reported().1, "ImageCachePurge");
    assert_eq!(world.status().last_handled_purge.as_deref(), Some("t"));
}
