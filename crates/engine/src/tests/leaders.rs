//! Two replicas, one leader, and what the next one finds.

use super::*;

impl Harness {
    /// Another process that begins to lead. It hears of the objects in the order of their names.
    pub(super) fn change_process(&mut self, settings: Settings, nodes: &[&str]) {
        self.engine = Some(Engine::new(settings));
        for name in nodes {
            self.join(name, &[]);
        }
        self.handle(Event::Synced(Source::Nodes));
        self.handle(Event::Synced(Source::Pullers));
        for object in self.objects.clone().into_values() {
            self.handle(Event::CacheApplied(Box::new(object)));
        }
        self.handle(Event::Synced(Source::Caches));
        self.handle(Event::Leadership(Some(2)));
        self.run();
    }

    /// The operations that ended, in their order.
    pub(super) fn ended(&self) -> Vec<&str> {
        let statuses = self.statuses.iter().map(|(_, status)| status);
        let ended = statuses.filter(|status| status.completion_time.is_some());
        ended.map(|status| status.reason.as_str()).collect()
    }
}

/// Tokens of the pulls that were asked for.
fn tokens(harness: &Harness) -> Vec<Arc<str>> {
    let works = harness.batches.iter().map(|batch| &batch.work);
    let pulls = works.filter_map(|work| match work {
        Work::Pull { images, .. } => Some(images),
        _ => None,
    });
    pulls.flatten().map(|item| item.freshness.clone()).collect()
}

#[test]
fn whoever_does_not_lead_does_nothing_and_waits_for_nothing() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.handle(Event::Synced(Source::Caches));
    harness.run();
    assert!(harness.log.is_empty());
    assert_eq!(harness.engine().next_wakeup(), None);
    harness.handle(Event::Leadership(Some(1)));
    harness.run();
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_leader_waits_until_every_source_is_synced() {
    for source in [Source::Caches, Source::Nodes, Source::Pullers] {
        let mut harness = Harness {
            engine: Some(Engine::new(Settings::default())),
            ..Harness::default()
        };
        harness.join("n1", &[]);
        harness.create(images(&["r.test/a:1"]));
        harness.handle(Event::Leadership(Some(1)));
        for other in [Source::Caches, Source::Nodes, Source::Pullers] {
            if other != source {
                harness.handle(Event::Synced(other));
            }
        }
        harness.run();
        assert!(harness.log.is_empty(), "{source:?}");
    }
}

#[test]
fn a_new_leader_goes_on_with_the_operation_and_attaches_to_its_pulls() {
    let mut harness = Harness::new(&["n1", "n2"]);
    let mut wanted = images(&["r.test/a:1"]);
    wanted.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always);
    harness.slow.insert("r.test/a:1".into());
    harness.create(wanted);
    harness.lead();
    let (begun, before) = (harness.status().start_time, tokens(&harness));
    harness.batches.clear();
    harness.open.clear();
    harness.change_leader();
    assert_eq!(harness.reported(), ("Processing", "ImageCacheCreate"));
    assert_eq!(harness.status().start_time, begun);
    assert_eq!(tokens(&harness), before, "the same token is the same pull");
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.count("event ImageCacheCreate"), 2, "begin and end");
}

#[test]
fn every_call_carries_the_term_and_a_number_that_rises() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "s.test/b:1"]));
    harness.lead();
    harness.change_leader();
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/c:1".into()]);
    let calls = harness.batches.iter().map(|batch| (batch.term, batch.seq));
    let calls: Vec<(u64, u64)> = calls.collect();
    assert!(calls.is_sorted_by(|a, b| a < b), "{calls:?}");
    assert_eq!((calls[0].0, calls.last().unwrap().0), (1, 2));
}

#[test]
fn a_leader_that_a_puller_refuses_blames_no_image_and_goes_on_in_a_later_term() {
    let mut harness = Harness::new(&["n1"]);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let batch = harness.batches.last().unwrap().id;
    harness.handle(Event::BatchEnded(batch, BatchEnd::Refused));
    harness.run();
    assert!(harness.status().failures.is_empty());
    harness.slow.clear();
    harness.handle(Event::Leadership(Some(8)));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.batches.last().unwrap().term, 8);
}

#[test]
fn a_write_with_a_conflict_waits_for_the_watch() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    // Somebody writes, and the watch has not told yet.
    harness.version += 1;
    let version = harness.version.to_string();
    let object = harness.objects.get_mut(&key()).unwrap();
    object.resource_version = version;
    let object = object.clone();
    harness.held.clear();
    harness.wait(700);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    let written = harness.statuses.len();
    harness.wait(60);
    assert_eq!(
        harness.statuses.len(),
        written,
        "it is not tried again and again"
    );
    harness.handle(Event::CacheApplied(Box::new(object)));
    harness.join("n2", &[]);
    harness.run();
    harness.wait(2);
    assert_eq!(harness.status().ready, "2/2");
}

