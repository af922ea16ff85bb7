//! What must hold of the node itself: its disk, its pins, and pulls that end late.

use kubefledged_queue::{Call, PinResult, RemoveOutcome, RemoveResult, StreamId};

use crate::{
    runtime::Flavor,
    script::Trouble,
    world::{Event, World},
};

/// Percent of the disk in use from which on no pull runs on: the watermark and 3.
const STOPPED_AT: u64 = 83;
/// For how long a pull may run on above it, in ms: the disk is looked at every 3 s.
const RUNS_ON: u64 = 5_000;
/// Longest look at the disk of a runtime that is not slow, in ms.
const SLOW: u64 = 1_000;
/// Between two looks of this rule, in ms.
const LOOK: u64 = 500;

impl World {
    /// No pull runs on for more than some seconds above the watermark and 3. Looks again while the disk is troubled.
    pub fn check_room(&mut self, node: usize) {
        let now = self.now;
        let disk = self.disk(node);
        let used = disk.capacity - disk.available;
        let over = used * 100 / disk.capacity >= STOPPED_AT;
        let well = !self.hides_disk(node) && self.nodes[node].runtime.away_until <= now;
        let mut ran_on = None;
        if let Some(process) = &mut self.nodes[node].process {
            let mut calls = process.calls.values();
            // Begun while the runtime was slow.
            let slow = calls.any(|known| known.call == Call::FsInfo && known.takes > SLOW);
            for running in process.calls.values_mut() {
                let pulls = matches!(running.call, Call::Pull(..)) && !running.cancelled;
                if !(pulls && over && well && !slow) {
                    running.over_since = None;
                    continue;
                }
                let since = *running.over_since.get_or_insert(now);
                if now > since + RUNS_ON {
                    ran_on = Some(format!("n{node}: {:?} since {since}", running.call));
                }
            }
        }
        if let Some(ran_on) = ran_on {
            self.broken("no pull runs on while it fills the disk", ran_on);
        }
        if self.disk_is_troubled(node) {
            self.after(LOOK, Event::Room(node));
        }
    }

    fn disk_is_troubled(&self, node: usize) -> bool {
        use Trouble as T;
        self.troubles.iter().any(|trouble| {
            matches!(trouble, T::DiskFills(n) | T::DiskTight(n) | T::DiskFull(n) if *n == node)
        })
    }

    /// Is something wrong for which a puller cannot see the disk, or sees it late?
    fn hides_disk(&self, node: usize) -> bool {
        use Trouble as T;
        self.troubles.iter().any(|trouble| {
            matches!(trouble,
                T::RuntimeSlow(n)
                | T::RuntimeErrs(n)
                | T::EffectsUntold(n) if *n == node)
        })
    }

    /// What a puller says of pins. Its runtime shows them late, and that is no reason to say that it has none.
    pub fn check_pins<'a>(&mut self, node: usize, mut told: impl Iterator<Item = &'a PinResult>) {
        let can = self.nodes[node].runtime.flavor == Flavor::Containerd2;
        if can && told.any(|pin| *pin == PinResult::Unsupported) {
            self.broken("what can pin is not said to be unable", format!("n{node}"));
        }
    }

    /// What became of a removal. What is gone does not come back by a pull that was cancelled before, what a container
    /// mounts is kept and no failure, and our own pin, which the runtime still shows, keeps nothing.
    pub fn check_removed(&mut self, node: usize, stream: StreamId, outcomes: &[RemoveOutcome]) {
        let machine = &self.nodes[node];
        let Some(process) = &machine.process else {
            return;
        };
        let asked = process.seen.removals.get(&stream);
        let runtime = &machine.runtime;
        let pinned = |name: &String| {
            let held = runtime.resolve(name).and_then(|id| runtime.images.get(&id));
            held.is_none_or(|held| held.pinned || held.labelled)
        };
        let mut wrong = None;
        for outcome in outcomes {
            let name = asked.and_then(|asked| asked.names.get(outcome.index));
            let mut late = machine.late_ends.iter();
            match (&outcome.result, name) {
                (RemoveResult::Removed | RemoveResult::Absent, Some(name))
                    if late.any(|(known, at)| known == name && *at > self.now) =>
                {
                    wrong = Some(("what was removed does not come back", name.clone()));
                }
                (RemoveResult::Kept { message, .. }, Some(name))
                    if message.contains("somebody else pinned") && !pinned(name) =>
                {
                    wrong = Some(("nothing is kept by a pin that was taken off", name.clone()));
                }
                (RemoveResult::Failed { message, .. }, _) if message.contains("in use") => {
                    wrong = Some(("what a container mounts is kept", message.clone()));
                }
                _ => {}
            }
        }
        if let Some((rule, told)) = wrong {
            self.broken(rule, format!("n{node}: {told}"));
        }
    }
}
