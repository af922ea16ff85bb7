//! Workloads as a source of images: who may read them, what cannot be read, limits, edits and new leaders.

use kubefledged_api_types::{WorkloadAccess, WorkloadKind};

use super::{
    workloads::{DEPLOYMENTS, all, at, following, harness, warm, workload},
    *,
};

#[test]
fn after_a_restart_nothing_goes_before_all_workloads_are_read_again() {
    let spec = following(
        &serde_json::json!({"imagesFrom": [{"workloads": {}}], "keepPrevious": 0, "retainFor": "1m"}),
    );
    let mut harness = warm(&["n1"], spec);
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(10);
    harness.change_leader();
    harness.wait(600);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:2"]);
    harness.is("Ready", "True", "AllImagesPresent");
    let watch = harness.watch_of(&DEPLOYMENTS);
    harness.handle(Event::Listing(Source::Watch(watch)));
    harness.deploy("web", &["r.test/web:2"]);
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(60);
    // It was named last before the restart, and that is remembered.
    assert_eq!(harness.held("n1"), ["r.test/web:2"]);
    assert_eq!(harness.count("event ImagesChanged: workloads name 0"), 0);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn while_workloads_are_listed_no_cache_removes_what_they_may_name() {
    let mut harness = warm(&["n1"], all());
    harness.create_as("b", images(&["r.test/b:1"]));
    harness.wait(2);
    harness.apply(|object| object.spec.suspend = true);
    harness.run();
    // Nothing of it is recorded while the cache is suspended.
    harness.deploy("late", &["r.test/b:1"]);
    harness.change_leader();
    harness.apply_to(&named("b"), |object| {
        object.generation += 1;
        object.spec.cache_spec[0].images = vec!["r.test/c:1".into()];
    });
    harness.wait(60);
    assert!(harness.held("n1").contains(&"r.test/b:1"));
    let watch = harness.watch_of(&DEPLOYMENTS);
    harness.handle(Event::Listing(Source::Watch(watch)));
    harness.deploy("web", &["r.test/web:1"]);
    harness.deploy("late", &["r.test/b:1"]);
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(60);
    assert!(harness.held("n1").contains(&"r.test/b:1"));
    harness.deploy("late", &[]);
    harness.apply(|object| object.spec.suspend = false);
    harness.wait(2 * 3600);
    assert!(!harness.held("n1").contains(&"r.test/b:1"));
}

#[test]
fn events_of_a_watch_that_has_ended_are_ignored() {
    let mut harness = warm(&["n1"], all());
    let old = harness.watch_of(&DEPLOYMENTS);
    harness.change_leader();
    assert!(harness.watch_of(&DEPLOYMENTS) > old);
    harness.handle(Event::Synced(Source::Watch(old)));
    harness.handle(Event::WorkloadApplied(
        old,
        at("ns", "late"),
        Box::new(workload(&["r.test/late:1"])),
    ));
    harness.sync();
    harness.wait(10);
    assert_eq!(harness.held("n1"), ["r.test/web:1"]);
}

#[test]
fn a_kind_that_cannot_be_read_is_a_condition_and_what_it_named_stays() {
    let spec = following(&serde_json::json!({"imagesFrom": [
        {"workloads": {}},
        {"workloads": {"kinds": ["argoproj.io/Rollout"]}},
    ], "retainFor": "1m", "keepPrevious": 0}));
    let mut harness = harness(&["n1"]);
    harness.create(spec);
    harness.lead();
    harness.sync();
    harness.deploy("web", &["r.test/web:1"]);
    let rollout = Watched::Workloads(WorkloadKind::parse("argoproj.io/Rollout", None).unwrap());
    let watch = harness.watch_of(&rollout);
    let fail = |harness: &mut Harness, failure| {
        harness.handle(Event::WatchFailed(watch, failure));
        harness.wait(2);
    };
    fail(&mut harness, WatchFailure::Absent("no kind Rollout".into()));
    harness.is("Degraded", "True", "SourceUnavailable");
    harness.is("Ready", "True", "AllImagesPresent");
    assert_eq!(harness.status().sources[1].error, "no kind Rollout");
    assert!(harness.status().sources[0].error.is_empty());
    // It comes, and cannot be read later: what it named is still believed.
    harness.handle(Event::Listing(Source::Watch(watch)));
    harness.handle(Event::WorkloadApplied(
        watch,
        at("ns", "r"),
        Box::new(workload(&["r.test/rollout:1"])),
    ));
    harness.handle(Event::Synced(Source::Watch(watch)));
    harness.wait(3);
    harness.is("Degraded", "False", "None");
    fail(&mut harness, WatchFailure::Failed("forbidden".into()));
    harness.wait(900);
    harness.is("Degraded", "True", "SourceUnavailable");
    assert_eq!(harness.held("n1"), ["r.test/rollout:1", "r.test/web:1"]);
    // Never read at all: the cache is not ready, and nothing that may be named goes.
    harness.change_leader();
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::WatchFailed(
            id,
            WatchFailure::Failed("forbidden".into()),
        ));
    }
    harness.wait(900);
    harness.is("Ready", "False", "SourceUnavailable");
    assert_eq!(harness.held("n1"), ["r.test/rollout:1", "r.test/web:1"]);
}

