//! Two replicas, one leader, and what the next one finds.

use super::*;

/// Tokens of the pulls that were asked for.
fn tokens(world: &World) -> Vec<Arc<str>> {
    let works = world.batches.iter().map(|batch| &batch.work);
    let pulls = works.filter_map(|work| match work {
        Work::Pull { images, .. } => Some(images),
        _ => None,
    });
    pulls.flatten().map(|item| item.freshness.clone()).collect()
}

#[test]
fn whoever_does_not_lead_does_nothing_and_waits_for_nothing() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.handle(Event::Synced(Source::Caches));
    world.run();
    assert!(world.log.is_empty());
    assert_eq!(world.engine().next_wakeup(), None);
    world.handle(Event::Leadership(Some(1)));
    world.run();
    assert_eq!(world.reported().0, "Succeeded");
}

#[test]
fn a_leader_waits_until_every_source_is_synced() {
    for source in [Source::Caches, Source::Nodes, Source::Pullers] {
        let mut world = World {
            engine: Some(Engine::new(Settings::default())),
            ..World::default()
        };
        world.join("n1", &[]);
        world.create(images(&["r.test/a:1"]));
        world.handle(Event::Leadership(Some(1)));
        for other in [Source::Caches, Source::Nodes, Source::Pullers] {
            if other != source {
                world.handle(Event::Synced(other));
            }
        }
        world.run();
        assert!(world.log.is_empty(), "{source:?}");
    }
}

#[test]
fn a_new_leader_goes_on_with_the_operation_and_attaches_to_its_pulls() {
    let mut world = World::new(&["n1", "n2"]);
    let mut wanted = images(&["r.test/a:1"]);
    wanted.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    world.slow.insert("r.test/a:1".into());
    world.create(wanted);
    world.lead();
    let (begun, before) = (world.status().start_time, tokens(&world));
    world.batches.clear();
    world.open.clear();
    world.change_leader();
    assert_eq!(world.reported(), ("Processing", "ImageCacheCreate"));
    assert_eq!(world.status().start_time, begun);
    assert_eq!(tokens(&world), before, "the same token is the same pull");
    world.end_slow("r.test/a:1");
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.count("event ImageCacheCreate"), 2, "begin and end");
}

#[test]
fn every_call_carries_the_term_and_a_number_that_rises() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "s.test/b:1"]));
    world.lead();
    world.change_leader();
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/c:1".into()]);
    let calls = world.batches.iter().map(|batch| (batch.term, batch.seq));
    let calls: Vec<(u64, u64)> = calls.collect();
    assert!(calls.is_sorted_by(|a, b| a < b), "{calls:?}");
    assert_eq!((calls[0].0, calls.last().unwrap().0), (1, 2));
}

#[test]
fn a_leader_that_a_puller_refuses_leads_in_a_later_term_and_blames_no_image() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let batch = world.batches.last().unwrap().id;
    world.handle(Event::BatchEnded(batch, BatchEnd::Refused { seen_term: 7 }));
    world.run();
    assert_eq!(world.count("raise 7"), 1);
    assert!(world.status().failures.is_empty());
    world.slow.clear();
    world.handle(Event::Leadership(Some(8)));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.batches.last().unwrap().term, 8);
}

#[test]
fn a_write_with_a_conflict_waits_for_the_watch() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    // Somebody writes, and the watch has not told yet.
    world.version += 1;
    let version = world.version.to_string();
    let object = world.objects.get_mut(&key()).unwrap();
    object.resource_version = version;
    let object = object.clone();
    world.held.clear();
    world.wait(700);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    let written = world.statuses.len();
    world.wait(60);
    assert_eq!(
        world.statuses.len(),
        written,
        "it is not tried again and again"
    );
    world.handle(Event::CacheApplied(Box::new(object)));
    world.join("n2", &[]);
    world.run();
    world.wait(2);
    assert_eq!(world.status().ready, "2/2");
}

#[test]
fn an_operation_of_another_leader_is_taken_over_when_it_is_observed() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let old = world.objects[&key()].clone();
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    assert_eq!(world.reported(), ("Succeeded", "ImageCachePurge"));

    let mut other = World::new(&["n1"]);
    other.version = world.version;
    other.objects = world.objects.clone();
    other.handle(Event::CacheApplied(Box::new(old)));
    other.lead();
    let newest = other.objects[&key()].clone();
    other.handle(Event::CacheApplied(Box::new(newest)));
    other.run();
    other.wait(30);
    assert_eq!(other.reported(), ("Succeeded", "ImageCachePurge"));
    assert!(other.held("n1").is_empty());
}

#[test]
fn a_new_leader_keeps_what_is_written_until_its_first_round_is_complete() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let before = world.status().clone();
    world.unreachable.insert("n2".into());
    world.change_leader();
    world.wait(60);
    assert_eq!(*world.status(), before);
    world.wait(70);
    assert_eq!(world.status().nodes.unwrap().unreachable, 1);
    world.is("Ready", "False", "ImagesMissing");
}
