//! Whether a cache holds a node: computed from the same pairs as the node's status.

use kubefledged_api_types::GateReason;

use super::{pairs::Fault, status::Assessor};
use crate::{
    ids::Stamp,
    model::{
        cache::Cache,
        desired::ImageSet,
        facts::{Facts, NodePlacement},
        node_status::{Flags, NodeStatus},
    },
    vocabulary::{Ineligible, Tick},
};

impl Assessor<'_, '_> {
    /// Sets what the cache says of the node's gate.
    pub(super) fn assess_gate(&self, cache: &Cache, set: &ImageSet, status: &mut NodeStatus) {
        status.gate = Some(GateReason::NothingToCache);
        let (settings, node) = (&self.view.model.settings.gate, self.view.node);
        let Some(facts) = node.facts.as_ref().filter(|_| settings.is_on()) else {
            return;
        };
        let opening = cache.reads_workloads();
        if !cache.gates_nodes() || self.gets_no_images(facts) || (set.is_empty() && !opening) {
            return;
        }
        let timeout = cache.spec().node_gate_timeout;
        let timeout = timeout.map_or(settings.timeout, |timeout| timeout.0);
        let deadline = facts.gate.deadline(timeout);
        if opening && deadline > self.view.now {
            // Workloads may name images for it.
            status.gate = None;
            status.wake_at(deadline);
            return;
        }
        status.gate = self.gate(set, deadline);
        if status.gate.is_none_or(GateReason::holds) {
            status.wake_at(deadline);
            let waits = settings.condition || !facts.gate.taints.is_empty();
            status.flags.set(Flags::HOLDS, waits);
            if let Some(silent) = node.contact.silent_since {
                let grace = self.view.model.settings.puller_grace;
                let silent_at = silent.after(grace);
                if silent_at > self.view.now {
                    status.wake_at(silent_at);
                }
            }
        }
    }

    /// Is the node none that images go to, whatever happens to it? A node that is not ready, cordoned, or tainted by
    /// somebody else, may get them later.
    fn gets_no_images(&self, facts: &Facts) -> bool {
        let barred = matches!(
            facts.eligible,
            Err(Ineligible::Excluded | Ineligible::Virtual | Ineligible::OtherSystem)
        );
        barred || (facts.placement == NodePlacement::NotSelected && self.view.node.puller.is_none())
    }

    /// What a cache that gates the node says; `None`: it is not known, because the node was not checked since it joined,
    /// or since this process began to lead.
    fn gate(&self, set: &ImageSet, deadline: Tick) -> Option<GateReason> {
        let (view, node) = (self.view, self.view.node);
        let since = node.gate.since.max(node.instance.since);
        let checked = self.oldest_check(set);
        let checked = checked.is_some() && checked >= since.max(Some(Stamp::FIRST));
        let missing = set.desired.len() - node.observed.count_present(&set.images);
        if checked && missing == 0 {
            return Some(GateReason::ImagesCached);
        }
        if deadline <= view.now {
            return Some(GateReason::ReleasedByTimeout);
        }
        if view.unreachable() {
            return Some(GateReason::PullerUnavailable);
        }
        if !checked {
            return None;
        }
        let absent = set.desired.iter();
        let absent = absent.filter(|desired| !node.observed.holds(desired.image));
        let faults: Vec<_> = absent
            .map(|desired| view.pair(desired, false).fault)
            .collect();
        // Whether an operation tries again does not matter: the node is not held for that.
        let lasting = |fault: &Option<Fault<'_>>| fault.is_some_and(|fault| fault.stays(None));
        Some(if faults.iter().all(lasting) {
            GateReason::ReleasedAfterFailure
        } else if faults.iter().any(Option::is_some) {
            GateReason::PullFailed
        } else if self.context.pulling.is_disjoint(&set.images) {
            GateReason::ImagesMissing
        } else {
            GateReason::Pulling
        })
    }
}