#[test]
fn the_last_cache_that_names_a_kind_ends_its_watch() {
    let mut harness = harness(&["n1"]);
    harness.create(all());
    harness.create_as(
        "b",
        following(
            &serde_json::json!({"imagesFrom": [{"workloads": {"kinds": ["Pod", "Deployment"]}}]}),
        ),
    );
    harness.lead();
    let targets = |harness: &Harness| -> Vec<String> {
        harness
            .watches
            .iter()
            .map(|(_, target)| target.to_string())
            .collect()
    };
    assert_eq!(
        targets(&harness),
        ["Deployment", "StatefulSet", "DaemonSet", "CronJob", "Pod"]
    );
    let kept = harness.watch_of(&DEPLOYMENTS);
    harness.delete();
    assert_eq!(targets(&harness), ["Deployment", "Pod"]);
    assert_eq!(harness.watch_of(&DEPLOYMENTS), kept);
    harness.handle(Event::CacheDeleted(named("b")));
    harness.run();
    assert!(harness.watches.is_empty());
}

#[test]
fn namespaces_are_selected_by_their_labels_and_only_by_caches_that_may() {
    let selecting = following(&serde_json::json!({"imagesFrom": [{"workloads": {
        "kinds": ["Deployment"], "namespaceSelector": {"matchLabels": {"team": "shop"}},
    }}], "retainFor": "1m", "keepPrevious": 0}));
    let mut harness = harness(&["n1"]);
    harness.create(selecting.clone());
    harness.lead();
    let watch = harness.watch_of(&Watched::Namespaces);
    let label = |harness: &mut Harness, namespace: &str, team: &str| {
        let labels = Labels::from_iter([("team", team)]);
        harness.handle(Event::NamespaceApplied(watch, namespace.into(), labels));
        harness.wait(3);
    };
    label(&mut harness, "shop", "shop");
    label(&mut harness, "other", "other");
    harness.deploy_as(at("shop", "web"), workload(&["r.test/shop:1"]));
    harness.deploy_as(at("other", "web"), workload(&["r.test/other:1"]));
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(3);
    assert_eq!(harness.held("n1"), ["r.test/shop:1"]);
    label(&mut harness, "other", "shop");
    label(&mut harness, "shop", "none");
    harness.wait(120);
    assert_eq!(harness.held("n1"), ["r.test/other:1"]);
    // The same in a namespace that may not.
    let key = CacheKey {
        namespace: "tenant".into(),
        name: "a".into(),
    };
    harness.apply_to(&key, |object| object.spec = selecting);
    harness.wait(3);
    let status = &harness.objects[&key].status;
    let degraded = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Degraded")
        .unwrap();
    assert_eq!(degraded.reason, "SourceUnavailable");
    assert!(
        degraded
            .message
            .contains("workloads.clusterScopeNamespaces"),
        "{}",
        degraded.message
    );
    assert!(status.applied_images.is_empty());
}

