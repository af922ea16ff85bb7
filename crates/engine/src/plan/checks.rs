//! What a node is asked about. Nothing is pulled before a check: an image that is present costs no registry
//! anything, and a node that does not answer takes no budget.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    context::{NodeContext, NodeView},
    node_plan::{MAX_IMAGES, PlannedCheck},
};
use crate::{
    ids::{CacheIdx, ImageId, Stamp},
    model::{cache::Cache, observations::Oldest},
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

impl NodeView<'_> {
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
        if due.is_empty() && !(needs_report && runtime.may_ask(self.now)) {
            return if needs_report {
                CheckDecision::ReportAt(runtime.retry_at)
            } else {
                CheckDecision::None
            };
        }
        let (images, references): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        CheckDecision::Now(PlannedCheck { images, references })
    }

    fn due_checks(&self, stale: &[CacheIdx], context: &NodeContext) -> BTreeMap<ImageId, Arc<str>> {
        let eligible = self.node.eligibility().is_ok();
        let mut due = BTreeMap::new();
        for cache in stale.iter().map(|at| &self.model.caches[*at]) {
            if !eligible && !cache.desired.pinned {
                continue;
            }
            let since = self.check_since(cache);
            let desired = &cache.set(self.idx).desired;
            let images = desired.iter().map(|desired| desired.image);
            match self.node.observed.oldest(images) {
                Oldest::At(oldest) if oldest < Some(since) => {}
                Oldest::At(_) | Oldest::NoImage => continue,
            }
            for desired in desired {
                let image = desired.image;
                let busy = context.pulling.contains(image) || context.removing.contains(image);
                if !busy
                    && due.len() < MAX_IMAGES
                    && self.node.observed.get(image).checked < Some(since)
                    && self.model.names.images.get(image).invalid.is_none()
                {
                    due.insert(image, desired.reference.clone());
                }
            }
        }
        due
    }
}
