//! Caches that are suspended.

use super::*;

#[test]
fn a_suspended_cache_starts_nothing_but_is_checked_and_keeps_its_images_desired() {
    let mut harness = Harness::new(&["n1"]);
    let mut suspended = images(&["r.test/a:1"]);
    suspended.suspend = true;
    harness.create(suspended);
    harness.create_as("b", images(&["r.test/a:1", "r.test/c:1"]));
    harness.lead();
    harness.is("Progressing", "False", "Suspended");
    assert_eq!(harness.reported().0, "", "no operation has begun");
    assert_eq!(
        harness.count("event ImageCacheCreate"),
        2,
        "of the other one"
    );
    harness.apply_to(&named("b"), |object| {
        object.spec = images(&["r.test/c:1"]);
        object.generation += 1;
    });
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/c:1"]);
    let checks = harness.count("check");
    harness.wait(700);
    assert!(harness.count("check") > checks);
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    assert_eq!(harness.status().last_handled_refresh, None);
    harness.change(|spec| spec.suspend = false);
    harness.wait(2);
    assert_eq!(harness.reported().0, "Succeeded");
    assert_eq!(harness.status().last_handled_refresh.as_deref(), Some("t"));
}

#[test]
fn suspending_lets_running_pulls_finish_and_the_operation_wait() {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.change(|spec| spec.suspend = true);
    assert_eq!(harness.count("cancel"), 0);
    harness.end_slow("r.test/a:1");
    harness.wait(2);
    assert_eq!(harness.reported().0, "Processing");
    harness.is("Ready", "True", "AllImagesPresent");
    harness.change(|spec| spec.suspend = false);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn an_edit_made_while_suspended_is_an_update_also_under_a_new_leader() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.change(|spec| {
        spec.suspend = true;
        spec.cache_spec[0].images = vec!["r.test/b:1".into(), "r.test/c:1".into()];
    });
    harness.wait(2);
    assert_eq!(harness.status().observed_generation, Some(2));
    harness.change_leader();
    harness.wait(400);
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    harness.change(|spec| spec.suspend = false);
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n1"), ["r.test/b:1", "r.test/c:1"]);
}

#[test]
fn a_purged_cache_that_is_suspended_and_edited_stays_purged_until_it_goes_on() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    harness.change(|spec| {
        spec.suspend = true;
        spec.cache_spec[0].images = vec!["r.test/b:1".into()];
    });
    harness.change_leader();
    harness.wait(400);
    harness.has_no("Ready");
    assert!(harness.held("n1").is_empty());
    harness.change(|spec| spec.suspend = false);
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
}

#[test]
fn a_new_leader_runs_a_purge_that_was_requested_while_suspended() {
    let mut harness = Harness::new(&["n1"]);
    let mut suspended = images(&["r.test/a:1"]);
    suspended.suspend = true;
    harness.create(suspended);
    harness.lead();
    harness.apply(|object| object.purge = Some("t".into()));
    harness.run();
    harness.change_leader();
    harness.change(|spec| spec.suspend = false);
    harness.wait(2);
    assert_eq!(harness.reported().1, "ImageCachePurge");
    assert_eq!(harness.status().last_handled_purge.as_deref(), Some("t"));
}
