//! Waits end: by a seed's progress, its failure, or the time.

use super::*;

#[test]
fn a_seed_without_progress_is_replaced_and_one_with_progress_is_not() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    for step in 1..=10 {
        harness.wait(5);
        harness.moves(&seed, APP, step << 20, 100 << 20);
    }
    assert_eq!(
        harness.told().len(),
        1,
        "50 s, and never 10 s without a byte"
    );
    harness.wait(11);
    let seeds = harness.registry_pulls(APP);
    assert_eq!(seeds.len(), 2, "{seeds:?}");
    harness.end(&seeds[1], APP, None);
    assert_eq!(
        harness.peer_pulls().len(),
        6,
        "the stuck node goes on by itself"
    );
}

#[test]
fn a_seed_that_moves_again_is_not_replaced_by_one_that_has_not_begun() {
    let settings = Settings {
        initial_registry_pulls: 1,
        max_registry_pulls: 1,
        ..Settings::default()
    };
    let mut harness = wave_with(settings, &EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    let offered = |harness: &mut Harness| {
        let nodes = harness.engine().model.nodes.iter();
        nodes
            .filter(|(_, node)| !node.peers.offers.is_empty())
            .count()
    };
    harness.wait(11);
    assert_eq!(offered(&mut harness), 1, "it waits for the budget");
    harness.moves(&seed, APP, 1 << 20, 100 << 20);
    assert_eq!(offered(&mut harness), 0);
    harness.wait(11);
    assert_eq!(offered(&mut harness), 1, "it stands still again");
    assert_eq!(harness.told().len(), 1);
}

#[test]
fn after_half_a_minute_without_any_progress_all_nodes_pull_from_the_registry() {
    let mut harness = wave(&EIGHT, &[APP]);
    harness.wait(29);
    assert!(harness.told().len() <= 3);
    harness.wait(2);
    assert_eq!(harness.registry_pulls(APP).len(), 8);
}

#[test]
fn a_seed_whose_node_is_gone_or_has_trouble_of_its_own_is_replaced_at_once() {
    let mut harness = wave(&EIGHT, &[APP]);
    let first = harness.told()[0].node.clone();
    harness.handle(Event::PullerChanged(node(&first), None));
    harness.handle(Event::NodeDeleted(node(&first)));
    harness.run();
    let seeds = harness.registry_pulls(APP);
    assert_eq!(seeds.len(), 2);
    harness.end(&seeds[1], APP, Some("RuntimeUnavailable"));
    let seeds = harness.registry_pulls(APP);
    assert_eq!(seeds.len(), 3);
    harness.end(&seeds[2], APP, None);
    harness.wait(3);
    assert_eq!(harness.peer_pulls().len(), 5);
}

#[test]
fn when_the_registry_refuses_two_seeds_every_node_asks_and_reports() {
    let mut harness = wave(&EIGHT, &["r.test/unknown:1"]);
    for _ in 0..2 {
        let seeds = harness.registry_pulls("r.test/unknown:1");
        let last = seeds.last().unwrap().clone();
        harness.end(&last, "r.test/unknown:1", Some("ImageNotFound"));
    }
    assert_eq!(harness.registry_pulls("r.test/unknown:1").len(), 8);
}

#[test]
fn nobody_waits_for_a_small_image_if_the_registry_is_fast() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.go_to(harness.now.tick.0 + 200);
    harness.moves(&seed, APP, 2_000_000, 5_000_000);
    assert_eq!(harness.registry_pulls(APP).len(), 8);
}

#[test]
fn a_small_image_is_fetched_once_from_a_slow_registry() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.moves(&seed, APP, 0, 5_000_000);
    for step in 1..=5 {
        harness.wait(2);
        harness.moves(&seed, APP, step * 1_000_000, 5_000_000);
    }
    assert_eq!(harness.registry_pulls(APP), [&*seed]);
    harness.end(&seed, APP, None);
    assert_eq!(harness.peer_pulls().len(), 7);
}

#[test]
fn a_small_image_is_fetched_once_if_more_nodes_lack_it_than_the_registry_may_serve() {
    let settings = Settings {
        max_registry_pulls: 4,
        ..Settings::default()
    };
    let mut harness = wave_with(settings, &EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.go_to(harness.now.tick.0 + 200);
    harness.moves(&seed, APP, 2_000_000, 5_000_000);
    assert_eq!(harness.registry_pulls(APP), [&*seed]);
    harness.end(&seed, APP, None);
    assert_eq!(harness.peer_pulls().len(), 7);
}

#[test]
fn a_small_image_that_a_node_has_is_taken_from_there() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.end(&seed, APP, None);
    harness.end_all_from_peers(APP);
    harness.run();
    harness.moves_known(5_000_000);
    for number in 0..3 {
        let name = format!("new{number}");
        harness.shares.as_mut().unwrap().insert(name.clone());
        harness.handle(Event::NodeApplied(node(&name), facts(&[])));
    }
    for number in 0..3 {
        harness.puller(&format!("new{number}"));
    }
    harness.run();
    assert_eq!(harness.registry_pulls(APP).len(), 1);
    assert_eq!(harness.peer_pulls().len(), 10);
}

