//! Whether one image is pulled to one node now, and why not. Planning and the debug service ask the same
//! functions.

use super::context::{NodeContext, NodeView};
use crate::{
    ids::{CacheIdx, ImageId, Stamp},
    model::{cache::Cache, desired::DesiredImage, peers::Supply},
    vocabulary::{PullBlock, PullReason},
};

/// Most pull batches that a node works on at a time, long ones not counted.
pub const MAX_SHORT_PULLS: usize = 4;

impl NodeView<'_> {
    /// Must an image be pulled? What limits allow comes after that: [`limit`].
    pub fn verdict(
        &self,
        cache: &Cache,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> Result<PullReason, PullBlock> {
        self.node.eligibility().map_err(PullBlock::Ineligible)?;
        self.callable()?;
        may_start(cache)?;
        self.image_verdict(cache, desired, context)
    }

    /// The same, where the node and the cache allow pulls.
    pub fn image_verdict(
        &self,
        cache: &Cache,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> Result<PullReason, PullBlock> {
        let image = desired.image;
        if self.model.names.images.get(image).invalid.is_some() {
            return Err(PullBlock::InvalidName);
        }
        if context.pulling.contains(image) {
            return Err(PullBlock::Pulling);
        }
        if context.removing.contains(image) {
            return Err(PullBlock::Removing);
        }
        if self.node.observed.get(image).checked < Some(self.checked_since(cache)) {
            return Err(PullBlock::NotChecked);
        }
        let reason = self.reason(cache, desired, context)?;
        let quiet = cache.refresh.quiet.is_some() && cache.operation.is_none();
        let lost = reason == PullReason::Missing && self.node.losses.contains(image);
        if quiet && (reason == PullReason::Newer || lost) {
            return Err(PullBlock::RefreshBegins);
        }
        match self.model.names.scopes.outage(desired.credentials) {
            Some(outage) if outage.retry_at > self.now && reason != PullReason::Pin => {
                Err(PullBlock::CredentialsUnavailable(outage.retry_at))
            }
            _ => Ok(reason),
        }
    }

    /// An image is pulled only if it was checked since then.
    pub fn checked_since(&self, cache: &Cache) -> Stamp {
        let since = self.node.instance.since.max(cache.pulls_since(self.idx));
        since.unwrap_or(Stamp::FIRST).max(Stamp::FIRST)
    }

    /// Why the image would be pulled, as far as its own history goes.
    fn reason(
        &self,
        cache: &Cache,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> Result<PullReason, PullBlock> {
        let image = desired.image;
        let attempt = self.node.attempts.get(&(image, desired.credentials));
        // The automatic refresh makes no room.
        if let Some(attempt) = attempt.filter(|a| Some(a.stamp) >= cache.pulls_since(self.idx))
            && let Some(at) = self.node.waits_for_room(attempt, self.now)
        {
            return Err(PullBlock::BackOff(at));
        }
        if let Some(attempt) = attempt
            && Some(attempt.stamp) >= self.demand(cache)
            && (self.failure(desired).is_some() || self.pin_due(image, context))
        {
            return match attempt.not_before {
                Some(at) if at > self.now => Err(PullBlock::BackOff(at)),
                Some(_) => Ok(PullReason::Retry),
                None => Err(PullBlock::UntilRefresh),
            };
        }
        if self.node.observed.holds(image) {
            return self.refresh_reason(cache, desired, context);
        }
        if cache.pulls_since(self.idx).is_some() {
            return Ok(PullReason::Missing);
        }
        let losses = &self.node.losses;
        if let Some(at) = losses.heals_at(image, self.now) {
            return Err(PullBlock::LossBackOff(at));
        }
        let level = losses.level_reached(image, self.node.runtime.disk, self.now);
        level.map_or(Ok(PullReason::Missing), |(level, _)| {
            Err(PullBlock::LostAtLevel(level))
        })
    }

    /// May the node pull this image for a cache, by its `spec.maxConcurrentNodes`? What the puller pulls already, for the leader
    /// before, goes on in any case: it is attached to, so that the node counts.
    pub fn node_may_pull(&self, cache: &Cache, image: ImageId) -> bool {
        cache.node_may_pull(self.idx) || self.node.running.contains(image)
    }

    /// What planning would decide about an image now, limits included.
    pub fn planned(
        &self,
        cache: CacheIdx,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> Result<PullReason, PullBlock> {
        let cache = &self.model.caches[cache];
        let reason = match self.verdict(cache, desired, context) {
            Err(PullBlock::Pulling) if context.from_peers.contains(desired.image) => {
                return Err(PullBlock::FromPeers);
            }
            verdict => verdict?,
        };
        if !self.node_may_pull(cache, desired.image) {
            return Err(PullBlock::NodeLimit);
        }
        if let Some(block) = limit(context, u32::MAX) {
            return Err(block);
        }
        if let Supply::Peers(_) = self.supply(desired, reason)? {
            return Ok(reason);
        }
        let registry = self.model.names.images.get(desired.image).registry;
        let room = self.model.names.registries.get(registry).room();
        limit(context, room).map_or(Ok(reason), Err)
    }
}

/// The limit that keeps a batch from starting, whatever is in it. `room`: pulls that the registry has room for.
pub fn limit(context: &NodeContext, room: u32) -> Option<PullBlock> {
    if context.short_pulls >= MAX_SHORT_PULLS {
        return Some(PullBlock::BatchLimit);
    }
    (room == 0).then_some(PullBlock::RegistryBudget)
}

/// May pulls of a cache start?
pub fn may_start(cache: &Cache) -> Result<(), PullBlock> {
    if cache.held() {
        return Err(PullBlock::Suspended);
    }
    if !cache.recorded() {
        return Err(PullBlock::NotRecorded);
    }
    Ok(())
}
