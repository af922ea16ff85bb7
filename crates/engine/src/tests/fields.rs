//! What each field of the spec does.

use kubefledged_api_types::GoDuration;

use super::*;

fn always(names: &[&str]) -> ImageCacheSpec {
    let mut spec = images(names);
    spec.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    spec
}

fn minutes(minutes: u64) -> GoDuration {
    GoDuration(Duration::from_secs(minutes * 60))
}

/// Policies of the images that were pulled, in order.
fn policies(harness: &Harness) -> Vec<(String, ImagePullPolicy)> {
    let works = harness.batches.iter().map(|batch| &batch.work);
    let pulls = works.filter_map(|work| match work {
        Work::Pull { images, .. } => Some(images),
        _ => None,
    });
    pulls
        .flatten()
        .map(|item| (item.reference.to_string(), item.policy))
        .collect()
}

#[test]
fn the_policy_of_a_list_wins_over_latest_and_over_the_flag() {
    let settings = Settings {
        image_pull_policy: ImagePullPolicy::Always,
        ..Settings::default()
    };
    let mut harness = Harness::with(settings, &["n1"]);
    let mut wanted = spec(&[
        (&["r.test/a"], &[]),
        (&["r.test/b:1"], &[]),
        (&["r.test/c:1"], &[]),
    ]);
    wanted.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::IfNotPresent);
    wanted.cache_spec[1].image_pull_policy = Some(ImagePullPolicy::IfNotPresent);
    harness.create(wanted);
    harness.lead();
    harness.batches.clear();
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    let asked = ("r.test/c:1".to_owned(), ImagePullPolicy::Always);
    assert_eq!(policies(&harness), [asked], "the flag's alone");
}

#[test]
fn without_a_policy_no_tag_and_latest_are_always_pulled_and_other_tags_are_not() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a", "r.test/b:latest", "r.test/c:1"]));
    harness.lead();
    harness.batches.clear();
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    let names: Vec<String> = policies(&harness)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["r.test/a", "r.test/b:latest"]);
}

#[test]
fn of_several_caches_the_longest_deadline_of_an_image_applies() {
    let deadline = |lists: &[Option<u64>], binds: bool| {
        let settings = Settings {
            pull_deadline_binds: binds,
            ..Settings::default()
        };
        let mut harness = Harness::with(settings, &["n1"]);
        for (at, list) in lists.iter().enumerate() {
            let mut wanted = images(&["r.test/a:1"]);
            wanted.cache_spec[0].pull_deadline = list.map(minutes);
            harness.create_as(&format!("c{at}"), wanted);
        }
        harness.lead();
        let mut pulls = harness
            .batches
            .iter()
            .filter_map(|batch| match &batch.work {
                Work::Pull { images, .. } => Some(images[0].clone()),
                _ => None,
            });
        let item = pulls.next_back().unwrap();
        assert_eq!(item.fallback_deadline, Duration::from_secs(300));
        item.deadline.map(|deadline| deadline.as_secs() / 60)
    };
    assert_eq!(deadline(&[Some(7), Some(9)], false), Some(9));
    assert_eq!(deadline(&[Some(7), None], false), None);
    assert_eq!(deadline(&[Some(7), None], true), Some(7));
    assert_eq!(deadline(&[Some(3), None], true), Some(5), "the flag's");
}

#[test]
fn the_more_urgent_list_is_pulled_first() {
    let mut harness = Harness::new(&["n1"]);
    let mut wanted = spec(&[(&["a.test/a:1"], &[]), (&["b.test/b:1"], &[])]);
    wanted.cache_spec[1].priority = Some(10);
    harness.create(wanted);
    harness.lead();
    let pulls: Vec<String> = harness.asked();
    let pulls: Vec<&String> = pulls.iter().filter(|l| l.starts_with("pull")).collect();
    assert_eq!(pulls, ["pull n1 b.test/b:1", "pull n1 a.test/a:1"]);
}

#[test]
fn a_cache_pulls_on_no_more_nodes_at_a_time_than_it_allows() {
    for (most, at_a_time) in [("1", 1), ("2", 2), ("10%", 1), ("60%", 3), ("9", 5)] {
        let mut harness = Harness::new(&["n1", "n2", "n3", "n4", "n5"]);
        harness.slow.insert("r.test/big:1".into());
        let mut wanted = images(&["r.test/big:1"]);
        wanted.max_concurrent_nodes = most.parse().ok();
        harness.create(wanted);
        harness.lead();
        assert_eq!(harness.count("pull"), at_a_time, "{most}");
        harness.end_slow("r.test/big:1");
        harness.wait(2);
        assert_eq!(
            harness.reported(),
            ("Succeeded", "ImageCacheCreate"),
            "{most}"
        );
        assert_eq!(harness.count("pull"), 5, "{most}");
    }
}

#[test]
fn enough_nodes_make_it_ready_and_the_rest_shows_in_degraded() {
    let mut harness = Harness::new(&["n1", "n2", "n3", "n4"]);
    harness.unreachable.insert("n4".into());
    let mut wanted = images(&["r.test/a:1"]);
    wanted.min_ready_nodes = "75%".parse().ok();
    harness.create(wanted);
    harness.lead();
    harness.wait(130);
    harness.is("Ready", "True", "EnoughNodesReady");
    harness.is("Degraded", "True", "PullerUnavailable");
    assert_eq!(harness.status().ready, "3/4");
    harness.change(|spec| spec.min_ready_nodes = "4".parse().ok());
    harness.wait(2);
    harness.is("Ready", "False", "ImagesMissing");
    harness.change(|spec| spec.min_ready_nodes = "0".parse().ok());
    harness.wait(2);
    harness.is("Ready", "True", "EnoughNodesReady");
}

