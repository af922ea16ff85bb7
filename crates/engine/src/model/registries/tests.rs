//! Budgets and ceilings.

use super::*;

const S: u64 = 1000;

fn registry(registries: &mut Registries) -> &mut Registry {
    let id = registries.intern("r.test");
    registries.get_mut(id)
}

/// Room now; the budget grows, as it does before pulls start.
fn room(registry: &mut Registry, now: Tick) -> u32 {
    let room = registry.room_now(now, 0, 1);
    registry.grow(now);
    assert_eq!(registry.room(), room);
    room
}

/// Two nodes are asked for fewer requests.
fn limited(registry: &mut Registry, now: Tick) {
    for node in [1, 2].map(NodeIdx::from_index) {
        registry.pulls(node);
        registry.rate_limited(node, Began::default(), now);
    }
}

#[test]
fn the_word_of_one_node_among_others_halves_no_budget() {
    let mut registries = Registries::default();
    let registry = registry(&mut registries);
    room(registry, Tick(100 * S));
    let [rogue, other] = [1, 2].map(NodeIdx::from_index);
    registry.pulls(rogue);
    registry.rate_limited(rogue, Began::default(), Tick(100 * S));
    assert_eq!(room(registry, Tick(101 * S)), 32, "no other pulls");
    registry.pulls(other);
    registry.pulls(rogue);
    for second in 0..100 {
        registry.rate_limited(rogue, Began::default(), Tick((106 + second) * S));
    }
    assert_eq!(room(registry, Tick(106 * S)), 32);
    registry.rate_limited(other, Began::default(), Tick(206 * S));
    assert!(room(registry, Tick(206 * S)) <= 21);
}

#[test]
fn an_answer_of_another_host_is_not_the_registrys() {
    let mut registries = Registries::default();
    let mut says = |host: &str, message: &str| {
        let id = registries.intern(host);
        registries.get(id).says(message)
    };
    let own = "unexpected status code https://r.test:5000/v2/a/manifests/1: 429 Too Many Requests";
    let layer = "failed open: unexpected status code http://layers.test/x: 429 Too Many Requests";
    assert!(says("r.test:5000", own) && !says("r.test:5000", layer));
    assert!(says("r.test:5000", "toomanyrequests: slow down"));
    assert!(says(
        "docker.io",
        &own.replace("r.test:5000", "registry-1.docker.io")
    ));
    assert!(!says("docker.io", layer) && !says("docker.io", own));
    assert!(says("[::1]:5000", &own.replace("r.test", "[::1]")));
}

#[test]
fn a_registry_begins_with_64_and_halves_at_most_once_in_five_seconds() {
    let mut registries = Registries::default();
    let registry = registry(&mut registries);
    assert_eq!(room(registry, Tick(100 * S)), 64);
    limited(registry, Tick(101 * S));
    limited(registry, Tick(105 * S));
    assert_eq!(room(registry, Tick(105 * S)), 32);
    limited(registry, Tick(106 * S));
    assert_eq!(room(registry, Tick(106 * S)), 16);
}

#[test]
fn the_budget_grows_by_one_in_ten_quiet_seconds_up_to_the_ceiling() {
    let mut registries = Registries::new(&Settings {
        max_registry_pulls: 4,
        ..Settings::default()
    });
    let registry = registry(&mut registries);
    room(registry, Tick(100 * S));
    for second in 0..20 {
        limited(registry, Tick((100 + 5 * second) * S));
    }
    assert_eq!(room(registry, Tick(195 * S)), 1);
    assert_eq!(room(registry, Tick(204 * S)), 1);
    assert_eq!(room(registry, Tick(205 * S)), 2);
    assert_eq!(room(registry, Tick(9999 * S)), 4);
}

#[test]
fn a_ceiling_below_the_start_is_the_start_so_that_one_429_halves_it() {
    let settings = Settings {
        max_registry_pulls: 8,
        ..Settings::default()
    };
    let mut registries = Registries::new(&settings);
    let registry = registry(&mut registries);
    assert_eq!(room(registry, Tick(100 * S)), 8);
    limited(registry, Tick(101 * S));
    assert_eq!(room(registry, Tick(101 * S)), 4);
}