#[test]
fn images_that_wait_for_their_turn_are_not_given_up() {
    let names: Vec<String> = (0..12).map(|at| format!("r.test/{at:02}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = wave(&EIGHT[..3], &names);
    for step in 1..=40_u64 {
        for told in harness.told() {
            if harness.open_pull(&told.node, &told.image).is_some() {
                harness.moves(&told.node, &told.image, step << 20, 900 << 20);
            }
        }
        harness.wait(5);
    }
    for name in &names {
        assert!(harness.registry_pulls(name).len() <= 1, "{name}");
    }
    assert_eq!(
        harness.told().len(),
        9,
        "as many as three pullers run: two each, and one beside long ones"
    );
}

#[test]
fn images_that_wait_behind_pulls_which_stand_still_are_given_up() {
    let names: Vec<String> = (0..12).map(|at| format!("r.test/{at:02}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = wave(&EIGHT[..3], &names);
    harness.wait(60);
    for node in &EIGHT[..3] {
        let whys = harness.why("a", node);
        let waits =
            |why: &&Result<PullReason, PullBlock>| matches!(why, Err(PullBlock::AwaitsSource(_)));
        assert_eq!(whys.iter().filter(waits).count(), 0, "{node}: {whys:?}");
    }
}

#[test]
fn the_plan_of_one_cache_leaves_what_waits_for_another() {
    let mut harness = wave(&EIGHT, &[APP]);
    harness.create_as("b", images(&["r.test/b:1"]));
    harness.wait(1);
    harness.apply_to(&named("b"), |object| {
        object.generation += 1;
        object.spec.cache_spec[0].priority = Some(3);
    });
    harness.run();
    let seed = harness.registry_pulls(APP).remove(0);
    harness.end(&seed, APP, None);
    let taken = |told: &Told| told.image == APP;
    assert_eq!(
        harness
            .peer_pulls()
            .iter()
            .filter(|told| taken(told))
            .count(),
        7
    );
}

#[test]
fn what_a_node_has_is_taken_from_there_although_the_registry_has_no_room() {
    let settings = Settings {
        max_registry_pulls: 1,
        ..Settings::default()
    };
    let mut harness = sharing(settings, &EIGHT);
    let held = harness.held.entry("n8".into()).or_default();
    held.insert(APP.into(), 1);
    harness
        .slow
        .extend([APP.to_owned(), "r.test/b:1".to_owned()]);
    harness.create(images(&["r.test/b:1"]));
    harness.lead();
    harness.wait(60);
    let whys = EIGHT.iter().flat_map(|node| harness.why("a", node));
    let blocked = whys.filter(|why| *why == Err(PullBlock::RegistryBudget));
    assert_eq!(blocked.count(), 7);
    harness.create_as("b", images(&[APP]));
    harness.wait(3);
    let nodes: BTreeSet<String> = harness
        .peer_pulls()
        .into_iter()
        .map(|told| told.node)
        .collect();
    assert_eq!(nodes.len(), 7, "{nodes:?}");
    assert!(harness.registry_pulls(APP).is_empty());
}

#[test]
fn pulls_from_other_nodes_take_nothing_from_the_registrys_budget() {
    let settings = Settings {
        max_registry_pulls: 1,
        ..Settings::default()
    };
    let mut harness = sharing(settings, &EIGHT);
    harness
        .slow
        .extend([APP.to_owned(), "r.test/b:1".to_owned()]);
    harness.create(images(&[APP, "r.test/b:1"]));
    harness.lead();
    assert_eq!(harness.told().len(), 1, "one seed has the whole budget");
    let seed = harness.told()[0].node.clone();
    let image = harness.told()[0].image.clone();
    harness.end(&seed, &image, None);
    assert_eq!(harness.peer_pulls().len(), 7);
    assert_eq!(harness.told().len(), 9, "and the seed of the other image");
}

#[test]
fn no_node_hands_on_more_than_two_streams_however_many_images_there_are() {
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1", "r.test/d:1"];
    let mut harness = wave(&EIGHT, &names);
    for _ in 0..60 {
        let open = harness.told().into_iter();
        let mut open = open.filter(|told| harness.open_pull(&told.node, &told.image).is_some());
        let Some(next) = open.next() else { break };
        harness.end(&next.node, &next.image, None);
        assert!(harness.most_uploads() <= 2, "{:?}", harness.told());
    }
    harness.wait(1);
    assert_eq!(harness.reported().0, "Succeeded");
    for name in names {
        assert_eq!(harness.registry_pulls(name).len(), 1, "{name}");
    }
}

#[test]
fn a_new_leader_learns_from_checks_who_has_an_image() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.end(&seed, APP, None);
    harness.open.clear();
    harness.batches.clear();
    harness.change_leader();
    assert!(harness.registry_pulls(APP).is_empty(), "one has it");
    assert_eq!(
        harness.peer_pulls().len(),
        7,
        "nodes gather until all were heard"
    );
    assert!(harness.most_uploads() <= 2);
    harness.end_all_from_peers(APP);
    harness.wait(1);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn after_a_tag_moved_only_nodes_with_the_new_image_hand_it_on() {
    let mut harness = sharing(Settings::default(), &EIGHT);
    harness.create(ImageCacheSpec {
        cache_spec: vec![CacheSpecEntry {
            images: vec![APP.into()],
            image_pull_policy: Some(ImagePullPolicy::Always),
            ..CacheSpecEntry::default()
        }],
        ..ImageCacheSpec::default()
    });
    harness.lead();
    harness.wait(1);
    assert_eq!(harness.reported().0, "Succeeded");
    harness.batches.clear();
    harness.moved.insert(APP.into(), 2);
    harness.slow.insert(APP.into());
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    harness.wait(1);
    let told = harness.told();
    assert_eq!(
        (told.len(), told[0].peers.len()),
        (1, 0),
        "one node asks: {told:?}"
    );
    let probe = told[0].node.clone();
    harness.end(&probe, APP, None);
    harness.wait(1);
    let told = harness.peer_pulls();
    assert_eq!(told.len(), 7, "{:?}", harness.told());
    for node in EIGHT.iter().filter(|node| **node != probe) {
        let (_, _, item) = harness.open_pull(node, APP).unwrap();
        assert_eq!(&*item.peers.unwrap().digest, format!("sha256:{APP}-2"));
    }
    harness.end_all_from_peers(APP);
    harness.wait(2);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_node_that_lost_its_puller_hands_on_nothing() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.end(&seed, APP, None);
    harness.end_all_from_peers(APP);
    harness.held.get_mut("n3").unwrap().clear();
    for name in ["new1", "new2", "new3"] {
        harness.shares.as_mut().unwrap().insert(name.into());
    }
    for name in EIGHT {
        if name != "n5" {
            harness.handle(Event::PullerChanged(node(name), None));
        }
    }
    for name in ["new1", "new2", "new3"] {
        harness.handle(Event::NodeApplied(node(name), facts(&[])));
    }
    for name in ["new1", "new2", "new3"] {
        harness.puller(name);
    }
    harness.batches.clear();
    harness.run();
    let news = ["n5", "new1", "new2", "new3"];
    for told in harness.peer_pulls() {
        assert!(
            told.peers.iter().all(|peer| news.contains(&&**peer)),
            "{told:?}"
        );
    }
}

#[test]
fn where_few_may_take_at_a_time_each_takes_several_small_images_in_one_call() {
    let names = [
        "r.test/a:1",
        "r.test/b:1",
        "r.test/c:1",
        "r.test/d:1",
        "r.test/e:1",
        "r.test/f:1",
    ];
    let mut settings = Settings::default();
    settings.peers.at_once = 2;
    let mut harness = sharing(settings, &EIGHT);
    harness.slow.extend(names.map(str::to_owned));
    harness.create(images(&names));
    harness.lead();
    for _ in 0..100 {
        let open = harness.told().into_iter();
        let mut open = open.filter(|told| harness.open_pull(&told.node, &told.image).is_some());
        let Some(next) = open.next() else { break };
        harness.end(&next.node, &next.image, None);
        let open = harness.peer_pulls().into_iter();
        let open = open.filter(|told| harness.open_pull(&told.node, &told.image).is_some());
        let takers: BTreeSet<String> = open.map(|told| told.node).collect();
        assert!(takers.len() <= 2, "{takers:?}");
    }
    harness.wait(1);
    assert_eq!(harness.reported().0, "Succeeded");
    let calls = harness
        .batches
        .iter()
        .filter_map(|batch| match &batch.work {
            Work::Pull { images, .. } => Some(images.iter().filter(|item| item.peers.is_some())),
            _ => None,
        });
    let most = calls.map(Iterator::count).max();
    assert_eq!(most, Some(4), "the bound of images together");
    for name in names {
        assert_eq!(harness.registry_pulls(name).len(), 1, "{name}");
    }
}