#[test]
fn a_service_account_and_the_secrets_say_whose_credentials_a_pull_uses() {
    let mut harness = Harness::new(&["n1"]);
    let mut wanted = images(&["r.test/a:1"]);
    wanted.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    wanted.service_account_name = Some("robot".into());
    harness.create(wanted);
    harness.lead();
    let scope = harness.batches.iter().find_map(|batch| match &batch.work {
        Work::Pull { credentials, .. } => Some(credentials.clone()),
        _ => None,
    });
    let expected = CredentialScope {
        namespace: "ns".into(),
        secrets: ["s".to_owned()].into(),
        service_account: Some("robot".into()),
        of_pods: false,
    };
    assert_eq!(scope, Some(expected));
}

#[test]
fn secrets_that_cannot_be_read_are_no_images_fault_until_the_grace_time_is_over() {
    let mut harness = Harness::new(&["n1"]);
    harness.no_secrets = true;
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(2);
    harness.is("Degraded", "True", "CredentialsUnavailable");
    assert!(harness.status().failures.is_empty());
    assert_eq!(harness.reported().0, "Processing");
    harness.wait(200);
    assert_eq!(harness.reported(), ("Failed", "ImageCacheCreate"));
    let failure = &harness.status().failures["r.test/a:1"][0];
    assert_eq!(failure.reason, "CredentialsUnavailable");
    harness.no_secrets = false;
    harness.wait(100);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    harness.is("Degraded", "False", "None");
}

#[test]
fn a_pinned_cache_has_its_finalizer_before_anything_is_pulled_and_pins_what_it_wants() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    let asked = harness.asked();
    assert_eq!(asked[0], "finalizer a true", "{asked:?}");
    assert_eq!(harness.pins["n1"].len(), 1);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    harness.is("Degraded", "False", "None");
    // Two caches want it, and one of them pinned.
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.run();
    assert_eq!(harness.pins["n1"].len(), 1);
    harness.change(|spec| spec.retention = None);
    harness.wait(2);
    assert!(harness.pins["n1"].is_empty());
    assert!(!harness.objects[&key()].finalizer);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_purge_removes_a_pin_before_any_check_reported_it() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.pins["n1"].len(), 1);
    harness.asked();
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    assert!(harness.pins["n1"].is_empty());
    assert_eq!(harness.count("check"), 0, "nothing had to be looked at");
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn where_images_cannot_be_pinned_the_cache_says_so_and_is_ready() {
    let mut harness = Harness::new(&["n1"]);
    harness.unpinnable = true;
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    harness.is("Degraded", "True", "RetentionUnsupported");
    harness.is("Ready", "True", "AllImagesPresent");
}

#[test]
fn an_artifact_that_a_node_cannot_mount_is_told_until_it_is_an_image() {
    let mut harness = Harness::new(&["n1"]);
    harness.artifacts.insert("r.test/a:1".into());
    harness.create(always(&["r.test/a:1"]));
    harness.lead();
    harness.is("Ready", "True", "AllImagesPresent");
    harness.is("Degraded", "True", "ArtifactNotMountable");
    harness.lead();
    harness.is("Degraded", "True", "ArtifactNotMountable");
    harness.artifacts.clear();
    harness.wait(400);
    harness.is("Degraded", "False", "None");
}

#[test]
fn nothing_new_is_pinned_above_the_watermark() {
    let mut harness = Harness::new(&["n1"]);
    harness.disk_full = true;
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    assert!(harness.pins.get("n1").is_none_or(BTreeSet::is_empty));
    harness.is("Degraded", "True", "DiskPressure");
    harness.disk_full = false;
    harness.wait(400);
    assert_eq!(harness.pins["n1"].len(), 1);
}

#[test]
fn a_tag_that_moved_is_on_all_nodes_after_a_refresh_and_one_node_asks_first() {
    let mut harness = Harness::new(&["n1", "n2", "n3"]);
    harness.create(always(&["r.test/a:1"]));
    harness.lead();
    harness.asked();
    harness.apply(|object| object.refresh = Some("1".into()));
    harness.run();
    assert_eq!(harness.count("pull"), 1, "the same as before: one question");
    harness.moved.insert("r.test/a:1".into(), 2);
    harness.asked();
    harness.apply(|object| object.refresh = Some("2".into()));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(harness.count("pull"), 3);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(harness.held[node]["r.test/a:1"], 2);
    }
}

#[test]
fn an_unknown_pin_is_kept_while_an_image_that_must_be_pinned_is_pulled() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    // Its puller has pinned it, and still checks whether that took effect.
    harness.slow.insert("r.test/b:1".into());
    harness.change(|spec| spec.cache_spec[0].images.push("r.test/b:1".into()));
    let pins = harness.pins.entry("n1".into()).or_default();
    pins.insert(id("r.test/b:1", 1));
    harness.create_as("other", images(&["r.test/c:1"]));
    harness.run();
    harness.wait(2);
    assert_eq!(harness.count("unpin"), 0, "{:#?}", harness.log);
    harness.end_slow("r.test/b:1");
    assert_eq!(harness.count("unpin"), 0, "{:#?}", harness.log);
    assert_eq!(harness.pins["n1"].len(), 2);
}