#[test]
fn an_operation_of_another_leader_is_taken_over_when_it_is_observed() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let old = harness.objects[&key()].clone();
    harness.apply(|object| object.purge = Some(String::new()));
    harness.run();
    assert_eq!(harness.reported(), ("Succeeded", "ImageCachePurge"));

    let mut other = Harness::new(&["n1"]);
    other.version = harness.version;
    other.objects = harness.objects.clone();
    other.handle(Event::CacheApplied(Box::new(old)));
    other.lead();
    let newest = other.objects[&key()].clone();
    other.handle(Event::CacheApplied(Box::new(newest)));
    other.run();
    other.wait(30);
    assert_eq!(other.reported(), ("Succeeded", "ImageCachePurge"));
    assert!(other.held("n1").is_empty());
}

/// A new leader finds an operation that another one began for these annotations, and these ones by now.
fn resumed(began: [Option<&str>; 2], now: [Option<&str>; 2]) -> Harness {
    let annotate = |object: &mut CacheObject, [refresh, purge]: [Option<&str>; 2]| {
        object.refresh = refresh.map(str::to_owned);
        object.purge = purge.map(str::to_owned);
    };
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let written = harness.statuses.len();
    harness.apply(|object| annotate(object, began));
    harness.run();
    let (_, status) = harness.statuses[written].clone();
    assert_eq!(status.status, "Processing");
    harness.handle(Event::Leadership(None));
    harness.apply(|object| {
        annotate(object, now);
        object.status = status;
    });
    harness.statuses.clear();
    harness.handle(Event::Leadership(Some(2)));
    harness.run();
    harness.wait(5);
    harness
}

#[test]
fn what_was_requested_after_an_operation_began_is_done_after_it_under_a_new_leader_too() {
    for (began, now, operations) in [
        (
            [Some("r1"), None],
            [Some("r2"), None],
            ["ImageCacheRefresh", "ImageCacheRefresh"],
        ),
        (
            [Some("r1"), None],
            [Some(""), None],
            ["ImageCacheRefresh", "ImageCacheRefresh"],
        ),
        (
            [None, Some("p")],
            [Some("r"), Some("p")],
            ["ImageCachePurge", "ImageCacheRefresh"],
        ),
        (
            [None, Some("")],
            [Some(""), Some("")],
            ["ImageCachePurge", "ImageCacheRefresh"],
        ),
        (
            [None, Some("p1")],
            [None, Some("p2")],
            ["ImageCachePurge", "ImageCachePurge"],
        ),
    ] {
        let harness = resumed(began, now);
        assert_eq!(harness.ended(), operations, "{began:?} {now:?}");
        let object = &harness.objects[&key()];
        let status = &object.status;
        let handled = |token: Option<&str>| token.filter(|t| !t.is_empty()).map(str::to_owned);
        assert_eq!(status.last_handled_refresh.clone(), handled(now[0]));
        assert_eq!(status.last_handled_purge.clone(), handled(now[1]));
        assert_eq!(status.handling_refresh, None);
        let left = [&object.refresh, &object.purge];
        assert!(left.into_iter().flatten().all(|v| !v.is_empty()));
    }
}

#[test]
fn a_new_leader_answers_what_the_operation_began_for_and_does_nothing_twice() {
    for (began, operations) in [
        ([Some("r"), None], ["ImageCacheRefresh"]),
        ([Some(""), None], ["ImageCacheRefresh"]),
        ([Some("r"), Some("p")], ["ImageCachePurge"]),
        ([Some(""), Some("")], ["ImageCachePurge"]),
    ] {
        let harness = resumed(began, began);
        assert_eq!(harness.ended(), operations, "{began:?}");
    }
}

#[test]
fn a_new_leader_keeps_what_is_written_until_its_first_round_is_complete() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let before = harness.status().clone();
    harness.unreachable.insert("n2".into());
    harness.change_leader();
    harness.wait(60);
    assert_eq!(*harness.status(), before);
    harness.wait(70);
    assert_eq!(harness.status().nodes.unwrap().unreachable, 1);
    harness.is("Ready", "False", "ImagesMissing");
}

#[test]
fn pulls_that_pullers_run_already_count_at_once_and_others_wait_for_them() {
    let nodes = ["n1", "n2", "n3"];
    let settings = Settings {
        initial_registry_pulls: 1,
        max_registry_pulls: 64,
        ..Settings::default()
    };
    let mut harness = Harness::with(settings, &nodes);
    harness
        .slow
        .extend(["r.test/a:1".into(), "r.test/b:1".into()]);
    harness.running.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    for node in nodes {
        assert_eq!(harness.count(&format!("pull {node} r.test/a:1")), 1);
    }
    assert_eq!(harness.count("pull"), 3, "the budget is used up");
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.count("pull"), 4, "one of the others");
}

#[test]
fn nodes_whose_pulls_run_already_count_as_concurrent_nodes() {
    let nodes = ["n1", "n2", "n3"];
    let mut harness = Harness::new(&nodes);
    harness.slow.insert("r.test/a:1".into());
    harness.running.insert("r.test/a:1".into());
    harness.create(ImageCacheSpec {
        max_concurrent_nodes: "2".parse().ok(),
        ..images(&["r.test/a:1"])
    });
    harness.lead();
    for node in nodes {
        assert_eq!(harness.count(&format!("pull {node} r.test/a:1")), 1);
    }
    harness.running.clear();
    harness.join("n4", &[]);
    harness.run();
    assert_eq!(harness.count("pull n4"), 0);
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.count("pull n4"), 1);
}
