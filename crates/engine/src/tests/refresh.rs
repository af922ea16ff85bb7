//! The automatic refresh, and what it does not do.

use kubefledged_api_types::RefreshSpec;

use super::*;

fn always(interval: &str) -> ImageCacheSpec {
    let mut spec = images(&["r.test/a:1"]);
    spec.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    spec.refresh = Some(RefreshSpec {
        interval: Some(interval.parse().unwrap()),
    });
    spec
}

#[test]
fn an_automatic_refresh_with_nothing_to_pull_is_quiet() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(always("10m"));
    harness.lead();
    let first = harness.status().last_refresh_time.unwrap();
    harness.asked();
    harness.wait(12 * 60);
    assert!(harness.status().last_refresh_time.unwrap() > first);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.count("event"), 0);
    assert_eq!(harness.count("pull"), 1, "one node asked for all");
}

#[test]
fn an_automatic_refresh_that_finds_a_moved_tag_becomes_an_operation() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(always("10m"));
    harness.lead();
    harness.moved.insert("r.test/a:1".into(), 2);
    harness.wait(12 * 60);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    let versions: Vec<u32> = harness
        .held
        .values()
        .map(|held| held["r.test/a:1"])
        .collect();
    assert_eq!(versions, [2, 2]);
}

#[test]
fn a_refresh_interval_of_0s_stops_refreshes_and_nothing_else() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(always("0s"));
    harness.lead();
    let first = harness.status().last_refresh_time;
    harness.moved.insert("r.test/a:1".into(), 2);
    harness.wait(3600);
    assert_eq!(harness.status().last_refresh_time, first);
    assert_eq!(harness.held["n1"]["r.test/a:1"], 1);
    harness.held.clear();
    harness.wait(700);
    assert_eq!(harness.held["n1"]["r.test/a:1"], 2, "it healed");
    harness.join("n2", &[]);
    harness.run();
    assert_eq!(harness.held("n2"), ["r.test/a:1"]);
}

#[test]
fn caches_of_one_interval_do_not_refresh_all_at_once() {
    let mut harness = Harness::new(&["n1"]);
    for at in 0..8 {
        harness.create_as(&format!("c{at}"), always("10m"));
    }
    harness.lead();
    let mut moments = BTreeSet::new();
    let key = |at: usize| named(&format!("c{at}"));
    let time = |harness: &Harness, at| harness.objects[&key(at)].status.last_refresh_time;
    let first: Vec<_> = (0..8).map(|at| time(&harness, at)).collect();
    for _ in 0..12 * 60 {
        harness.wait(1);
        for at in (0..8).filter(|at| time(&harness, *at) != first[*at]) {
            moments.insert(time(&harness, at));
        }
    }
    assert!(moments.len() > 4, "{moments:?}");
}

#[test]
fn a_refresh_that_fails_for_a_present_image_degrades_and_stays_ready() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(always("10m"));
    harness.lead();
    harness.broken.insert("r.test/a:1".into(), "ErrImagePull");
    harness.wait(12 * 60);
    harness.is("Ready", "True", "AllImagesPresent");
    harness.is("Degraded", "True", "RefreshFailed");
    harness.broken.clear();
    harness.wait(12 * 60);
    harness.is("Degraded", "False", "None");
}

#[test]
fn a_refresh_requested_during_an_update_runs_after_it() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.slow.insert("r.test/b:1".into());
    harness.change(|spec| spec.cache_spec[0].images.push("r.test/b:1".into()));
    harness.apply(|object| object.refresh = Some(String::new()));
    harness.run();
    assert_eq!(harness.reported(), ("Processing", "ImageCacheUpdate"));
    harness.end_slow("r.test/b:1");
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(harness.count("clear kubefledged.io/refresh-imagecache"), 1);
}

#[test]
fn a_request_made_without_a_leader_runs_when_one_leads() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.handle(Event::Leadership(None));
    harness.apply(|object| object.purge = Some("1".into()));
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));
    assert_eq!(harness.status().last_handled_purge.as_deref(), Some("1"));
    assert!(harness.held("n1").is_empty());
}

#[test]
fn an_annotation_that_comes_again_is_handled_again_if_it_is_empty_and_else_not() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    for round in 1..4 {
        harness.apply(|object| object.refresh = Some(String::new()));
        harness.run();
        assert_eq!(harness.count("clear"), round);
    }
    let begun = harness.status().start_time;
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    let token = harness.status().start_time;
    assert!(token > begun);
    // GitOps takes it off and puts it on again.
    harness.apply(|object| object.refresh = None);
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    assert_eq!(harness.status().start_time, token);
}

#[test]
fn a_purge_requested_with_a_refresh_runs_and_answers_both() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.apply(|object| {
        object.refresh = Some("r".into());
        object.purge = Some("p".into());
    });
    harness.run();
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));
    let status = harness.status();
    assert_eq!(status.last_handled_refresh.as_deref(), Some("r"));
    assert_eq!(status.last_handled_purge.as_deref(), Some("p"));
    assert!(harness.held("n1").is_empty());
}

#[test]
fn tokens_that_came_with_an_object_count_as_handled() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.apply(|object| {
        object.refresh = Some("r".into());
        object.purge = Some("p".into());
    });
    harness.lead();
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    let status = harness.status();
    assert_eq!(status.last_handled_refresh.as_deref(), Some("r"));
    assert_eq!(status.last_handled_purge.as_deref(), Some("p"));
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_purge_that_was_asked_for_before_any_controller_saw_the_object_runs() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness
        .held
        .insert("n1".into(), [("r.test/a:1".to_owned(), 1)].into());
    harness.apply(|object| {
        object.purge = Some("p".into());
        object.purge_came_later = true;
    });
    harness.lead();
    harness.wait(2);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));
    let status = harness.status();
    assert_eq!(status.last_handled_purge.as_deref(), Some("p"));
    assert!(harness.held("n1").is_empty());
}

#[test]
fn a_refresh_that_must_pull_waits_while_a_write_awaits_the_watch() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(always("10m"));
    harness.lead();
    // Somebody wrote, and the watch does not tell: the next write is a conflict.
    harness.version += 1;
    let version = harness.version.to_string();
    let object = harness.objects.get_mut(&key()).unwrap();
    object.resource_version = version;
    let object = object.clone();
    harness.join("n2", &[]);
    harness.run();
    harness.wait(2);
    harness.moved.insert("r.test/a:1".into(), 2);
    harness.wait(12 * 60);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    harness.handle(Event::CacheApplied(Box::new(object)));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheRefresh"));
}
