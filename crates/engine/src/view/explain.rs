//! What would be done now, and why.

use std::sync::Arc;

use super::page::{MOST_ROWS, Page};
use crate::{
    commit::Engine,
    ids::CacheIdx,
    plan::context::{NodeContext, NodeView},
    vocabulary::{CacheKey, NodeName, Now, PullBlock, PullReason, RemovalBlock},
};

/// Which steps.
#[derive(Clone, Debug, Default)]
pub struct PlanQuery {
    /// Of this cache alone; `None`: of all caches.
    pub cache: Option<CacheKey>,
    /// Of this node alone; `None`: of all nodes.
    pub node: Option<NodeName>,
    /// Also steps where everything is as it should be.
    pub all: bool,
}

/// What would be done about one image on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// Which node.
    pub node: NodeName,
    /// Which cache.
    pub key: CacheKey,
    /// The image's name, as the user wrote it.
    pub reference: Arc<str>,
    /// What would be done.
    pub step: PlanStep,
}

/// What would be done about an image, or why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanStep {
    /// The image is desired.
    Pull(Result<PullReason, PullBlock>),
    /// Its removal is pending.
    Remove(Result<(), RemovalBlock>),
}

impl PlanStep {
    /// Is everything as it should be?
    pub fn rests(&self) -> bool {
        matches!(
            self,
            Self::Pull(Err(PullBlock::Present))
                | Self::Remove(Err(RemovalBlock::Gone | RemovalBlock::Desired))
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
        let (mut rows, mut read, mut last) = (Vec::new(), 0, None);
        // The node that the last page ended in may have more caches.
        let within = after.map(|(node, _)| node);
        let begun = within.filter(|node| query.node.as_ref().is_none_or(|only| only == *node));
        let begun = begun.and_then(|node| self.model.nodes.by_name().get_key_value(node));
        let begun = begun.map(|(name, idx)| (name, *idx));
        let nodes = begun
            .into_iter()
            .chain(self.nodes_after(query.node.as_ref(), within));
        for (name, idx) in nodes {
            let view = NodeView::new(&self.model, idx, now.tick);
            let context = NodeContext::of(&self.model, idx);
            for (key, at) in self.model.caches.by_key() {
                let done = after.is_some_and(|(node, cache)| node == name && key <= cache);
                if done || query.cache.as_ref().is_some_and(|only| only != key) {
                    continue;
                }
                if read >= MOST_ROWS {
                    return Page { rows, next: last };
                }
                let before = rows.len();
                self.steps(*at, &view, &context, &mut rows);
                read += (rows.len() - before).max(1);
                if !query.all {
                    rows.retain(|row| !row.step.rests());
                }
                last = Some((name.clone(), key.clone()));
            }
        }
        Page { rows, next: None }
    }

    fn steps(
        &self,
        at: CacheIdx,
        view: &NodeView<'_>,
        context: &NodeContext,
        rows: &mut Vec<PlanRow>,
    ) {
        let cache = &self.model.caches[at];
        let Some(name) = &view.node.name else {
            return;
        };
        let row = |reference: &Arc<str>, step| PlanRow {
            node: name.clone(),
            key: cache.object.key.clone(),
            reference: reference.clone(),
            step,
        };
        for desired in &cache.set(view.idx).desired {
            let step = PlanStep::Pull(view.planned(at, desired, context));
            rows.push(row(&desired.reference, step));
        }
        for (image, pending) in &cache.applied.pending {
            let block = view.callable().err().map_or_else(
                || view.removal(cache, *image, pending, context),
                |block| Err(RemovalBlock::Uncallable(block)),
            );
            rows.push(row(&pending.reference, PlanStep::Remove(block)));
        }
    }
}
