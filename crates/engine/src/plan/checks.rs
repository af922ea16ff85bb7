//! What a node is asked about. Nothing is pulled before a check: an image that is present costs no registry
//! anything, and a node that does not answer takes no budget.

use super::{
    context::{NodeContext, NodeView},
    node_plan::{MAX_IMAGES, PlannedCheck},
};
use crate::{
    ids::{CacheIdx, IdSet, Stamp},
    model::{cache::Cache, desired::DesiredImage, observations::Oldest},
    vocabulary::Tick,
};

/// What planning decides about checks.
pub enum CheckDecision {
    /// Nothing has to be checked.
    None,
    /// The puller's report is needed, and may be asked for again at this time.
    ReportAt(Option<Tick>),
    /// Check now.
    Now(PlannedCheck),
}

impl<'m> NodeView<'m> {
    /// Observations of a cache's images must be at least this new.
    pub fn check_since(&self, cache: &Cache) -> Stamp {
        let node = self.node.instance.since.max(self.node.checks.since);
        let cache = cache.pulls_since(self.idx).max(cache.refresh.since());
        node.max(cache).unwrap_or(Stamp::FIRST)
    }

    /// Plans the check of a node. `stale`: caches that compute the node's status anew.
    pub fn plan_check(&self, stale: &[CacheIdx], context: &NodeContext) -> CheckDecision {
        if context.check {
            return CheckDecision::None;
        }
        let due = self.due_checks(stale, context);
        let unpins = self.model.caches.values().map(|cache| cache.unpin);
        let unpinned = unpins.map(|unpin| unpin.map(|unpin| unpin.since)).max();
        let report_since = self.node.instance.since.max(unpinned.flatten());
        let runtime = &self.node.runtime;
        let needs_report = runtime.reported < report_since;
        // A puller that did not answer is asked until it does, even if nothing has to be known of its
        // node: otherwise its silence would say nothing of today.
        let silent = self.node.contact.silent_since.is_some();
        if due.is_empty() && !silent && !(needs_report && runtime.may_ask(self.now)) {
            return if needs_report {
                CheckDecision::ReportAt(runtime.retry_at)
            } else {
                CheckDecision::None
            };
        }
        let due = due.into_iter();
        let (images, references) = due
            .map(|desired| (desired.image, desired.reference.clone()))
            .unzip();
        CheckDecision::Now(PlannedCheck { images, references })
    }

    /// Images to check, each once, sorted.
    fn due_checks(&self, stale: &[CacheIdx], context: &NodeContext) -> Vec<&'m DesiredImage> {
        let eligible = self.node.eligibility().is_ok();
        let mut due: Vec<&DesiredImage> = Vec::new();
        let (mut chosen, mut count) = (IdSet::default(), 0);
        for cache in stale.iter().map(|at| &self.model.caches[*at]) {
            if count == MAX_IMAGES {
                break;
            }
            if !eligible && !cache.desired.pinned {
                continue;
            }
            let since = self.check_since(cache);
            let last = cache.row(self.idx);
            if last.summed.is_some() && last.checked >= Some(since) {
                // Observations only become newer.
                continue;
            }
            let desired = &cache.set(self.idx).desired;
            let images = desired.iter().map(|desired| desired.image);
            match self.node.observed.oldest(images) {
                Oldest::At(oldest) if oldest < Some(since) => {}
                Oldest::At(_) | Oldest::NoImage => continue,
            }
            for desired in desired {
                if count == MAX_IMAGES {
                    break;
                }
                let image = desired.image;
                let busy = context.pulling.contains(image) || context.removing.contains(image);
                if !busy
                    && self.node.observed.get(image).checked < Some(since)
                    && self.model.names.images.get(image).invalid.is_none()
                {
                    count += usize::from(!chosen.contains(image));
                    chosen.insert(image);
                    due.push(desired);
                }
            }
        }
        // Of several caches with one image the last one's spelling counts. The sort keeps their order.
        due.sort_by_key(|desired| desired.image);
        due.dedup_by(|later, kept| {
            let same = later.image == kept.image;
            if same {
                *kept = *later;
            }
            same
        });
        due
    }
}
