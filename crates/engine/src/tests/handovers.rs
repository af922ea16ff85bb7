//! What is done and told after the leader has changed, after answers came late, and after an object could not be used for
//! a while.

use kubefledged_api_types::{DeletionPolicy, RefreshSpec};

use super::*;

fn poll(harness: &mut Harness) -> Vec<Command> {
    let (mut out, now) = (Vec::new(), harness.now);
    harness.engine().poll(now, &mut out);
    out
}

fn is_write(command: &Command) -> bool {
    matches!(command, Command::WriteStatus { .. })
}

fn led(nodes: &[&str], spec: ImageCacheSpec) -> Harness {
    let mut harness = Harness::new(nodes);
    harness.create(spec);
    harness.lead();
    harness
}

fn request(harness: &mut Harness, change: impl FnOnce(&mut CacheObject)) {
    harness.apply(change);
    harness.run();
    harness.wait(5);
}

/// Policy Always, and no automatic refresh.
fn always() -> ImageCacheSpec {
    let mut spec = images(&["r.test/a:1"]);
    spec.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    spec.refresh = Some(RefreshSpec {
        interval: "0s".parse().ok(),
    });
    spec
}

fn small_namespace() -> Settings {
    Settings {
        max_namespace_images: 3,
        ..Settings::default()
    }
}

/// An object that kube-fledged left, whose image is on the node.
fn of_kube_fledged(status: &str, reason: &str, refresh: Option<&str>) -> Harness {
    let mut harness = Harness::new(&["n1"]);
    harness
        .held
        .insert("n1".into(), [("r.test/a:1".into(), 1)].into());
    harness.apply(|object| {
        object.spec = images(&["r.test/a:1"]);
        object.refresh = refresh.map(str::to_owned);
        object.status.status = status.into();
        object.status.reason = reason.into();
        object.status.start_time = Some(Timestamp(1_600_000_000));
    });
    harness.lead();
    harness
}

#[test]
fn a_purge_that_failed_is_no_success_because_the_leader_changes() {
    let mut harness = led(&["n1"], images(&["r.test/a:1"]));
    harness.stuck.insert("r.test/a:1".into());
    request(&mut harness, |object| object.purge = Some("p".into()));
    assert_eq!(harness.reported(), ("Failed", "ImageCachePurge"));
    harness.change_leader();
    harness.wait(600);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    assert_eq!(harness.reported(), ("Failed", "ImageCachePurge"));
}

#[test]
fn a_purge_whose_removals_were_given_up_is_no_success() {
    let mut harness = led(&["n1", "n2"], images(&["r.test/a:1"]));
    harness.stuck.insert("r.test/a:1".into());
    request(&mut harness, |object| object.purge = Some("p".into()));
    harness.unreachable.extend(["n1".into(), "n2".into()]);
    harness.wait(26 * 3600);
    assert_eq!(harness.reported(), ("Failed", "ImageCachePurge"));
}

#[test]
fn a_purge_that_failed_under_kube_fledged_is_done_or_stays_failed() {
    let mut harness = of_kube_fledged("Failed", "ImageCachePurge", None);
    harness.wait(600);
    let left = !harness.held("n1").is_empty();
    assert!(
        !left || harness.reported().0 == "Failed",
        "{}",
        harness.status().message
    );
}

#[test]
fn a_refresh_that_failed_is_no_success_because_the_leader_changes() {
    let mut harness = led(&["n1"], always());
    harness.moved.insert("r.test/a:1".into(), 2);
    harness
        .broken
        .insert("r.test/a:1".into(), "RegistryUnavailable");
    request(&mut harness, |object| object.refresh = Some("r".into()));
    assert_eq!(harness.reported(), ("Failed", "ImageCacheRefresh"));
    harness.change_leader();
    harness.broken.clear();
    harness.wait(3600);
    assert_eq!(
        harness.held["n1"]["r.test/a:1"],
        2,
        "{:?}",
        harness.reported()
    );
}

#[test]
fn a_node_that_missed_a_refresh_gets_it_when_it_answers_again() {
    let mut harness = led(&["n1", "n2"], always());
    harness.moved.insert("r.test/a:1".into(), 2);
    harness.unreachable.insert("n2".into());
    request(&mut harness, |object| object.refresh = Some("r".into()));
    harness.wait(300);
    assert_eq!(harness.reported(), ("Failed", "ImageCacheRefresh"));
    harness.unreachable.clear();
    harness.wait(3600);
    assert_eq!(
        harness.held["n2"]["r.test/a:1"],
        2,
        "{:?}",
        harness.reported()
    );
}

