//! Pairs of node and image, as one cache has them.

use std::sync::Arc;

use kubefledged_api_types::Timestamp;

use super::page::{MOST_ROWS, Page, until};
use crate::{
    commit::Engine,
    ids::{CacheIdx, ImageId, Stamp},
    model::{desired::DesiredImage, in_flight::Task},
    plan::{
        context::{NodeContext, NodeView},
        pairs::{Fault, Pair},
    },
    vocabulary::{CacheKey, NodeName, Now, PullBlock, PullReason, PullState, Tick},
};

/// Which pairs.
#[derive(Clone, Debug)]
pub struct PairQuery {
    /// Of this cache.
    pub cache: CacheKey,
    /// Of this node alone; `None`: of all nodes.
    pub node: Option<NodeName>,
    /// Of this image alone, as the spec names it; `None`: of all images.
    pub image: Option<String>,
    /// In these states; empty: in all states.
    pub states: Vec<PullState>,
}

/// One image of one cache on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairRow {
    /// Which node.
    pub node: NodeName,
    /// The image's name, as the user wrote it.
    pub reference: Arc<str>,
    /// Its state.
    pub state: PullState,
    /// Since when it is in this state; `None`: not known.
    pub since: Option<Timestamp>,
    /// Failed attempts in a row.
    pub attempts: u32,
    /// Why it would be pulled now, or why not.
    pub plan: Result<PullReason, PullBlock>,
    /// What is wrong.
    pub failure: Option<PairFailure>,
    /// Size in bytes, as a runtime counts it; 0: not known.
    pub size: u64,
}

/// What is wrong with a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFailure {
    /// One of `names::failure`.
    pub reason: Arc<str>,
    /// A sentence.
    pub message: Arc<str>,
}

impl Engine {
    /// Pairs of nodes after this one; `None`: the cache is not known.
    pub fn view_pairs(
        &self,
        now: Now,
        query: &PairQuery,
        after: Option<&NodeName>,
    ) -> Option<Page<PairRow, NodeName>> {
        let at = self.model.caches.find(&query.cache)?;
        let (mut rows, mut read, mut last) = (Vec::new(), 0, None);
        for (name, idx) in self.nodes_after(query.node.as_ref(), after) {
            if read >= MOST_ROWS {
                return Some(Page { rows, next: last });
            }
            let view = NodeView::new(&self.model, idx, now.tick);
            let context = NodeContext::of(&self.model, idx);
            read += self.model.caches[at].set(idx).desired.len().max(1);
            rows.extend(self.pair_rows(at, &view, &context, now).filter(|pair| {
                let image = query.image.as_deref();
                image.is_none_or(|image| *pair.reference == *image)
                    && (query.states.is_empty() || query.states.contains(&pair.state))
            }));
            last = Some(name.clone());
        }
        Some(Page { rows, next: None })
    }

    /// All images that a cache desires on a node.
    pub(super) fn pair_rows<'a>(
        &'a self,
        at: CacheIdx,
        view: &'a NodeView<'a>,
        context: &'a NodeContext,
        now: Now,
    ) -> impl Iterator<Item = PairRow> + 'a {
        let desired = self.model.caches[at].set(view.idx).desired.iter();
        desired.filter_map(move |desired| self.pair_row(at, desired, view, context, now))
    }

    fn pair_row(
        &self,
        at: CacheIdx,
        desired: &DesiredImage,
        view: &NodeView<'_>,
        context: &NodeContext,
        now: Now,
    ) -> Option<PairRow> {
        let (state, pair) = view.pair_state(&self.model.caches[at], desired, context);
        let fault = pair.fault.filter(|_| state != PullState::NotDesired);
        let failure = fault.map(|fault| PairFailure {
            reason: fault.reason().into(),
            message: fault.message().into(),
        });
        let attempt = view.failure(desired);
        Some(PairRow {
            node: view.node.name.clone()?,
            reference: desired.reference.clone(),
            state,
            since: self.since(state, &pair, desired.image, view, now),
            attempts: attempt.map_or(0, |attempt| attempt.tries),
            plan: view.planned(at, desired, context),
            failure,
            size: self.model.names.images.get(desired.image).size,
        })
    }

    /// Since when a pair is in its state.
    fn since(
        &self,
        state: PullState,
        pair: &Pair<'_>,
        image: ImageId,
        view: &NodeView<'_>,
        now: Now,
    ) -> Option<Timestamp> {
        let at_tick = |tick: Tick| {
            let seconds = until(now.tick, tick).as_secs();
            Timestamp(now.wall.0 - i64::try_from(seconds).unwrap_or(0))
        };
        let stamp = match (state, pair.fault) {
            (PullState::NotDesired | PullState::Pending, _) | (_, Some(Fault::InvalidName(_))) => {
                None
            }
            (_, Some(Fault::Silent(since))) => return since.map(at_tick),
            (_, Some(Fault::Credentials(outage))) => return Some(at_tick(outage.since)),
            (_, Some(Fault::Pull(attempt))) => Some(attempt.since),
            (PullState::Pulling, None) => self.pull_stamp(view, image),
            (_, None) => view.node.observed.get(image).fetched,
        };
        stamp.and_then(|stamp| self.model.clock.at(stamp))
    }

    /// Stamp of the batch that pulls an image to a node.
    fn pull_stamp(&self, view: &NodeView<'_>, image: ImageId) -> Option<Stamp> {
        let flights = view.node.in_flight.iter();
        let mut flights = flights.filter_map(|id| self.model.in_flight.get(*id));
        flights.find_map(|flight| match &flight.task {
            Task::Pull(pull) => {
                let mut open = pull.images.iter().filter(|pulled| pulled.open);
                open.any(|open| open.id == image).then_some(flight.stamp)
            }
            Task::Remove { .. } | Task::Check { .. } => None,
        })
    }
}
