//! How a budget grows and shrinks.

use super::*;
use crate::ids::Index;

const MIB: u64 = 1 << 20;

fn node(number: usize) -> NodeIdx {
    NodeIdx::from_index(number)
}

fn unproven(pulls: u32) -> Began {
    Began {
        at: Tick(0),
        unproven: Some(pulls),
    }
}

/// The registry answers `rate` pulls a second, or as many as are under way in `takes`, for so many milliseconds.
fn run(growth: &mut Growth, from: u64, ms: u64, takes: u64, rate: impl Fn(u32) -> u64) -> u64 {
    let mut owed = 0;
    for now in from..from + ms {
        owed += (u64::from(growth.limit()) * 1000 / takes).min(rate(growth.limit()));
        while owed >= 1000 {
            owed -= 1000;
            growth.answered(Tick(now), MIB, unproven(growth.limit()), true);
        }
    }
    from + ms
}

#[test]
fn it_doubles_in_two_seconds_while_answers_are_good_and_more_comes() {
    let mut growth = Growth::new(64, 512);
    let now = run(&mut growth, 0, 2_200, 50, |_| u64::MAX);
    assert!((116..=140).contains(&growth.limit()), "{}", growth.limit());
    run(&mut growth, now, 5_500, 50, |_| u64::MAX);
    assert_eq!(growth.limit(), 512);
    assert!(growth.is_proven(512));
}

#[test]
fn pulls_that_take_long_let_it_double_in_their_time_and_not_faster() {
    let mut growth = Growth::new(64, 512);
    run(&mut growth, 0, 8_000, 10_000, |_| u64::MAX);
    assert!((90..=140).contains(&growth.limit()), "{}", growth.limit());
}

#[test]
fn it_does_not_double_while_nobody_waits() {
    let mut growth = Growth::new(64, 512);
    for now in 0..9_000 {
        growth.answered(Tick(now), MIB, Began::default(), false);
    }
    assert_eq!(growth.limit(), 64);
}

#[test]
fn it_returns_to_where_more_pulls_brought_no_more_and_tries_again_after_minutes() {
    let mut growth = Growth::new(16, 4096);
    // 1,000 a second, which 50 pulls at a time reach.
    let now = run(&mut growth, 0, 30_000, 50, |_| 1_000);
    let limit = growth.limit();
    assert!((32..=131).contains(&limit), "{limit}");
    let now = run(&mut growth, now, 100_000, 50, |_| 1_000);
    assert!(growth.limit() <= limit + 12, "{}", growth.limit());
    run(&mut growth, now, 200_000, 50, |_| u64::MAX);
    assert!(growth.limit() > 1_000, "{}", growth.limit());
}

#[test]
fn after_a_refusal_it_halves_doubles_to_just_below_it_and_then_grows_slowly() {
    let mut growth = Growth::new(64, 512);
    let now = run(&mut growth, 0, 4_000, 50, |_| u64::MAX);
    let before = growth.limit();
    growth.refused(Tick(now), before, unproven(before));
    assert_eq!(growth.limit(), before / 2);
    assert!(!growth.is_proven(before));
    let now = run(&mut growth, now, 3_000, 50, |_| u64::MAX);
    assert_eq!(growth.limit(), before - before / 8);
    run(&mut growth, now, 30_000, 50, |_| u64::MAX);
    assert!((3..=4).contains(&(growth.limit() - (before - before / 8))));
}

#[test]
fn of_pulls_that_began_together_the_first_that_was_refused_tells_the_limit() {
    let mut growth = Growth::new(64, 512);
    for began in (42..=64).step_by(2) {
        growth.refused(Tick(50), 64, unproven(began));
    }
    for began in (2..=40).step_by(2) {
        growth.answered(Tick(60), MIB, unproven(began), false);
    }
    assert_eq!(growth.limit(), 32);
    assert!(growth.is_proven(32) && !growth.is_proven(33));
    run(&mut growth, 60, 3_000, 20, |_| u64::MAX);
    assert_eq!(growth.limit(), 37);
}