#[test]
fn a_removal_of_an_image_that_was_in_use_for_a_day_survives_a_restart_of_the_puller() {
    let mut harness = led(&["n1"], images(&["r.test/a:1", "r.test/b:1"]));
    harness.in_use.insert("r.test/a:1".into());
    harness.edit(images(&["r.test/b:1"]));
    harness.wait(25 * 3600);
    assert_eq!(harness.status().applied_images.len(), 2);
    harness.handle(Event::PullerChanged(node("n1"), None));
    harness.wait(20);
    harness.puller("n1");
    harness.wait(700);
    harness.in_use.clear();
    harness.wait(3600);
    assert_eq!(
        harness.held("n1"),
        ["r.test/b:1"],
        "{}",
        harness.message("Degraded")
    );
}

#[test]
fn a_purge_of_an_object_that_is_too_large_runs_and_blocks_no_edit() {
    for edited in [false, true] {
        let mut harness = led(&["n1"], images(&["r.test/a:1"]));
        harness.most_names = Some(2);
        harness.edit(images(&["r.test/a:1", "r.test/b:1", "r.test/c:1"]));
        harness.wait(5);
        harness.is("Degraded", "True", "StatusTooLarge");
        request(&mut harness, |object| object.purge = Some("p".into()));
        if edited {
            harness.edit(images(&["r.test/b:1"]));
        }
        harness.wait(7200);
        let kind = if edited {
            "ImageCacheUpdate"
        } else {
            "ImageCachePurge"
        };
        assert_eq!(harness.reported(), ("Succeeded", kind));
    }
}

#[test]
fn an_object_that_is_deleted_before_the_answer_about_its_new_finalizer_goes() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(ImageCacheSpec {
        deletion_policy: Some(DeletionPolicy::Purge),
        ..images(&["r.test/a:1"])
    });
    harness.handle(Event::Synced(Source::Caches));
    harness.handle(Event::Leadership(Some(1)));
    for command in poll(&mut harness) {
        if !matches!(command, Command::SetFinalizer { present: true, .. }) {
            harness.carry_out(command);
        }
    }
    harness.apply(|object| object.finalizer = true);
    let version = harness.version.to_string();
    harness.apply(|object| object.deleting = true);
    harness.handle(Event::FinalizerWritten(key(), Ok(Some(version))));
    harness.run();
    harness.wait(3600);
    assert!(harness.objects.is_empty(), "it hangs");
}