#[test]
fn a_host_with_a_ceiling_of_its_own_keeps_to_it_and_others_to_the_common_one() {
    let settings = Settings {
        initial_registry_pulls: 20,
        max_registry_pulls: 30,
        max_registry_pulls_by_host: [("r.test".to_owned(), 2), ("fast.test".to_owned(), 900)]
            .into(),
        ..Settings::default()
    };
    let mut registries = Registries::new(&settings);
    for (host, first, last) in [("r.test", 2, 2), ("fast.test", 20, 900), ("x.test", 20, 30)] {
        let id = registries.intern(host);
        let registry = registries.get_mut(id);
        registry.grow(Tick(0));
        assert_eq!(registry.room(), first, "{host}");
        assert_eq!(registry.room_now(Tick(9000 * S), 0, 1), last, "{host}");
    }
}

#[test]
fn a_registry_that_is_used_no_more_is_forgotten_when_its_budget_is_back_at_its_start() {
    let settings = Settings {
        max_registry_pulls_by_host: [("r.test".to_owned(), 4)].into(),
        ..Settings::default()
    };
    let mut registries = Registries::new(&settings);
    limited(registry(&mut registries), Tick(100 * S));
    let swept = |registries: &mut Registries, second| {
        let gone = registries.sweep(&IdSet::default(), Tick(second * S));
        gone.len()
    };
    assert_eq!(swept(&mut registries, 119), 0);
    assert_eq!(swept(&mut registries, 120), 1);
}

#[test]
fn long_pulls_leave_the_budget_but_count_against_the_ceiling() {
    let mut registries = Registries::new(&Settings {
        max_registry_pulls: 100,
        ..Settings::default()
    });
    let registry = registry(&mut registries);
    registry.take(64, Tick(0));
    assert_eq!(room(registry, Tick(100 * S)), 0);
    registry.leave(64);
    assert_eq!(room(registry, Tick(100 * S)), 36);
    registry.give_back(64, true);
    assert_eq!(room(registry, Tick(100 * S)), 64);
}

#[test]
fn the_most_urgent_node_is_served_first() {
    let mut registries = Registries::default();
    let registry = registry(&mut registries);
    assert_eq!(room(registry, Tick(100 * S)), 64);
    assert_eq!(registry.grows_at(), None, "nobody waits");
    let [one, two] = [1, 2].map(NodeIdx::from_index);
    registry.wait(0, one);
    registry.wait(7, two);
    assert_eq!(registry.grows_at(), Some(Tick(110 * S)));
    assert_eq!(registry.next_waiting(), Some(two));
    assert_eq!(registry.next_waiting(), Some(one));
    assert_eq!(registry.next_waiting(), None);
}

#[test]
fn a_new_leader_goes_on_where_the_one_before_was_also_with_registries_that_it_learns_of_later() {
    let mut registries = Registries::default();
    let registry = registry(&mut registries);
    let began = registry.take(64, Tick(0));
    assert_eq!(began.unproven, Some(64), "nothing is proven yet");
    registry.answered(1, began, Tick(S));
    registry.give_back(64, false);
    assert_eq!(registry.take(64, Tick(S)).unproven, None);
    limited(registry, Tick(S));
    registries.intern("quiet.test");
    let known = registries.known(9);
    let budget = KnownBudget {
        limit: 32,
        knee: Some(56),
    };
    assert_eq!(known, [("r.test".into(), budget)]);
    assert_eq!(registries.known(0), []);
    for host in ["a.test", "b.test"] {
        let id = registries.intern(host);
        let failing = registries.get_mut(id);
        failing.take(16, Tick(S));
        limited(failing, Tick(S));
    }
    assert_eq!(registries.known(9).len(), 3);
    assert_eq!(registries.known(1), known, "not the first by name");

    let mut next = Registries::default();
    next.intern("r.test");
    next.restore([known.clone(), vec![("late.test".into(), budget)]].concat());
    assert_eq!(next.known(9), known);
    let late = next.intern("late.test");
    assert_eq!(next.get(late).room(), 32);
    next.get_mut(late).grow(Tick(3600 * S));
    assert_eq!(next.get(late).room(), 32, "it was not used before");
}
