//! Whether an image that is present is new enough. Only images with the policy Always can be too old. One
//! node asks the registry for all of them (a freshness probe): 5,000 nodes are one question, not 5,000.

use kubefledged_api_types::ImagePullPolicy;

use super::context::{NodeContext, NodeView};
use crate::{
    ids::Stamp,
    model::{Probe, cache::Cache, desired::DesiredImage, node::Attempt},
    vocabulary::{PullBlock, PullReason},
};

impl<'m> NodeView<'m> {
    /// The registry must have been asked since then about images with the policy Always: since the node joined,
    /// the operation began, or the refresh began. A check and a new leader ask no registry.
    pub fn demand(&self, cache: &Cache) -> Option<Stamp> {
        let asked = cache.pulls_since(self.idx).max(cache.refresh.since());
        asked.max(self.node.instance.joined)
    }

    /// Is the image that the node holds as new as the registry had it at this stamp? `None`: any will do.
    pub fn is_fresh(&self, desired: &DesiredImage, since: Option<Stamp>) -> bool {
        if !self.node.observed.holds(desired.image) {
            return false;
        }
        let observation = self.node.observed.get(desired.image);
        if desired.policy == ImagePullPolicy::IfNotPresent {
            return observation.checked.is_some();
        }
        let answer = self.model.names.images.get(desired.image).registry_answer;
        let same = answer.is_some_and(|answer| {
            Some(answer.stamp) >= since
                && answer.digest.is_some()
                && answer.digest == observation.digest
        });
        observation.fetched >= since || same
    }

    /// The failed attempts at an image. An image that is present and as new as the registry has had it since
    /// the last attempt did not fail: another node has asked for all.
    pub fn failure(&self, desired: &DesiredImage) -> Option<&'m Attempt> {
        let attempts = &self.node.attempts;
        if attempts.is_empty() {
            return None;
        }
        let attempt = attempts.get(&(desired.image, desired.credentials))?;
        (!self.is_fresh(desired, Some(attempt.stamp))).then_some(attempt)
    }

    /// What must be done about an image that is present.
    pub fn refresh_reason(
        &self,
        cache: &Cache,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> Result<PullReason, PullBlock> {
        let demand = self.demand(cache);
        if self.is_fresh(desired, demand) {
            return self
                .pin_due(desired.image, context)
                .then_some(PullReason::Pin)
                .ok_or(PullBlock::Present);
        }
        let answer = self.model.names.images.get(desired.image).registry_answer;
        if answer.is_some_and(|answer| Some(answer.stamp) >= demand) {
            return Ok(PullReason::Newer);
        }
        match self.model.probes.get(&(desired.image, desired.credentials)) {
            Some(probe) if probe.node == self.idx => Ok(PullReason::FreshnessProbe),
            Some(Probe { failed: None, .. }) => Err(PullBlock::ProbeInFlight),
            Some(Probe { failed, .. }) if *failed >= demand => Err(PullBlock::ProbeFailed),
            _ => Ok(PullReason::FreshnessProbe),
        }
    }
}