#[test]
fn a_late_answer_about_a_deleted_object_does_not_stop_the_one_that_has_its_name_now() {
    let mut harness = led(&["n1"], images(&["r.test/a:1"]));
    harness.wait(2);
    harness.apply(|object| object.refresh = Some("t".into()));
    let sent = poll(&mut harness);
    assert!(sent.iter().any(is_write));
    for command in sent.into_iter().filter(|command| !is_write(command)) {
        harness.carry_out(command);
    }
    harness.objects.remove(&key());
    harness.handle(Event::CacheDeleted(key()));
    harness.apply(|object| {
        object.uid = "second".into();
        object.spec = images(&["r.test/b:1"]);
    });
    let begun = poll(&mut harness);
    assert!(begun.iter().any(is_write));
    harness.handle(Event::StatusWritten(key(), Err(WriteError::Gone)));
    for command in begun {
        harness.carry_out(command);
    }
    // The watch brings what was written.
    harness.apply(|_| {});
    harness.run();
    harness.wait(600);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn a_refused_object_gets_its_room_also_after_the_same_process_leads_again() {
    let mut harness = Harness::with(small_namespace(), &["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.create_as("more", images(&["r.test/c:1", "r.test/d:1"]));
    harness.lead();
    harness.wait(5);
    harness.change_leader();
    harness.wait(5);
    harness.edit(images(&["r.test/a:1"]));
    harness.wait(600);
    assert_eq!(harness.objects[&named("more")].status.status, "Succeeded");
}

#[test]
fn an_edit_of_the_policy_while_suspended_is_not_forgotten_by_a_new_leader() {
    for leader in [false, true] {
        let mut harness = led(&["n1"], images(&["r.test/a:1"]));
        harness.change(|spec| {
            spec.suspend = true;
            spec.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
        });
        harness.moved.insert("r.test/a:1".into(), 2);
        harness.wait(2);
        if leader {
            harness.change_leader();
        }
        harness.wait(60);
        harness.change(|spec| spec.suspend = false);
        harness.wait(60);
        assert_eq!(
            harness.reported(),
            ("Succeeded", "ImageCacheUpdate"),
            "{leader}"
        );
        assert_eq!(harness.held["n1"]["r.test/a:1"], 2, "{leader}");
    }
}

#[test]
fn a_purged_cache_stays_purged_if_its_spec_cannot_be_used_for_a_while() {
    for leader in [false, true] {
        let mut harness = led(&["n1"], images(&["r.test/a:1"]));
        request(&mut harness, |object| object.purge = Some("p".into()));
        harness.break_spec("spec.retention: unknown variant");
        harness.run();
        harness.wait(5);
        if leader {
            harness.change_leader();
        }
        request(&mut harness, |object| object.generation = 3);
        assert!(
            harness.held("n1").is_empty(),
            "{leader} {:?}",
            harness.reported()
        );
    }
}

#[test]
fn a_purged_cache_that_loses_its_room_stays_purged() {
    let mut harness = Harness::with(small_namespace(), &["n1"]);
    harness.create_as("zz", images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.create_as("aa", images(&["r.test/c:1", "r.test/d:1"]));
    harness.run();
    harness.apply_to(&named("zz"), |object| object.purge = Some("p".into()));
    harness.run();
    harness.wait(5);
    assert_eq!(
        harness.objects[&named("zz")].status.reason,
        "ImageCachePurge"
    );
    harness.change_process(small_namespace(), &["n1"]);
    harness.wait(60);
    harness.apply_to(&named("aa"), |object| {
        object.spec = images(&["r.test/c:1"]);
        object.generation += 1;
    });
    harness.run();
    harness.wait(60);
    assert_eq!(harness.held("n1"), ["r.test/c:1"]);
}

#[test]
fn an_old_token_of_an_object_that_was_refused_first_is_no_request() {
    let mut harness = Harness::with(small_namespace(), &["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.apply_to(&named("more"), |object| {
        object.spec = images(&["r.test/c:1", "r.test/d:1"]);
        object.purge = Some("old".into());
    });
    harness.lead();
    harness.wait(5);
    harness.edit(images(&["r.test/a:1"]));
    harness.wait(600);
    assert_eq!(
        harness.objects[&named("more")].status.reason,
        "ImageCacheUpdate"
    );
    assert_eq!(
        harness.held("n1"),
        ["r.test/a:1", "r.test/c:1", "r.test/d:1"]
    );
}

#[test]
fn a_refresh_that_kube_fledged_began_is_done_once() {
    let mut harness = of_kube_fledged("Processing", "ImageCacheRefresh", Some(""));
    harness.wait(5);
    assert_eq!(harness.ended(), ["ImageCacheRefresh"]);
}

#[test]
fn an_empty_request_that_somebody_replaced_is_not_done_again() {
    let mut harness = led(&["n1"], images(&["r.test/a:1"]));
    harness.statuses.clear();
    harness.apply(|object| object.refresh = Some(String::new()));
    let mut late = None;
    while late.is_none() {
        for command in poll(&mut harness) {
            if matches!(command, Command::ClearAnnotation { .. }) {
                // Another value was written, and the watch has not told yet.
                harness.version += 1;
                let version = harness.version.to_string();
                let object = harness.objects.get_mut(&key()).unwrap();
                object.refresh = Some("t".into());
                object.resource_version = version;
                late = Some(object.clone());
            }
            harness.carry_out(command);
        }
    }
    for command in poll(&mut harness) {
        harness.carry_out(command);
    }
    harness.handle(Event::CacheApplied(Box::new(late.unwrap())));
    harness.run();
    harness.wait(10);
    let begun = harness.statuses.iter().map(|(_, status)| status.start_time);
    assert_eq!(begun.collect::<BTreeSet<_>>().len(), 2);
}
