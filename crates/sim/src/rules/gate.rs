//! What must hold of the node gate.

use std::{collections::BTreeSet, time::Duration};

use kubefledged_api_types::names::IMAGES_NOT_CACHED_TAINT;
use kubefledged_engine::{CacheObject, FailureClass, GateReason, NodeFacts, NodeName, PlacedTaint};

use super::{View, excluded, surely_wants, wanted};
use crate::{
    script::Trouble,
    world::{Event, World},
};

/// How often it is seen whether nodes are held that are not to be, in ms.
const LOOK: u64 = 5_000;
/// How long such a node may be held while nothing is wrong, in ms.
const HELD: u64 = 15_000;
/// Nothing was wrong for so long before it counts, in ms: back-offs are over, and nodes are checked.
const QUIET: u64 = 120_000;
/// The same for a leader before deadlines count, in ms.
const SETTLED: u64 = 20_000;
/// The longest back-off of a write to a Node, in ms.
const BACK_OFF: u64 = 80_000;
/// A node is written at most so often in [`WINDOW`].
const MOST_WRITES: usize = 60;
const WINDOW: u64 = 600_000;
/// Clocks are told in seconds, in ms.
const ROUNDED: u64 = 1_000;

/// A Node as a controller saw it first.
#[derive(Clone, Debug)]
pub struct FirstSight {
    uid: String,
    at: u64,
    /// Its age by the controller's clock, in ms.
    age: u64,
}

impl View {
    /// Notes when a Node is told for the first time. `wall`: the controller's clock, in seconds.
    pub fn sees(&mut self, node: &NodeName, facts: &NodeFacts, now: u64, wall: i64) {
        let known = self.first.get(node);
        if known.is_some_and(|known| known.uid == facts.uid) {
            return;
        }
        let created = facts.created.map_or(wall, |created| created.0);
        let age = u64::try_from(wall - created).unwrap_or(0) * 1000;
        let uid = facts.uid.clone();
        self.first
            .insert(node.clone(), FirstSight { uid, at: now, age });
    }

    /// Until when this cache may hold a node, in ms.
    fn deadline(&self, node: &NodeName, object: &CacheObject, flag: Duration) -> u64 {
        let Some(first) = self.first.get(node) else {
            return 0;
        };
        let timeout = object
            .spec
            .node_gate_timeout
            .map_or(flag, |timeout| timeout.0);
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        first.at + timeout.saturating_sub(first.age)
    }

    /// Names that surely hold a node now: of gating caches, absent or not looked at, and not failed for good.
    fn lacks(&self, node: &NodeName, now: u64, flag: Duration) -> BTreeSet<String> {
        let Some(facts) = self.nodes.get(node) else {
            return BTreeSet::new();
        };
        if excluded(facts) {
            return BTreeSet::new();
        }
        let gating = self.caches.values().filter(|object| {
            object.spec.gates_nodes()
                && !object.spec.suspend
                && self.deadline(node, object, flag) > now + ROUNDED
        });
        let names = gating.flat_map(|object| {
            let names = wanted(object, facts).into_iter();
            names.filter(|name| surely_wants(object, facts, name))
        });
        let lacking = names.filter(|name| {
            let at = (node.clone(), name.clone());
            self.present.get(&at) != Some(&true) && !self.hopeless.contains(&at)
        });
        lacking.collect()
    }
}

/// Does a failure of this reason let a node go?
pub fn is_hopeless(reason: &str) -> bool {
    matches!(
        FailureClass::of(reason),
        FailureClass::Permanent
            | FailureClass::NotFound
            | FailureClass::WrongPlatform
            | FailureClass::Unauthorized
    )
}

impl World {
    /// A controller asks to remove taints from a Node.
    pub fn check_untaint(&mut self, who: usize, node: &NodeName, taints: &[PlacedTaint]) {
        if let Some(other) = taints
            .iter()
            .find(|taint| *taint.key != *IMAGES_NOT_CACHED_TAINT)
        {
            let told = format!("c{who} removes {other:?} from {node}");
            self.broken("other people's taints survive", told);
        }
        self.check_released(who, node);
        self.note_write(node);
    }

    /// A controller asks to set the condition of a Node.
    pub fn check_condition(&mut self, who: usize, node: &NodeName, reason: GateReason) {
        if !reason.holds() {
            self.check_released(who, node);
        }
        self.note_write(node);
    }

    fn check_released(&mut self, who: usize, node: &NodeName) {
        let flag = self.gate_settings().timeout;
        let lacks = self.controllers[who].view.lacks(node, self.now, flag);
        if !lacks.is_empty() {
            let told = format!("c{who} releases {node} without {lacks:?}");
            self.broken("no cold node is released", told);
        }
    }

