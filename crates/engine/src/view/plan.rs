//! What would be done now, and why.

use std::sync::Arc;

use super::{MOST_ROWS, Page};
use crate::{
    CacheKey, Engine, NodeName, Now, Skip, Tick, Why,
    cache::CacheIdx,
    node::NodeIdx,
    plan::{Scene, Stays, removal},
};

/// Which steps.
#[derive(Clone, Debug, Default)]
pub struct PlanQuery {
    /// Of this cache alone.
    pub cache: Option<CacheKey>,
    /// Of this node alone.
    pub node: Option<NodeName>,
    /// Also those where all is as it should be.
    pub all: bool,
}

/// What would be done about one image on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// Where.
    pub node: NodeName,
    /// For which cache.
    pub key: CacheKey,
    /// As written.
    pub reference: Arc<str>,
    /// What.
    pub step: Step,
}

/// What would be done, or why nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The image is wanted.
    Want(Result<Why, Skip>),
    /// The image is to be gone.
    Owe(Result<(), Stays>),
}

impl Step {
    /// Is all as it should be?
    pub fn rests(&self) -> bool {
        matches!(
            self,
            Self::Want(Err(Skip::Present)) | Self::Owe(Err(Stays::Gone | Stays::Wanted))
        )
    }
}

impl Engine {
    /// Steps after those of this node and cache.
    pub fn explain(
        &self,
        now: Now,
        query: &PlanQuery,
        after: Option<&(NodeName, CacheKey)>,
    ) -> Page<PlanRow, (NodeName, CacheKey)> {
        let (mut rows, mut looked, mut last) = (Vec::new(), 0, None);
        // The node that the last page ended in may have more caches.
        let within = after.map(|(node, _)| node);
        let begun = within.filter(|node| query.node.as_ref().is_none_or(|only| only == *node));
        let begun = begun.and_then(|node| self.node_index.get_key_value(node));
        let begun = begun.map(|(name, idx)| (name, *idx));
        let nodes = begun
            .into_iter()
            .chain(self.nodes_after(query.node.as_ref(), within));
        for (name, idx) in nodes {
            let scene = self.scene(idx);
            for (key, at) in &self.cache_index {
                let done = after.is_some_and(|(node, cache)| node == name && key <= cache);
                if done || query.cache.as_ref().is_some_and(|only| only != key) {
                    continue;
                }
                if looked >= MOST_ROWS {
                    return Page { rows, next: last };
                }
                let before = rows.len();
                self.steps(*at, idx, &scene, now.tick, &mut rows);
                looked += (rows.len() - before).max(1);
                if !query.all {
                    rows.retain(|row| !row.step.rests());
                }
                last = Some((name.clone(), key.clone()));
            }
        }
        Page { rows, next: None }
    }

    fn steps(&self, at: CacheIdx, idx: NodeIdx, scene: &Scene, now: Tick, rows: &mut Vec<PlanRow>) {
        let cache = &self.caches[&at];
        let Some(name) = &self.nodes[idx].name else {
            return;
        };
        let row = |reference: &Arc<str>, step| PlanRow {
            node: name.clone(),
            key: cache.object.key.clone(),
            reference: reference.clone(),
            step,
        };
        for want in &cache.pattern(idx).wants {
            let step = Step::Want(self.planned(at, idx, want, scene, now));
            rows.push(row(&want.reference, step));
        }
        for (image, owed) in &cache.owed {
            let stays = self.callable(idx, now).err().map_or_else(
                || removal(cache, idx, *image, owed, scene, now),
                |skip| Err(Stays::Uncallable(skip)),
            );
            rows.push(row(&owed.reference, Step::Owe(stays)));
        }
    }
}