#[test]
fn a_purge_removes_what_stays_too_and_workloads_bring_nothing_back() {
    let mut harness = warm(&["n1"], all());
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(5);
    harness.apply(|object| object.purge = Some(String::new()));
    harness.wait(10);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));
    harness.deploy("web", &["r.test/web:3"]);
    harness.wait(600);
    assert!(harness.held("n1").is_empty(), "{:?}", harness.held("n1"));
    harness.apply(|object| object.refresh = Some("now".into()));
    harness.wait(10);
    assert_eq!(harness.held("n1"), ["r.test/web:3"]);
}

#[test]
fn while_it_is_suspended_nothing_is_pulled_and_then_the_newest_is() {
    let mut harness = warm(&["n1"], all());
    harness.change(|spec| spec.suspend = true);
    harness.deploy("web", &["r.test/web:2"]);
    harness.deploy("web", &["r.test/web:3"]);
    harness.wait(60);
    assert_eq!(harness.held("n1"), ["r.test/web:1"]);
    harness.change(|spec| spec.suspend = false);
    harness.wait(10);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:3"]);
}

#[test]
fn an_edit_of_the_source_is_an_update_and_what_it_selected_before_stays_for_a_while() {
    let mut harness = warm(&["n1"], all());
    harness.change(|spec| {
        let source = spec.cache_spec[0].images_from[0]
            .workloads
            .as_mut()
            .unwrap();
        source.selector = Some(
            serde_json::from_value(serde_json::json!({"matchLabels": {"app": "api"}})).unwrap(),
        );
    });
    harness.wait(10);
    // No workload names anything now.
    assert_eq!(
        harness.reported(),
        ("NoImagesPulledOrDeleted", "ImageCacheUpdate")
    );
    assert_eq!(harness.recorded(), ["+r.test/web:1"]);
    harness.wait(3700);
    assert!(harness.held("n1").is_empty());
}

#[test]
fn more_names_than_an_object_may_have_are_said_and_what_is_named_is_never_removed() {
    let mut harness = harness(&["n1"]);
    harness.engine().model.settings.max_namespace_images = 3;
    harness.create(all());
    harness.lead();
    harness.sync();
    for name in ["a", "b", "c"] {
        harness.deploy(name, &[&format!("r.test/{name}:1")]);
        harness.wait(2);
    }
    harness.is("Degraded", "False", "None");
    harness.deploy("d", &["r.test/d:1"]);
    harness.wait(3);
    harness.is("Degraded", "True", "TooManyImages");
    assert_eq!(
        harness.recorded(),
        ["r.test/b:1", "r.test/c:1", "r.test/d:1"]
    );
    harness.wait(9000);
    assert!(harness.held("n1").contains(&"r.test/a:1"));
    harness.deploy("d", &[]);
    harness.wait(9000);
    assert_eq!(
        harness.recorded(),
        ["r.test/a:1", "r.test/b:1", "r.test/c:1"]
    );
    assert_eq!(
        harness.held("n1"),
        ["r.test/a:1", "r.test/b:1", "r.test/c:1"]
    );
}

