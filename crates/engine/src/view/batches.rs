//! Batches in flight.

use std::collections::BTreeSet;

use super::{
    page::{Page, page, until},
    rows::{BatchKind, BatchRow},
};
use crate::{
    commit::{Engine, timers::Timer},
    model::in_flight::{Flight, Task},
    vocabulary::{BatchId, CacheKey, NodeName, Now, Tick},
};

/// What a batch does.
pub fn kind(flight: &Flight) -> BatchKind {
    match flight.task {
        Task::Pull(_) => BatchKind::Pull,
        Task::Remove { .. } => BatchKind::Remove,
        Task::Check { .. } => BatchKind::Check,
    }
}

impl Engine {
    /// Batches in flight after this one, of one node or cache or of all.
    pub fn view_batches(
        &self,
        now: Now,
        node: Option<&NodeName>,
        cache: Option<&CacheKey>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Page<BatchRow, BatchId> {
        let flights = self.model.in_flight.after(after);
        let rows = flights
            .filter_map(|(id, flight)| Some((id, self.batch_row(id, flight, now.tick)?)))
            .filter(|(_, row)| node.is_none_or(|node| row.node == *node))
            .filter(|(_, row)| cache.is_none_or(|cache| row.caches.contains(cache)));
        page(rows, limit)
    }

    pub(super) fn batch_row(&self, id: BatchId, flight: &Flight, now: Tick) -> Option<BatchRow> {
        let mut caches = BTreeSet::new();
        let (images, open) = match &flight.task {
            Task::Pull(pull) => {
                let all = pull.caches().into_iter();
                let all = all.filter_map(|cache| self.model.caches.get(cache));
                caches.extend(all.map(|cache| cache.object.key.clone()));
                (pull.images.len(), pull.open())
            }
            Task::Remove { images, unpin } => {
                let images = images.len() + unpin.len();
                (images, images)
            }
            Task::Check { images } => (images.len(), images.len()),
        };
        let lost = self.agenda.timers.at(Timer::Lost(id)).unwrap_or(now);
        let left = until(lost, now);
        Some(BatchRow {
            id,
            node: self.model.nodes[flight.node].name.clone()?,
            caches,
            kind: kind(flight),
            images,
            open,
            age: flight.task.deadline().saturating_sub(left),
            left,
        })
    }
}
