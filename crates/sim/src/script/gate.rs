//! The node gate in a day: which caches nodes wait for, and what others do to Nodes. It has a source of chance of its
//! own, so that days without it are as they were.

use std::time::Duration;

use kubefledged_api_types::{GoDuration, NodeGate};

use super::{Action, DAY, Step, Trouble};
use crate::{
    registry::HOSTS,
    rng::{Rng, mix},
};

/// Time-outs that users write, in seconds. The flag says 300.
const TIMEOUTS: [u64; 3] = [60, 120, 600];

/// Adds the node gate to some days; true: to this one.
pub fn add(seed: u64, nodes: usize, steps: &mut Vec<Step>) -> bool {
    let mut rng = Rng::new(mix(seed ^ 0x6a7e));
    if !rng.percent(30) {
        return false;
    }
    for step in steps.iter_mut() {
        if let Action::Apply(_, spec) = &mut step.action
            && rng.percent(70)
        {
            spec.node_gate = Some(NodeGate::Required);
            let timeout = Duration::from_secs(*rng.pick(&TIMEOUTS));
            spec.node_gate_timeout = rng.percent(50).then_some(GoDuration(timeout));
        }
    }
    for _ in 0..rng.between(0, 8) {
        let (at, node) = (rng.below(DAY), rng.index(nodes + 1));
        let action = match rng.below(4) {
            0 => Action::Taint(node, true),
            1 => Action::Taint(node, false),
            2 => Action::Retaint(node),
            _ => Action::DropCondition(node),
        };
        steps.push(Step { at, action });
    }
    // A machine is replaced: the same name, another Node, perhaps with the old disk.
    for _ in 0..rng.between(1, 3) {
        let (at, node) = (rng.below(DAY - 120_000), rng.index(nodes));
        let back = at + rng.between(1, 60_000);
        let action = Action::Leave(node);
        steps.push(Step { at, action });
        let action = Action::Rejoin(node, rng.percent(50));
        steps.push(Step { at: back, action });
    }
    if rng.percent(50) {
        outage(&mut rng, nodes, steps);
    }
    true
}

/// A machine is replaced while no registry answers, and both controllers begin anew while its Node is held: its
/// deadline stays what it was.
fn outage(rng: &mut Rng, nodes: usize, steps: &mut Vec<Step>) {
    let begun = rng.below(DAY - 400_000) + 1_000;
    let node = rng.index(nodes);
    let mut push = |at: u64, action| steps.push(Step { at, action });
    for host in 0..HOSTS.len() {
        let trouble = Trouble::RegistryDown(host);
        push(begun, Action::Trouble(trouble, 380_000));
    }
    push(begun - 1_000, Action::Leave(node));
    push(begun + 1_000, Action::Rejoin(node, true));
    for who in 0..2 {
        push(begun + 45_000, Action::Crash(who, 1_000));
    }
}
