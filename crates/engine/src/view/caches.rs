//! Rows of caches and registries.

use std::sync::Arc;

use kubefledged_api_types::{
    conditions::{DEGRADED, PROGRESSING, READY, RECONCILING, STALLED},
    status::ImageCounts,
};

use super::{
    page::{Page, beyond, page, until},
    rows::{CacheDetail, CacheRow, DesiredRow, PendingRow, Progress, RegistryRow, TrueConditions},
};
use crate::{
    commit::Engine,
    model::{
        cache::Cache,
        desired::DesiredImage,
        node_status::Flags,
        pending::{self, PendingRemoval},
    },
    report::status,
    vocabulary::{CacheKey, KnownBudget, MovedBytes, Now},
};

impl Engine {
    /// Caches after this one, of one namespace or of all.
    pub fn view_caches(
        &self,
        namespace: Option<&str>,
        after: Option<&CacheKey>,
        limit: usize,
    ) -> Page<CacheRow, CacheKey> {
        let caches = &self.model.caches;
        let keys = caches.by_key().range::<CacheKey, _>(beyond(after));
        let rows = keys
            .filter(|(key, _)| namespace.is_none_or(|namespace| *key.namespace == *namespace))
            .filter_map(|(key, at)| Some((key.clone(), row(caches.get(*at)?))));
        page(rows, limit)
    }

    /// One cache.
    pub fn view_row(&self, key: &CacheKey) -> Option<CacheRow> {
        self.cache(key).map(row)
    }

    fn cache(&self, key: &CacheKey) -> Option<&Cache> {
        self.model.caches.get(self.model.caches.find(key)?)
    }

    /// Everything about one cache.
    pub fn view_cache(&self, now: Now, key: &CacheKey) -> Option<CacheDetail> {
        let cache = self.cache(key)?;
        let bad_secrets = cache.bad_secrets.iter();
        Some(CacheDetail {
            row: row(cache),
            conditions: status::project(&self.model, cache, now).conditions,
            desired: cache.desired.all().map(|d| self.desired_row(d)).collect(),
            pending: cache.applied.pending.values().map(pending_row).collect(),
            next_refresh: cache.refresh.next.map(|at| until(at, now.tick)),
            purged: cache.history.purged,
            unchecked: cache.nodes.counts.flagged(Flags::UNCHECKED),
            bad_secrets: bad_secrets
                .flat_map(|(_, bad)| bad)
                .map(|(name, why)| (name.clone(), why.clone()))
                .collect(),
            generation: cache.object.generation,
        })
    }

    fn desired_row(&self, desired: &DesiredImage) -> DesiredRow {
        let names = &self.model.names;
        let image = names.images.get(desired.image);
        DesiredRow {
            reference: desired.reference.clone(),
            list: desired.by.list() as usize,
            registry: names.registries.get(image.registry).host.clone(),
            policy: desired.policy,
            invalid: image.invalid.clone(),
        }
    }

    /// Bytes of layers that ended pulls moved since the process began.
    pub fn view_moved(&self) -> MovedBytes {
        self.model.peers.moved
    }

    /// What the next leader is told of the budgets of at most so many registries, by host; `None`: this process does not lead,
    /// or has not begun.
    pub fn known_budgets(&self, most: usize) -> Option<Vec<(Arc<str>, KnownBudget)>> {
        let leadership = &self.model.leadership;
        let begun = leadership.leads() && leadership.begun;
        begun.then(|| self.model.names.registries.known(most))
    }

    /// Registries after this one.
    pub fn view_registries(
        &self,
        now: Now,
        after: Option<&str>,
        limit: usize,
    ) -> Page<RegistryRow, Arc<str>> {
        let registries = self.model.names.registries.iter();
        let registries = registries.filter(|known| after.is_none_or(|after| *known.host > *after));
        let rows = registries.map(|known| {
            let limited = known.limited_at().map(|at| until(now.tick, at));
            let row = RegistryRow {
                host: known.host.clone(),
                budget: known.budget(),
                waiting: known.waiting(),
                limited,
            };
            (known.host.clone(), row)
        });
        page(rows, limit)
    }
}

fn pending_row(pending: &PendingRemoval) -> PendingRow {
    let mut failed = pending.failed.values();
    let mut kept = pending.kept.values();
    let failure = failed.next().map(|failed| failed.reason.clone());
    let reason = || Some(kept.next()?.reason.as_str().to_owned());
    PendingRow {
        reference: pending.reference.clone(),
        removed: pending.done.len(),
        kept: pending.kept.len(),
        failed: pending.failed.len(),
        reason: failure.or_else(reason),
    }
}

fn row(cache: &Cache) -> CacheRow {
    let holds = |type_| {
        let mut written = cache.object.status.conditions.iter();
        written.any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    CacheRow {
        key: cache.object.key.clone(),
        nodes: cache.nodes.counts.nodes,
        images: ImageCounts {
            kept: pending::kept(cache.applied.pending.values()),
            ..cache.nodes.counts.images.clone()
        },
        status: cache.last.phase.as_str().to_owned(),
        reason: cache.last.subject.as_str().to_owned(),
        started: cache.last.started,
        completed: cache.last.completed,
        operation: cache.operation.as_ref().map(|op| Progress {
            nodes: op.nodes(),
            open: op.open(),
        }),
        refreshed: cache.refresh.last,
        conditions: TrueConditions {
            ready: holds(READY),
            progressing: holds(PROGRESSING),
            degraded: holds(DEGRADED),
            reconciling: holds(RECONCILING),
            stalled: holds(STALLED),
        },
        lists_without_nodes: cache.desired.unmatched().count(),
    }
}