#[test]
fn a_large_cache_records_a_new_name_soon_although_its_progress_is_written_seldom() {
    let mut harness = warm(&["n1"], all());
    let many: Vec<String> = (0..2000)
        .map(|i| format!("r.test/a-name-that-is-not-short/app-{i}:1"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    harness.deploy("many", &many);
    for version in 2..12 {
        harness.deploy("web", &[&format!("r.test/web:{version}")]);
        harness.wait(40);
        let name = format!("r.test/web:{version}");
        assert!(harness.held("n1").contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_gating_cache_holds_a_node_until_the_workloads_are_read_and_their_images_are_there() {
    let settings = Settings {
        workloads: WorkloadAccess::enabled("ns", []),
        ..super::gate::gated()
    };
    let mut harness = Harness::with(settings, &[]);
    let mut spec = all();
    spec.node_gate = Some(kubefledged_api_types::NodeGate::Required);
    harness.create(spec);
    harness.lead();
    harness.join_with_puller("n1", 5);
    harness.wait(30);
    assert!(harness.is_tainted("n1"), "nobody knows what it needs");
    harness.slow.insert("r.test/web:1".into());
    harness.deploy("web", &["r.test/web:1"]);
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(5);
    assert!(harness.is_tainted("n1"));
    harness.end_slow("r.test/web:1");
    harness.wait(5);
    assert!(!harness.is_tainted("n1"));
}

#[test]
fn a_list_that_becomes_a_source_loses_no_image_before_the_workloads_are_read() {
    let mut harness = harness(&["n1"]);
    harness.create(images(&["r.test/web:1", "r.test/old:1"]));
    harness.lead();
    harness.wait(5);
    harness.asked();
    harness.edit(all());
    harness.wait(30);
    let watch = harness.watch_of(&DEPLOYMENTS);
    let deployed = Box::new(workload(&["r.test/web:1"]));
    harness.handle(Event::Listing(Source::Watch(watch)));
    harness.handle(Event::WorkloadApplied(watch, at("ns", "web"), deployed));
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(10);
    assert_eq!(harness.held("n1"), ["r.test/old:1", "r.test/web:1"]);
    let asked = harness.asked();
    assert!(
        !asked
            .iter()
            .any(|line| line.starts_with("pull") || line.starts_with("remove")),
        "{asked:?}"
    );
    harness.wait(3700);
    assert_eq!(harness.held("n1"), ["r.test/web:1"]);
}

#[test]
fn an_edit_that_adds_a_kind_keeps_what_the_others_name() {
    let spec = following(
        &serde_json::json!({"images": ["r.test/web:1"], "imagesFrom": [{"workloads": {"kinds": ["Deployment"]}}]}),
    );
    let mut harness = warm(&["n1"], spec);
    harness.edit(following(
        &serde_json::json!({"imagesFrom": [{"workloads": {"kinds": ["Deployment", "Pod"]}}]}),
    ));
    harness.wait(60);
    let asked = harness.asked();
    assert!(
        !asked.iter().any(|line| line.starts_with("remove")),
        "{asked:?}"
    );
    assert_eq!(harness.held("n1"), ["r.test/web:1"]);
}

#[test]
fn a_removal_that_an_earlier_leader_left_waits_until_the_workloads_are_read() {
    let spec = following(
        &serde_json::json!({"imagesFrom": [{"workloads": {}}], "keepPrevious": 0, "retainFor": "1m"}),
    );
    let mut harness = warm(&["n1"], spec);
    harness.in_use.insert("r.test/web:1".into());
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(120);
    assert_eq!(harness.recorded(), ["-r.test/web:1", "r.test/web:2"]);
    // A roll-back while nobody leads.
    harness.in_use.clear();
    harness.handle(Event::Leadership(None));
    harness.run();
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    harness.wait(600);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:2"]);
    let watch = harness.watch_of(&DEPLOYMENTS);
    let deployed = Box::new(workload(&["r.test/web:1"]));
    harness.handle(Event::WorkloadApplied(watch, at("ns", "web"), deployed));
    for (id, _) in harness.watches.clone() {
        harness.handle(Event::Synced(Source::Watch(id)));
    }
    harness.wait(300);
    assert!(harness.held("n1").contains(&"r.test/web:1"));
}
