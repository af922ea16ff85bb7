//! The disk of a node: what others have on it, and what pulls that run have brought so far.

use std::collections::BTreeMap;

use kubefledged_queue::{Bytes, Call, Disk, Progress};

use crate::{
    node::{Plan, Running},
    runtime::Runtime,
    script::Trouble,
    world::World,
};

/// What others have on it, in MB, of 10,000.
const OTHERS: u64 = 5_000;
/// The same when it is full: the smaller images still fit, if they are the first.
const OTHERS_FULL: u64 = 9_950;
/// The same just below the watermark: a large image crosses what pulls may use.
const OTHERS_TIGHT: u64 = 7_900;
/// Others that fill it leave so much.
const OTHERS_MOST: u64 = 9_700;
/// What they write in a second.
const FILLS: u64 = 60;
/// Bytes per second of a registry that drips.
const DRIP: u64 = 100;

impl World {
    /// The disk of a node now, with what the pulls under way have brought.
    pub fn disk(&self, node: usize) -> Disk {
        let machine = &self.nodes[node];
        let calls = machine.process.iter().flat_map(|p| p.calls.values());
        let arrived = calls.map(|running| self.arrived(&machine.runtime, running));
        machine
            .runtime
            .disk(self.others(node) + arrived.sum::<u64>())
    }

    fn others(&self, node: usize) -> u64 {
        let mut others = OTHERS;
        if self.is(Trouble::DiskFills(node)) {
            let seconds = (self.now - self.nodes[node].fills_since) / 1_000;
            others = (others + FILLS * seconds).min(OTHERS_MOST);
        }
        if self.is(Trouble::DiskTight(node)) {
            others = others.max(OTHERS_TIGHT);
        }
        if self.is(Trouble::DiskFull(node)) {
            others = OTHERS_FULL;
        }
        others
    }

    /// MB that a pull has brought.
    fn arrived(&self, runtime: &Runtime, running: &Running) -> u64 {
        match (&running.call, &running.plan) {
            (Call::Pull(..), Plan::Succeed(Some(manifest))) => {
                let lacks = manifest.lacks(&runtime.layers());
                lacks * self.went(running) / running.takes.max(1)
            }
            _ => 0,
        }
    }

    /// For how long it has run, at most as long as it takes.
    fn went(&self, running: &Running) -> u64 {
        (self.now - running.since).min(running.takes)
    }

    /// How far the pulls of these names are. A pull that hangs stands at half; of one that has no answer,
    /// nothing is to be seen.
    pub fn bytes(&self, node: usize, names: &[String]) -> BTreeMap<String, Progress> {
        let runtime = &self.nodes[node].runtime;
        let calls = self.nodes[node]
            .process
            .iter()
            .flat_map(|p| p.calls.values());
        let pulls = calls.filter_map(|running| match &running.call {
            Call::Pull(name, ..) if names.contains(name) => {
                let went = self.went(running);
                let (done, total) = match &running.plan {
                    Plan::Silent => return None,
                    Plan::Drip => ((self.now - running.since) * DRIP / 1_000, 20 << 20),
                    Plan::Hang => (running.takes / 2, running.takes),
                    Plan::Succeed(Some(manifest)) => {
                        let lacks = manifest.lacks(&runtime.layers()) << 20;
                        (lacks / running.takes.max(1) * went, lacks)
                    }
                    _ => (went, running.takes),
                };
                let bytes = Bytes {
                    done,
                    total,
                    active: true,
                };
                Some((name.clone(), bytes.into()))
            }
            _ => None,
        });
        pulls.collect()
    }
}
