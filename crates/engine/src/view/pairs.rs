//! Pairs of node and image, as one cache has them.

use std::sync::Arc;

use kubefledged_api_types::{Timestamp, names::failure};

use super::{MOST_ROWS, Page, until};
use crate::{
    CacheKey, Engine, NodeName, Now, Skip, Tick, Why, batches::LiveWork, cache::CacheIdx,
    cell::CellState, failures, images::ImageId, node::NodeIdx, plan::Scene, wants::Want,
};

/// Which pairs.
#[derive(Clone, Debug)]
pub struct PairQuery {
    /// Of this cache.
    pub cache: CacheKey,
    /// Of this node alone.
    pub node: Option<NodeName>,
    /// Of this image alone, as the spec has it.
    pub image: Option<String>,
    /// In these states; empty: in all.
    pub states: Vec<CellState>,
}

/// One image of one cache on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairRow {
    /// Where.
    pub node: NodeName,
    /// As written.
    pub reference: Arc<str>,
    /// How it stands.
    pub state: CellState,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
    /// Failed attempts in a row.
    pub attempts: u32,
    /// Why it would be pulled now, or why not.
    pub plan: Result<Why, Skip>,
    /// What went wrong: word and sentence.
    pub failure: Option<(Arc<str>, Arc<str>)>,
    /// As a runtime counts it; 0: not known.
    pub size: u64,
}

impl Engine {
    /// Pairs of nodes after this one. Nothing where the cache is not known.
    pub fn view_pairs(
        &self,
        now: Now,
        query: &PairQuery,
        after: Option<&NodeName>,
    ) -> Option<Page<PairRow, NodeName>> {
        let at = *self.cache_index.get(&query.cache)?;
        let (mut rows, mut looked, mut last) = (Vec::new(), 0, None);
        for (name, idx) in self.nodes_after(query.node.as_ref(), after) {
            if looked >= MOST_ROWS {
                return Some(Page { rows, next: last });
            }
            let scene = self.scene(idx);
            looked += self.caches[&at].pattern(idx).wants.len().max(1);
            rows.extend(self.pairs(at, idx, &scene, now).filter(|pair| {
                let image = query.image.as_deref();
                image.is_none_or(|image| *pair.reference == *image)
                    && (query.states.is_empty() || query.states.contains(&pair.state))
            }));
            last = Some(name.clone());
        }
        Some(Page { rows, next: None })
    }

    /// All images that a cache wants on a node.
    pub(crate) fn pairs<'a>(
        &'a self,
        at: CacheIdx,
        idx: NodeIdx,
        scene: &'a Scene,
        now: Now,
    ) -> impl Iterator<Item = PairRow> + 'a {
        let wants = self.caches[&at].pattern(idx).wants.iter();
        wants.filter_map(move |want| self.pair(at, idx, want, scene, now))
    }

    fn pair(
        &self,
        at: CacheIdx,
        idx: NodeIdx,
        want: &Want,
        scene: &Scene,
        now: Now,
    ) -> Option<PairRow> {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        let image = self.names.images.get(want.image);
        let attempt = self.failure(cache, idx, want);
        let holds = node.looks.holds(want.image);
        let grace = self.settings.puller_grace;
        let trouble = self.names.scopes.trouble(cache.scope);
        let blamed = trouble.filter(|trouble| trouble.since.after(grace) <= now.tick);
        let ago = |tick: Tick| {
            let seconds = until(now.tick, tick).as_secs();
            Timestamp(now.wall.0 - i64::try_from(seconds).unwrap_or(0))
        };
        let at_stamp = |stamp| self.clock.at(stamp);
        let failed = |reason: &str, message: &str| Some((reason.into(), message.into()));
        let (state, since, failure) = if node.eligibility().is_err() {
            (CellState::Out, None, None)
        } else if let Some(why) = &image.invalid {
            let failure = failed(failure::INVALID_IMAGE_NAME, why);
            (CellState::Failed, None, failure)
        } else if node.unreachable(now.tick, grace) {
            let failure = failed(failure::PULLER_UNAVAILABLE, failures::SILENT);
            (CellState::Unreachable, node.silent_since.map(ago), failure)
        } else if let Some(attempt) = attempt {
            let failure = (attempt.reason.clone(), attempt.message.clone());
            // What is there stays good, though it could not be refreshed.
            let state = if holds {
                CellState::Ready
            } else {
                CellState::Failed
            };
            (state, at_stamp(attempt.since), Some(failure))
        } else if holds {
            let fetched = node.looks.get(want.image).fetched;
            let since = (fetched > 0).then(|| at_stamp(fetched)).flatten();
            (CellState::Ready, since, None)
        } else if scene.pulling.contains(want.image.index()) {
            let since = self.pull_of(idx, want.image).and_then(at_stamp);
            (CellState::Pulling, since, None)
        } else if let Some(trouble) = blamed {
            let failure = failed(failure::CREDENTIALS_UNAVAILABLE, &trouble.message);
            (CellState::Failed, Some(ago(trouble.since)), failure)
        } else {
            (CellState::Pending, None, None)
        };
        Some(PairRow {
            node: node.name.clone()?,
            reference: want.reference.clone(),
            state,
            since,
            attempts: attempt.map_or(0, |attempt| attempt.tries),
            plan: self.planned(at, idx, want, scene, now.tick),
            failure,
            size: image.size,
        })
    }

    /// What planning would decide about an image, limits included.
    pub(super) fn planned(
        &self,
        at: CacheIdx,
        idx: NodeIdx,
        want: &Want,
        scene: &Scene,
        now: Tick,
    ) -> Result<Why, Skip> {
        let why = self.verdict(at, idx, want, scene, now)?;
        let registry = self.names.images.get(want.image).registry;
        let registry = self.names.registries.get(registry);
        let free = registry.room(self.settings.max_registry_pulls);
        self.limit(at, idx, scene, free).map_or(Ok(why), Err)
    }

    /// Stamp of the batch that pulls an image to a node.
    fn pull_of(&self, idx: NodeIdx, image: ImageId) -> Option<u32> {
        let live = self.nodes[idx].live.iter();
        live.filter_map(|id| self.live.get(id))
            .find_map(|live| match &live.work {
                LiveWork::Pull(pull) => {
                    let mut open = pull.images.iter().filter(|image| image.open);
                    open.any(|open| open.id == image).then_some(live.stamp)
                }
                _ => None,
            })
    }
}
