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
    let mut world = World::new(&["n1", "n2"]);
    world.create(always("10m"));
    world.lead();
    let first = world.status().last_refresh_time.unwrap();
    world.asked();
    world.wait(12 * 60);
    assert!(world.status().last_refresh_time.unwrap() > first);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.count("event"), 0);
    assert_eq!(world.count("pull"), 1, "one node asked for all");
}

#[test]
fn an_automatic_refresh_that_finds_a_moved_tag_becomes_an_operation() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(always("10m"));
    world.lead();
    world.moved.insert("r.test/a:1".into(), 2);
    world.wait(12 * 60);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
    let versions: Vec<u32> = world.held.values().map(|held| held["r.test/a:1"]).collect();
    assert_eq!(versions, [2, 2]);
}

#[test]
fn a_refresh_interval_of_0s_stops_refreshes_and_nothing_else() {
    let mut world = World::new(&["n1"]);
    world.create(always("0s"));
    world.lead();
    let first = world.status().last_refresh_time;
    world.moved.insert("r.test/a:1".into(), 2);
    world.wait(3600);
    assert_eq!(world.status().last_refresh_time, first);
    assert_eq!(world.held["n1"]["r.test/a:1"], 1);
    world.held.clear();
    world.wait(700);
    assert_eq!(world.held["n1"]["r.test/a:1"], 2, "it healed");
    world.join("n2", &[]);
    world.run();
    assert_eq!(world.held("n2"), ["r.test/a:1"]);
}

#[test]
fn caches_of_one_interval_do_not_refresh_all_at_once() {
    let mut world = World::new(&["n1"]);
    for at in 0..8 {
        world.create_as(&format!("c{at}"), always("10m"));
    }
    world.lead();
    let mut moments = BTreeSet::new();
    let key = |at: usize| named(&format!("c{at}"));
    let time = |world: &World, at| world.objects[&key(at)].status.last_refresh_time;
    let first: Vec<_> = (0..8).map(|at| time(&world, at)).collect();
    for _ in 0..12 * 60 {
        world.wait(1);
        for at in (0..8).filter(|at| time(&world, *at) != first[*at]) {
            moments.insert(time(&world, at));
        }
    }
    assert!(moments.len() > 4, "{moments:?}");
}

#[test]
fn a_refresh_that_fails_for_a_present_image_degrades_and_stays_ready() {
    let mut world = World::new(&["n1"]);
    world.create(always("10m"));
    world.lead();
    world.broken.insert("r.test/a:1".into(), "ErrImagePull");
    world.wait(12 * 60);
    world.is("Ready", "True", "AllImagesPresent");
    world.is("Degraded", "True", "RefreshFailed");
    world.broken.clear();
    world.wait(12 * 60);
    world.is("Degraded", "False", "None");
}

#[test]
fn a_refresh_requested_during_an_update_runs_after_it() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.slow.insert("r.test/b:1".into());
    world.change(|spec| spec.cache_spec[0].images.push("r.test/b:1".into()));
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.reported(), ("Processing", "ImageCacheUpdate"));
    world.end_slow("r.test/b:1");
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(world.count("clear kubefledged.io/refresh-imagecache"), 1);
}

#[test]
fn a_request_made_without_a_leader_runs_when_one_leads() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.handle(Event::Leadership(None));
    world.apply(|object| object.purge = Some("1".into()));
    world.handle(Event::Leadership(Some(2)));
    world.run();
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCachePurge"));
    assert_eq!(world.status().last_handled_purge.as_deref(), Some("1"));
    assert!(world.held("n1").is_empty());
}

#[test]
fn an_annotation_that_comes_again_is_handled_again_if_it_is_empty_and_else_not() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    for round in 1..4 {
        world.apply(|object| object.refresh = Some(String::new()));
        world.run();
        assert_eq!(world.count("clear"), round);
    }
    let begun = world.status().start_time;
    world.apply(|object| object.refresh = Some("t".into()));
    world.run();
    let token = world.status().start_time;
    assert!(token > begun);
    // GitOps takes it off and puts it on again.
    world.apply(|object| object.refresh = None);
    world.apply(|object| object.refresh = Some("t".into()));
    world.run();
    assert_eq!(world.status().start_time, token);
}

#[test]
fn a_purge_requested_with_a_refresh_runs_and_answers_both() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.apply(|object| {
        object.refresh = Some("r".into());
        object.purge = Some("p".into());
    });
    world.run();
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCachePurge"));
    let status = world.status();
    assert_eq!(status.last_handled_refresh.as_deref(), Some("r"));
    assert_eq!(status.last_handled_purge.as_deref(), Some("p"));
    assert!(world.held("n1").is_empty());
}

#[test]
fn tokens_on_an_object_without_a_status_count_as_handled() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.apply(|object| {
        object.refresh = Some("r".into());
        object.purge = Some("p".into());
    });
    world.lead();
    world.wait(2);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    let status = world.status();
    assert_eq!(status.last_handled_refresh.as_deref(), Some("r"));
    assert_eq!(status.last_handled_purge.as_deref(), Some("p"));
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_refresh_that_must_pull_waits_while_a_write_awaits_the_watch() {
    let mut world = World::new(&["n1"]);
    world.create(always("10m"));
    world.lead();
    // Somebody wrote, and the watch does not tell: the next write is a conflict.
    world.version += 1;
    let version = world.version.to_string();
    let object = world.objects.get_mut(&key()).unwrap();
    object.resource_version = version;
    let object = object.clone();
    world.join("n2", &[]);
    world.run();
    world.wait(2);
    world.moved.insert("r.test/a:1".into(), 2);
    world.wait(12 * 60);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    world.handle(Event::CacheApplied(Box::new(object)));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheRefresh"));
}
