//! What has become true of a node by itself, noted before the node is planned.

use super::Engine;
use crate::{
    ids::NodeIdx,
    model::backoff,
    plan::context::{NodeContext, NodeView},
    vocabulary::{Now, Tick},
};

impl Engine {
    /// Brings a node up to date: how long its puller is silent, whether it has left operations, which images are
    /// desired there, and whether a check is due.
    pub(crate) fn update_node(&mut self, idx: NodeIdx, context: &NodeContext, now: Now) {
        self.note_silence(idx, now.tick);
        self.leave_operations(idx, now.tick);
        if self.model.nodes[idx].desired != context.desired {
            let node = &mut self.model.nodes[idx];
            node.epoch += 1;
            node.desire(&context.desired);
        }
        self.note_desired_again(idx, context);
        self.schedule_check(idx, context, now);
    }

    /// Notes since when no puller answers on a node that could have one.
    fn note_silence(&mut self, idx: NodeIdx, now: Tick) {
        let node = &mut self.model.nodes[idx];
        if !node.runs_puller() {
            node.contact.silent_since = None;
        } else if node.puller.is_none() {
            node.contact.silent_since.get_or_insert(now);
        } else if node.contact.failures == 0 {
            node.contact.silent_since = None;
        }
    }

    /// A node that is not eligible any more, or that no list selects any more, leaves operations that pull. One that
    /// is unfit for a moment leaves them after the grace time.
    fn leave_operations(&mut self, idx: NodeIdx, now: Tick) {
        let node = &self.model.nodes[idx];
        let eligible = node.eligibility().is_ok() || self.model.unfit_until(node) > Some(now);
        for (_, cache) in self.model.caches.iter_mut() {
            if cache.pulls_since(idx).is_some()
                && (!eligible || cache.set(idx).is_empty())
                && let Some(operation) = &mut cache.operation
            {
                operation.pulls.remove(idx);
            }
        }
    }

    /// A pending removal says nothing about this node while another cache desires the image there.
    fn note_desired_again(&mut self, idx: NodeIdx, context: &NodeContext) {
        for (at, cache) in self.model.caches.iter_mut() {
            let pending = cache.applied.pending.iter_mut();
            for (_, pending) in pending.filter(|(image, _)| context.desired.contains(**image)) {
                if pending.desired_again(idx) {
                    self.agenda.caches.insert(at);
                }
            }
        }
    }

    /// Makes every observation outdated once in each check interval.
    fn schedule_check(&mut self, idx: NodeIdx, context: &NodeContext, now: Now) {
        if context.desired.is_empty() {
            self.model.nodes[idx].checks.next = None;
            return;
        }
        let interval = self.model.settings.check_interval;
        let node = &self.model.nodes[idx];
        let spread = node.spread(self.model.settings.seed, b"check");
        match node.checks.next {
            None => {
                // Spread over half an interval, because after a leader's start all nodes begin together.
                let next = now.tick.after(interval * part(spread) / 100);
                self.model.nodes[idx].checks.next = Some(next);
            }
            Some(next) if next <= now.tick => {
                let stamp = self.model.next_stamp(now);
                let node = &mut self.model.nodes[idx];
                node.checks.next = Some(now.tick.after(backoff::jittered(interval, 10, spread)));
                node.checks.since = Some(stamp);
                node.epoch += 1;
                node.losses.expire(now.tick);
                self.forget_failures(idx, now.tick);
            }
            Some(_) => {}
        }
    }

    /// Drops failures that no cache has any more: it no longer desires the image, or has other secrets now.
    fn forget_failures(&mut self, idx: NodeIdx, now: Tick) {
        let mut attempts = std::mem::take(&mut self.model.nodes[idx].attempts);
        let view = NodeView::new(&self.model, idx, now);
        attempts.retain(|(image, credentials), attempt| {
            self.model.caches.values().any(|cache| {
                let desired = cache.set(idx).get(*image);
                desired.is_some_and(|desired| {
                    desired.credentials == *credentials
                        && !view.is_fresh(desired, Some(attempt.stamp))
                })
            })
        });
        self.model.nodes[idx].attempts = attempts;
    }
}

/// Between 50 and 100 per cent.
fn part(spread: u64) -> u32 {
    u32::try_from(50 + spread % 51).unwrap_or(100)
}
