//! What protects registries and nodes, and who waits for whom.

use super::*;

fn many(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("n{number:03}")).collect()
}

fn world(settings: Settings, nodes: usize) -> World {
    let names = many(nodes);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    World::with(settings, &names)
}

#[test]
fn no_more_pulls_of_a_registry_run_than_its_ceiling_and_all_get_their_turn() {
    let settings = Settings {
        max_registry_pulls: 3,
        ..Settings::default()
    };
    let mut world = world(settings, 10);
    world.slow.insert("r.test/a:1".into());
    world.create(images(&["r.test/a:1"]));
    world.lead();
    assert_eq!(world.count("pull"), 3);
    world.wait(2);
    world.is("Progressing", "True", "Pulling");
    world.create_as("other", images(&["elsewhere.test/a:1"]));
    world.run();
    let other = &world.objects[&named("other")].status;
    assert_eq!(other.status, "Succeeded", "each registry has its own");
    world.end_slow("r.test/a:1");
    world.wait(1);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn a_puller_that_runs_more_pulls_at_a_time_takes_more_of_the_budget() {
    for (parallel, nodes) in [(0, 3), (2, 3), (3, 2), (6, 1)] {
        let settings = Settings {
            max_registry_pulls: 6,
            ..Settings::default()
        };
        let mut world = world(settings, 4);
        world.parallel = parallel;
        let names: Vec<String> = (0..6).map(|at| format!("r.test/{at}:1")).collect();
        world.slow.extend(names.iter().cloned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        world.create(images(&names));
        world.lead();
        assert_eq!(world.count("pull"), nodes, "{parallel} at a time");
    }
}

#[test]
fn a_rate_limited_registry_gets_half_its_budget_which_then_grows_slowly() {
    let mut world = world(Settings::default(), 80);
    world.broken.insert("r.test/a:1".into(), "RateLimited");
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.is("Degraded", "True", "PullFailed");
    let budget = |world: &mut World| {
        let now = world.now;
        world.engine().view_registries(now, None, 1).rows[0]
            .budget
            .limit
    };
    let after = budget(&mut world);
    assert!(after <= 32, "{after}");
    world.broken.clear();
    world.wait(400);
    assert_eq!(world.reported(), ("Succeeded", "ImageCacheCreate"));
    assert!(budget(&mut world) > after);
}

#[test]
fn a_new_node_does_not_wait_behind_the_long_pulls_of_others() {
    let settings = Settings {
        max_registry_pulls: 200,
        ..Settings::default()
    };
    let mut world = world(settings, 64);
    world.slow.insert("r.test/big:1".into());
    world.create(images(&["r.test/big:1"]));
    world.lead();
    assert_eq!(world.count("pull"), 64, "the budget is used up");
    for number in 0..30 {
        world.join(&format!("new{number}"), &[]);
    }
    world.wait(19);
    assert_eq!(world.count("pull new"), 1, "the budget has grown by one");
    world.wait(2);
    assert_eq!(world.count("pull new"), 30, "the others are long by now");
}

#[test]
fn nodes_that_do_not_answer_keep_no_living_node_waiting() {
    let mut world = world(Settings::default(), 500);
    world.unreachable.extend(many(500));
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.asked();
    world.join("alive", &[]);
    world.run();
    assert_eq!(world.held("alive"), ["r.test/a:1"]);
    assert_eq!(world.count("pull alive"), 1);
}

#[test]
fn a_node_works_on_four_pull_batches_at_most_and_on_one_check_and_one_removal() {
    let mut world = World::new(&["n1"]);
    let hosts: Vec<String> = (0..9).map(|at| format!("r{at}.test/a:1")).collect();
    world.slow.extend(hosts.iter().cloned());
    let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
    world.create(images(&names));
    world.lead();
    assert_eq!(
        (world.count("check"), world.count("pull")),
        (1, 4),
        "a batch is for one registry"
    );
    for host in &hosts {
        world.end_slow(host);
    }
    world.slow.clear();
    for host in &hosts {
        world.end_slow(host);
    }
    assert_eq!(world.held("n1").len(), 9);
}

#[test]
fn a_batch_is_no_longer_than_512_images() {
    let mut world = World::new(&["n1"]);
    let names: Vec<String> = (0..700).map(|at| format!("r.test/{at}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.create(images(&names));
    world.lead();
    assert_eq!(world.held("n1").len(), 700);
    let size = |work: &Work| match work {
        Work::Pull { images, .. } => images.len(),
        Work::Check { references } | Work::Remove { references, .. } => references.len(),
    };
    let most = world.batches.iter().map(|batch| size(&batch.work)).max();
    assert_eq!(most, Some(512));
}

#[test]
fn the_back_off_of_a_failed_image_grows_up_to_minutes() {
    let mut world = World::new(&["n1"]);
    world
        .broken
        .insert("r.test/a:1".into(), "RegistryUnavailable");
    world.create(images(&["r.test/a:1"]));
    world.lead();
    let mut tries = vec![world.now.tick.0];
    while tries.len() < 10 {
        let before = world.count("pull");
        world.wait(1);
        if world.count("pull") > before {
            tries.push(world.now.tick.0);
        }
    }
    let waits: Vec<u64> = tries.windows(2).map(|w| (w[1] - w[0]) / 1000).collect();
    assert!((7..=13).contains(&waits[0]), "{waits:?}");
    assert!(waits[1] > waits[0] && waits[2] > waits[1], "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 376), "{waits:?}");
}