    fn note_write(&mut self, node: &NodeName) {
        let since = self.now.saturating_sub(WINDOW);
        let writes = self.gates.writes.entry(node.clone()).or_default();
        writes.retain(|at| *at > since);
        writes.push(self.now);
        let count = writes.len();
        if count > MOST_WRITES {
            let told = format!("{count} writes to {node} in ten minutes");
            self.broken("no storm of writes to Nodes", told);
        }
    }

    /// What a write did to a Node.
    pub fn check_others(&mut self, node: &NodeName, before: &NodeFacts, after: &NodeFacts) {
        let others = |facts: &NodeFacts| {
            let mut taints = facts.taints.clone();
            taints.retain(|taint| taint.key != IMAGES_NOT_CACHED_TAINT);
            (
                taints,
                facts.labels.clone(),
                facts.ready,
                facts.unschedulable,
            )
        };
        if others(before) != others(after) {
            let told = format!("{node}: {before:?} became {after:?}");
            self.broken("other people's taints survive", told);
        }
    }

    /// Looks whether nodes are held that are not to be, while nothing is wrong that matters and somebody leads.
    pub fn check_gates(&mut self) {
        self.after(LOOK, Event::Gate);
        let now = self.now;
        let calm =
            |since: Option<u64>, quiet: bool| since.filter(|_| quiet).or(quiet.then_some(now));
        let api = !self.troubles.iter().any(is_of_the_api);
        let gates = &mut self.gates;
        gates.quiet_since = calm(gates.quiet_since, self.troubles.is_empty());
        gates.api_since = calm(gates.api_since, api);
        for who in 0..self.controllers.len() {
            let held = self.held_wrongly(who);
            let since = &mut self.gates.held_since;
            since.retain(|(known, node), _| *known != who || held.contains(node));
            for node in held {
                let since = *since.entry((who, node.clone())).or_insert(now);
                if since + HELD < now {
                    let told = format!("{node} is warm or old for c{who} since {since}");
                    return self.broken("a node is not held for longer than it must", told);
                }
            }
        }
    }

    /// Nodes with our taint whose deadlines are over, or whose images are all there while nothing is wrong, as far as
    /// this leader was told.
    fn held_wrongly(&self, who: usize) -> BTreeSet<NodeName> {
        let controller = &self.controllers[who];
        let calm =
            |since: Option<u64>, wait: u64| since.is_some_and(|since| since + wait <= self.now);
        let undisturbed = |wait: u64| {
            controller.disturbed + wait <= self.now && controller.paused_until <= self.now
        };
        if !controller.leads() || !undisturbed(SETTLED) || !calm(self.gates.api_since, BACK_OFF) {
            return BTreeSet::new();
        }
        let quiet = undisturbed(QUIET) && calm(self.gates.quiet_since, QUIET);
        let ours = |facts: &NodeFacts| {
            let mut taints = facts.taints.iter();
            taints.any(|taint| taint.key == IMAGES_NOT_CACHED_TAINT)
        };
        let flag = self.gate_settings().timeout;
        let view = &controller.view;
        let due = view.nodes.iter().filter(|(name, facts)| {
            let mut machines = self.nodes.iter();
            let machine = machines.find(|node| node.name == **name);
            let calm = machine
                .is_some_and(|node| node.disturbed + QUIET <= self.now && node.process.is_some());
            ours(facts) && view.may_go(name, self.now, flag, quiet && calm)
        });
        due.map(|(name, _)| name.clone()).collect()
    }
}

/// Does this keep a leader from writing to Nodes, or from hearing of them?
fn is_of_the_api(trouble: &Trouble) -> bool {
    matches!(
        trouble,
        Trouble::Conflicts
            | Trouble::WritesFail
            | Trouble::AnswersLost
            | Trouble::ApiSlow
            | Trouble::ApiUnreachable(_)
            | Trouble::WatchBroken(..)
            | Trouble::ListsStale
    )
}

impl View {
    /// Is for every gating cache the time over, or, if `warm` counts, every image on this node?
    fn may_go(&self, node: &NodeName, now: u64, flag: Duration, warm: bool) -> bool {
        let Some(facts) = self.nodes.get(node) else {
            return false;
        };
        let gating = self.caches.values();
        let mut gating = gating.filter(|object| object.spec.gates_nodes() && !object.deleting);
        gating.all(|object| {
            let there =
                |name: &String| self.present.get(&(node.clone(), name.clone())) == Some(&true);
            self.deadline(node, object, flag) + ROUNDED < now
                || (warm && wanted(object, facts).iter().all(there))
        })
    }
}