#[test]
fn of_pulls_that_arrive_together_any_is_refused_and_not_less_than_the_half_is_blamed() {
    let mut growth = Growth::new(64, 512);
    for began in [64, 20, 48] {
        growth.refused(Tick(50), 64, unproven(began));
    }
    assert_eq!(growth.limit(), 32, "not the 18 below the 20th pull");
    run(&mut growth, 60, 3_000, 20, |_| u64::MAX);
    assert_eq!(growth.limit(), 32);
}

#[test]
fn a_pull_that_began_after_it_was_halved_and_is_refused_halves_it_again_at_once() {
    let mut growth = Growth::new(256, 512);
    growth.refused(Tick(100), 256, Began::default());
    growth.refused(Tick(200), 128, unproven(200));
    assert_eq!(growth.limit(), 128, "it began before");
    let after = Began {
        at: Tick(150),
        unproven: None,
    };
    growth.refused(Tick(200), 128, after);
    assert_eq!(growth.limit(), 64);
    growth.refused(Tick(300), 64, after);
    assert_eq!(growth.limit(), 64, "that was before, too");
}

#[test]
fn failures_that_become_more_halve_it_once_and_a_steady_share_does_not() {
    let mut growth = Growth::new(64, 64);
    let mut now = 0;
    let mut seconds = |growth: &mut Growth, count: u64, failing: u64, nodes: usize| {
        for _ in 0..count * 100 {
            now += 10;
            if now / 10 % 100 < failing {
                let failed = node(usize::try_from(now).unwrap() % nodes);
                growth.failed(Tick(now), failed, false, growth.limit());
            } else {
                growth.answered(Tick(now), MIB, Began::default(), false);
            }
        }
        growth.limit()
    };
    assert_eq!(seconds(&mut growth, 20, 0, 7), 64, "none fails");
    assert_eq!(seconds(&mut growth, 20, 5, 7), 64, "few fail");
    assert_eq!(seconds(&mut growth, 9, 40, 1), 64, "one node only");
    assert_eq!(seconds(&mut growth, 20, 0, 7), 64, "none fails again");
    assert_eq!(seconds(&mut growth, 4, 40, 7), 32, "many fail");
    let limit = seconds(&mut growth, 60, 40, 7);
    assert!((33..=40).contains(&limit), "{limit}");
}

#[test]
fn a_new_leader_goes_on_with_what_was_proven_and_keeps_the_knee() {
    let mut growth = Growth::new(64, 512);
    assert_eq!(growth.known(64), None);
    let now = run(&mut growth, 0, 4_000, 50, |_| u64::MAX);
    let known = growth.known(64).unwrap();
    assert!(known.limit > 200 && known.knee.is_none(), "{known:?}");
    growth.refused(Tick(now), known.limit, Began::default());
    let known = growth.known(64).unwrap();
    let mut next = Growth::new(64, 512);
    next.restore(known);
    assert_eq!((next.limit(), next.known(64)), (known.limit, Some(known)));
    assert!(next.is_proven(known.limit));
    // Somebody wrote nonsense.
    for (limit, left) in [(0, 1), (u32::MAX, 512)] {
        next.restore(KnownBudget {
            limit,
            knee: Some(0),
        });
        assert_eq!(next.limit(), left);
    }
}

#[test]
fn what_the_leader_before_knew_grows_from_its_first_use_on() {
    let mut growth = Growth::new(64, 512);
    growth.restore(KnownBudget {
        limit: 18,
        knee: Some(20),
    });
    let hours = 5 * 3600 * 1000;
    assert_eq!(growth.limit_at(Tick(hours)), 18);
    growth.grow(Tick(hours));
    assert_eq!(growth.limit_at(Tick(hours + 10_000)), 19);
    run(&mut growth, hours, 9_000, 50, |_| u64::MAX);
    assert_eq!(growth.limit(), 20, "up to the knee and no further");
}

#[test]
fn time_alone_lets_it_grow_although_it_was_never_proven() {
    let mut growth = Growth::new(64, 512);
    growth.grow(Tick(0));
    assert_eq!(growth.limit_at(Tick(100_000)), 74);
    growth.grow(Tick(100_000));
    assert_eq!(growth.known(64), None, "nobody used it");
}
