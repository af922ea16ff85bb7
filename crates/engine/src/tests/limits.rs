//! What protects registries and nodes, and who waits for whom.

use super::*;

fn many(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("n{number:03}")).collect()
}

fn harness(settings: Settings, nodes: usize) -> Harness {
    let names = many(nodes);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Harness::with(settings, &names)
}

#[test]
fn no_more_pulls_of_a_registry_run_than_its_ceiling_and_all_get_their_turn() {
    let settings = Settings {
        max_registry_pulls: 3,
        ..Settings::default()
    };
    let mut harness = harness(settings, 10);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.count("pull"), 3);
    harness.wait(2);
    harness.is("Progressing", "True", "Pulling");
    harness.create_as("other", images(&["elsewhere.test/a:1"]));
    harness.run();
    let other = &harness.objects[&named("other")].status;
    assert_eq!(other.status, "Succeeded", "each registry has its own");
    harness.end_slow("r.test/a:1");
    harness.wait(1);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn a_puller_that_runs_more_pulls_at_a_time_takes_more_of_the_budget() {
    for (parallel, nodes) in [(0, 3), (2, 3), (3, 2), (6, 1)] {
        let settings = Settings {
            max_registry_pulls: 6,
            ..Settings::default()
        };
        let mut harness = harness(settings, 4);
        harness.parallel = parallel;
        let names: Vec<String> = (0..6).map(|at| format!("r.test/{at}:1")).collect();
        harness.slow.extend(names.iter().cloned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        harness.create(images(&names));
        harness.lead();
        assert_eq!(harness.count("pull"), nodes, "{parallel} at a time");
    }
}

#[test]
fn a_rate_limited_registry_gets_half_its_budget_which_then_grows_slowly() {
    let mut harness = harness(Settings::default(), 80);
    harness.broken.insert("r.test/a:1".into(), "RateLimited");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.is("Degraded", "True", "PullFailed");
    let budget = |harness: &mut Harness| {
        let now = harness.now;
        harness.engine().view_registries(now, None, 1).rows[0]
            .budget
            .limit
    };
    // Two tries more are refused, and the next one comes after the budget has begun to grow.
    harness.wait(18);
    let after = budget(&mut harness);
    assert!(after <= 32, "{after}");
    harness.broken.clear();
    harness.wait(400);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert!(budget(&mut harness) > after);
}

#[test]
fn a_new_node_does_not_wait_behind_the_long_pulls_of_others() {
    let settings = Settings {
        max_registry_pulls: 200,
        ..Settings::default()
    };
    let mut harness = harness(settings, 64);
    harness.slow.insert("r.test/big:1".into());
    harness.create(images(&["r.test/big:1"]));
    harness.lead();
    assert_eq!(harness.count("pull"), 64, "the budget is used up");
    for number in 0..30 {
        harness.join(&format!("new{number}"), &[]);
    }
    harness.wait(19);
    assert_eq!(harness.count("pull new"), 1, "the budget has grown by one");
    harness.wait(2);
    assert_eq!(harness.count("pull new"), 30, "the others are long by now");
}

#[test]
fn nodes_that_do_not_answer_keep_no_living_node_waiting() {
    let mut harness = harness(Settings::default(), 500);
    harness.unreachable.extend(many(500));
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.asked();
    harness.join("alive", &[]);
    harness.run();
    assert_eq!(harness.held("alive"), ["r.test/a:1"]);
    assert_eq!(harness.count("pull alive"), 1);
}

#[test]
fn a_node_works_on_four_pull_batches_at_most_and_on_one_check_and_one_removal() {
    let mut harness = Harness::new(&["n1"]);
    let hosts: Vec<String> = (0..9).map(|at| format!("r{at}.test/a:1")).collect();
    harness.slow.extend(hosts.iter().cloned());
    let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
    harness.create(images(&names));
    harness.lead();
    assert_eq!(
        (harness.count("check"), harness.count("pull")),
        (1, 4),
        "a batch is for one registry"
    );
    for host in &hosts {
        harness.end_slow(host);
    }
    harness.slow.clear();
    for host in &hosts {
        harness.end_slow(host);
    }
    assert_eq!(harness.held("n1").len(), 9);
}

#[test]
fn a_batch_is_no_longer_than_512_images() {
    let mut harness = Harness::new(&["n1"]);
    let names: Vec<String> = (0..700).map(|at| format!("r.test/{at}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness.create(images(&names));
    harness.lead();
    assert_eq!(harness.held("n1").len(), 700);
    let size = |work: &Work| match work {
        Work::Pull { images, .. } => images.len(),
        Work::Check { references } | Work::Remove { references, .. } => references.len(),
    };
    let most = harness.batches.iter().map(|batch| size(&batch.work)).max();
    assert_eq!(most, Some(512));
}

#[test]
fn the_back_off_of_a_failed_image_grows_up_to_minutes() {
    let mut harness = Harness::new(&["n1"]);
    harness
        .broken
        .insert("r.test/a:1".into(), "RegistryUnavailable");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    let mut tries = vec![harness.now.tick.0];
    while tries.len() < 10 {
        let before = harness.count("pull");
        harness.wait(1);
        if harness.count("pull") > before {
            tries.push(harness.now.tick.0);
        }
    }
    let waits: Vec<u64> = tries.windows(2).map(|w| (w[1] - w[0]) / 1000).collect();
    assert!((7..=13).contains(&waits[0]), "{waits:?}");
    assert!(waits[1] > waits[0] && waits[2] > waits[1], "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 376), "{waits:?}");
}

/// A tenant who edits a list again and again, each time with other names, hosts and secrets.
#[test]
fn names_that_no_cache_has_any_more_are_freed_also_where_their_pulls_failed() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    for round in 0..20 {
        let names: Vec<String> = (0..100)
            .map(|image| format!("host{round}-{image}.test/a:1"))
            .collect();
        for name in &names {
            harness.broken.insert(name.clone(), "RegistryUnavailable");
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut spec = images(&names);
        spec.image_pull_secrets = vec![PullSecretReference {
            name: format!("s{round}"),
        }];
        harness.edit(spec);
        harness.broken.clear();
    }
    harness.edit(images(&["r.test/a:1"]));
    harness.wait(3600);
    let model = &harness.engine().model;
    let names = &model.names;
    let count = names.images.len() + names.registries.len() + names.scopes.len();
    assert!(count < 1500, "{count}");
    for (_, node) in model.nodes.iter() {
        assert!(node.attempts.is_empty());
    }
}

#[test]
fn an_object_that_the_api_server_does_not_store_says_so_pulls_nothing_new_and_heals_by_an_edit() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.most_names = Some(2);
    harness.edit(images(&["r.test/a:1", "r.test/b:1", "r.test/c:1"]));
    harness.wait(5);
    harness.is("Degraded", "True", "StatusTooLarge");
    harness.is("Ready", "False", "ImagesMissing");
    assert_eq!(harness.held("n1"), ["r.test/a:1"], "nothing unrecorded");
    let attempts = harness.refused_writes;
    harness.wait(3600);
    let more = harness.refused_writes - attempts;
    assert!((3..=8).contains(&more), "{more} attempts in an hour");

    harness.edit(images(&["r.test/a:1", "r.test/b:1"]));
    harness.wait(5);
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    harness.is("Degraded", "False", "None");
    harness.is("Ready", "True", "AllImagesPresent");
}

#[test]
fn a_namespace_that_names_too_many_images_hears_so_and_goes_on_when_there_is_room() {
    let settings = Settings {
        max_namespace_images: 3,
        ..Settings::default()
    };
    let mut harness = Harness::with(settings, &["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.create_as("more", images(&["r.test/c:1", "r.test/d:1"]));
    harness.lead();
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    let refused = &harness.objects[&named("more")].status;
    assert_eq!(refused.reason, "CacheSpecValidationFailed");
    let why = &refused.message;
    assert!(
        why.contains("namespace ns would name 4 images, and 3 are allowed"),
        "{why}"
    );

    harness.edit(images(&["r.test/a:1"]));
    harness.wait(5);
    assert_eq!(harness.objects[&named("more")].status.status, "Succeeded");
    assert_eq!(
        harness.held("n1"),
        ["r.test/a:1", "r.test/c:1", "r.test/d:1"]
    );
}

#[test]
fn a_new_leader_does_not_give_the_room_of_a_cache_with_images_to_one_that_was_refused() {
    let settings = Settings {
        max_namespace_images: 3,
        ..Settings::default()
    };
    let mut harness = Harness::with(settings.clone(), &["n1"]);
    harness.create_as("zz", images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.create_as("aa", images(&["r.test/c:1", "r.test/d:1"]));
    harness.run();
    assert_eq!(harness.objects[&named("aa")].status.status, "Failed");

    harness.change_process(settings, &["n1"]);
    harness.wait(5);
    assert_eq!(harness.objects[&named("zz")].status.status, "Succeeded");
    assert_eq!(harness.objects[&named("aa")].status.status, "Failed");
    assert_eq!(harness.held("n1"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn an_image_that_is_pushed_later_is_found_without_a_refresh() {
    let mut harness = harness(Settings::default(), 2);
    harness.broken.insert("r.test/a:1".into(), "ImageNotFound");
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.reported().0, "Failed");
    harness.is("Stalled", "True", "PullFailed");
    harness.wait(3 * 3600);
    let pulls = harness.count("pull");
    assert!(
        (12..40).contains(&pulls),
        "{pulls} by two nodes in three hours"
    );
    harness.broken.clear();
    harness.wait(4500);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_pull_without_room_waits_for_room_and_not_for_a_minute() {
    let mut harness = harness(Settings::default(), 1);
    harness.broken.insert("r.test/a:1".into(), "DiskPressure");
    harness.disk_full = true;
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(400);
    let pulls = harness.count("pull");
    harness.wait(2400);
    assert_eq!(
        harness.count("pull"),
        pulls,
        "the disk is as full as before"
    );
    harness.broken.clear();
    harness.disk_full = false;
    harness.wait(340);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn pulls_end_when_the_kubelet_reports_disk_pressure_and_go_on_when_it_is_over() {
    let mut harness = harness(Settings::default(), 1);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(10);
    assert_eq!(harness.count("cancel"), 0);
    let name = node("n001");
    let pressed = NodeFacts {
        taints: vec![taint("node.kubernetes.io/disk-pressure", "NoSchedule")],
        ..facts(&[])
    };
    harness.handle(Event::NodeApplied(name.clone(), pressed));
    harness.wait(2);
    assert_eq!(harness.count("cancel"), 1);
    assert_eq!(harness.count("pull"), 1);
    harness.handle(Event::NodeApplied(name, facts(&[])));
    harness.slow.clear();
    harness.wait(5);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_pull_does_not_wait_if_room_was_made_before_the_next_report() {
    let mut harness = harness(Settings::default(), 1);
    harness.broken.insert("r.test/a:1".into(), "DiskPressure");
    harness.disk_full = true;
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.broken.clear();
    harness.disk_full = false;
    harness.wait(640);
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_node_that_waits_only_for_a_registry_keeps_its_connection_and_that_is_said_once() {
    let settings = Settings {
        max_registry_pulls: 1,
        ..Settings::default()
    };
    let mut harness = harness(settings, 2);
    harness.slow.insert("r.test/a:1".into());
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(9);
    assert_eq!(harness.count("event keep n002"), 1);
    assert_eq!(harness.count("event keep n001"), 0, "it pulls");
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.held("n002"), ["r.test/a:1"]);
}

#[test]
fn a_node_gets_as_many_places_of_a_registry_as_it_pulls_at_a_time_unless_nobody_else_pulls() {
    let settings = Settings {
        max_registry_pulls: 3,
        ..Settings::default()
    };
    let mut harness = harness(settings, 3);
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1"];
    harness.slow.extend(names.map(str::to_owned));
    harness.create(images(&names));
    harness.lead();
    harness.wait(15);
    assert_eq!(harness.count("pull"), 1, "the third place is left free");
    harness.wait(6);
    assert_eq!(
        harness.count("pull"),
        2,
        "the first two are long: of the ceiling one is left"
    );
    for name in names {
        harness.end_slow(name);
    }
    for name in names {
        harness.end_slow(name);
    }
    assert_eq!(harness.reported().0, "Succeeded");
}
