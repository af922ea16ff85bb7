//! Fail-open: deadlines hold, whoever leads, and also after nobody led.

use std::{
    thread,
    time::{Duration, Instant},
};

use kubefledged_e2e::{demo, fleet::OURS};

use crate::setup::{Gated, JOINER, KEY};

/// A registry that is away: its images may still come.
const AWAY: &str = "down.test:5002/demo/web:1.0";
const LIMIT: Duration = Duration::from_secs(240);
/// Creation times have whole seconds; the watch and the write take a moment.
const TOLERANCE: Duration = Duration::from_secs(4);

/// How long after the creation of its Node the node was released.
fn released_after(gated: &Gated, joining: &mut crate::setup::Joining) -> Duration {
    let created = joining
        .watch
        .until(LIMIT, "the Node is there", |_| true)
        .unwrap();
    let released = joining.watch.released(LIMIT).duration_since(created);
    let condition = &gated.node(JOINER)["status"]["conditions"];
    println!("released {released:?} after the creation of the Node: {condition}");
    released
}

#[test]
#[ignore = "a node joins: make test-gate"]
fn a_leader_that_is_killed_while_a_node_is_held_keeps_the_deadline() {
    let gated = Gated::both("gate");
    gated.require(&[demo("web"), AWAY.to_owned()], Some("60s"));
    let mut joining = gated.join(KEY);
    joining.watch.ready();
    joining.up();
    joining
        .watch
        .until(LIMIT, "the pull fails", |seen| {
            seen.condition == "False PullFailed"
        })
        .unwrap();
    let leader = gated.cluster.leader().unwrap();
    gated
        .cluster
        .signal_controller(&leader.pod, "KILL")
        .unwrap();
    gated.cluster.succeeded(&leader).unwrap();
    let after = released_after(&gated, &mut joining);
    let timeout = Duration::from_secs(60);
    assert!(
        after + Duration::from_secs(1) >= timeout && after < timeout + TOLERANCE,
        "{after:?}"
    );
    let told = gated.told(JOINER);
    assert!(told.iter().any(|text| text.contains(AWAY)), "{told:?}");
}

#[test]
#[ignore = "two minutes without a controller: make test-gate"]
fn nodes_are_released_on_time_although_no_controller_ran_for_two_minutes() {
    for (timeout, outage) in [(60, 120), (150, 120)] {
        let gated = Gated::both("gate");
        gated.require(
            &[demo("web"), AWAY.to_owned()],
            Some(&format!("{timeout}s")),
        );
        let mut joining = gated.join(KEY);
        joining.watch.ready();
        joining.up();
        scale(&gated, 0);
        let down = Instant::now();
        thread::sleep(Duration::from_secs(outage));
        let held = gated.node(JOINER)["spec"]["taints"].to_string();
        assert!(held.contains(KEY), "nobody released it meanwhile: {held}");
        scale(&gated, 2);
        let back = down.elapsed();
        let after = released_after(&gated, &mut joining);
        println!("time-out {timeout} s, controllers were away for {back:?}");
        let timeout = Duration::from_secs(timeout);
        assert!(after + Duration::from_secs(1) >= timeout, "{after:?}");
        // Who comes back takes the Lease first.
        let latest = timeout.max(back + Duration::from_secs(30)) + TOLERANCE;
        assert!(after < latest, "{after:?}");
    }
}

fn scale(gated: &Gated, replicas: usize) {
    let scale = format!("scale deployment/kubefledged-controller -n {OURS} --replicas={replicas}");
    gated.cluster.kubectl(&scale).unwrap();
    gated.cluster.ready("controller", replicas).unwrap();
}
