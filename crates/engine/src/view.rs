//! What can be seen inside, between events: plain rows, a page at a time. Pages are no consistent
//! snapshot. Why an image is pulled or not is the answer of the very functions that planning asks.

mod pairs;
mod plan;

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    ImagePullPolicy, Timestamp,
    conditions::Condition,
    status::{ImageCounts, NodeCounts},
};

use crate::{
    BatchId, CacheKey, Engine, Ineligible, NodeName, Now, Puller, Tick,
    alarms::Alarm,
    batches::{Live, LiveWork},
    cache::Cache,
    cell::{CellState, Flags},
    node::NodeIdx,
    status,
};

pub use pairs::{PairQuery, PairRow};
pub use plan::{PlanQuery, PlanRow, Step};

/// Most rows of a page, and most rows that are looked at for one.
pub const MOST_ROWS: usize = 1000;

/// Some rows, and where the next ones begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<R, C> {
    /// In the order of their names.
    pub rows: Vec<R>,
    /// The next page begins after this; `None`: this was the last.
    pub next: Option<C>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Which.
    pub key: CacheKey,
    /// Eligible nodes.
    pub nodes: NodeCounts,
    /// Pairs of node and image.
    pub images: ImageCounts,
    /// `status.status`
    pub status: String,
    /// `status.reason`
    pub reason: String,
    /// `status.startTime`
    pub started: Option<Timestamp>,
    /// `status.completionTime`
    pub completed: Option<Timestamp>,
    /// While an operation runs: its nodes, and those of them that are not done.
    pub operation: Option<(usize, usize)>,
    /// `status.lastRefreshTime`
    pub refreshed: Option<Timestamp>,
    /// The last status written says Ready, Progressing, Degraded.
    pub conditions: [bool; 3],
}

/// All of one cache.
#[derive(Clone, Debug)]
pub struct CacheDetail {
    /// As in the list.
    pub row: CacheRow,
    /// As they would be written now.
    pub conditions: Vec<Condition>,
    /// Images of the spec.
    pub wanted: Vec<WantedRow>,
    /// Names that are to be gone.
    pub owed: Vec<OwedRow>,
    /// Until the automatic refresh.
    pub next_refresh: Option<Duration>,
    /// It wants nothing.
    pub purged: bool,
    /// Nodes nobody has looked at yet.
    pub unseen: i64,
    /// Secrets that do not exist or cannot be used: name and why.
    pub bad_secrets: Vec<(String, String)>,
    /// Of the spec that is taken up.
    pub generation: i64,
}

/// One image of one list.
#[derive(Clone, Debug)]
pub struct WantedRow {
    /// As written.
    pub reference: Arc<str>,
    /// Index of the list.
    pub list: usize,
    /// Host of its registry.
    pub registry: Arc<str>,
    /// After the default.
    pub policy: ImagePullPolicy,
    /// Why the name does not parse.
    pub invalid: Option<String>,
}

/// One name that is to be gone.
#[derive(Clone, Debug)]
pub struct OwedRow {
    /// As written.
    pub reference: Arc<str>,
    /// Nodes that confirmed, keep it on purpose, could not.
    pub nodes: [usize; 3],
    /// Why one of them keeps it, or could not.
    pub reason: Option<String>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeDetail {
    /// Why it gets no images.
    pub eligibility: Result<(), Ineligible>,
    /// Who answers there.
    pub puller: Option<Puller>,
    /// Calls that failed in a row.
    pub failed_calls: u32,
    /// Until it is called again.
    pub next_call: Option<Duration>,
    /// How long nobody has answered.
    pub silent: Option<Duration>,
    /// When the oldest look that counts was.
    pub looked: Option<Timestamp>,
    /// Every cache.
    pub caches: Vec<NodeCacheRow>,
    /// Calls under way.
    pub batches: Vec<BatchRow>,
}

/// One cache as one node has it.
#[derive(Clone, Debug)]
pub struct NodeCacheRow {
    /// Which.
    pub key: CacheKey,
    /// As the counts have it.
    pub state: CellState,
    /// Images that it wants there, that are there, that failed.
    pub images: [usize; 3],
    /// It wants nothing anywhere.
    pub purged: bool,
    /// The image that tells most about why it is not ready.
    pub worst: Option<PairRow>,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BatchKind {
    /// Pulls.
    Pull,
    /// Removes names and pins.
    Remove,
    /// Looks.
    Check,
}

/// One call under way.
#[derive(Clone, Debug)]
pub struct BatchRow {
    /// Which.
    pub id: BatchId,
    /// Where.
    pub node: NodeName,
    /// A check and a removal are for all caches.
    pub cache: Option<CacheKey>,
    /// What it does.
    pub kind: BatchKind,
    /// Images, and those of them without an outcome.
    pub images: (usize, usize),
    /// Since its begin.
    pub age: Duration,
    /// Until it counts as lost.
    pub left: Duration,
}

/// Sums over everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Nodes by why they get no images; `None`: they do.
    pub nodes: BTreeMap<Option<Ineligible>, usize>,
    /// Nodes that could have a puller and have none that answers.
    pub silent: usize,
    /// Calls under way: pulls, removals, checks.
    pub batches: [usize; 3],
    /// Images that vanished though somebody wanted them, since the process began.
    pub lost: u64,
}

/// One registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRow {
    /// Its host.
    pub host: Arc<str>,
    /// Pulls that may run, run, and run long.
    pub budget: (u32, u32, u32),
    /// Nodes that wait for it.
    pub waiting: usize,
    /// Since it last asked for less.
    pub limited: Option<Duration>,
}

impl Engine {
    /// Caches after this one, of one namespace or of all.
    pub fn view_caches(
        &self,
        namespace: Option<&str>,
        after: Option<&CacheKey>,
        limit: usize,
    ) -> Page<CacheRow, CacheKey> {
        let from = (after.map_or(Unbounded, Excluded), Unbounded);
        let rows = self
            .cache_index
            .range::<CacheKey, _>(from)
            .filter(|(key, _)| namespace.is_none_or(|namespace| *key.namespace == *namespace))
            .filter_map(|(key, at)| Some((key.clone(), row(self.caches.get(at)?))));
        page(rows, limit)
    }

    /// One cache.
    pub fn view_row(&self, key: &CacheKey) -> Option<CacheRow> {
        self.caches.get(self.cache_index.get(key)?).map(row)
    }

    /// All of one cache.
    pub fn view_cache(&self, now: Now, key: &CacheKey) -> Option<CacheDetail> {
        let cache = self.caches.get(self.cache_index.get(key)?)?;
        let wanted = cache.wants.by_list().map(|(list, want)| {
            let image = self.names.images.get(want.image);
            WantedRow {
                reference: want.reference.clone(),
                list,
                registry: self.names.registries.get(image.registry).host.clone(),
                policy: want.policy,
                invalid: image.invalid.clone(),
            }
        });
        let owed = cache.owed.values().map(|owed| {
            let kept = owed.kept.values().map(|(reason, _)| reason);
            let failed = owed.failed.values().map(|failed| &failed.reason);
            OwedRow {
                reference: owed.reference.clone(),
                nodes: [owed.done.count_ones(..), owed.kept.len(), owed.failed.len()],
                reason: failed.chain(kept).next().cloned(),
            }
        });
        let bad_secrets = cache.bad_secrets.iter();
        Some(CacheDetail {
            row: row(cache),
            conditions: status::project(self, cache, now).conditions,
            wanted: wanted.collect(),
            owed: owed.collect(),
            next_refresh: cache.refresh_at.map(|at| until(at, now.tick)),
            purged: cache.purged,
            unseen: cache.counts.flagged(Flags::UNSEEN),
            bad_secrets: bad_secrets
                .map(|(name, why)| (name.clone(), why.clone()))
                .collect(),
            generation: cache.object.generation,
        })
    }

    /// Is there such a node, or a puller of one?
    pub fn knows(&self, name: &NodeName) -> bool {
        self.node_index.contains_key(name)
    }

    /// All of one node.
    pub fn view_node(&self, now: Now, name: &NodeName) -> Option<NodeDetail> {
        let idx = *self.node_index.get(name)?;
        let node = &self.nodes[idx];
        let cells = self.caches.values().map(|cache| &cache.cells[idx]);
        let looked = cells.filter(|cell| cell.looked > 0 && cell.want > 0);
        let looked = looked.map(|cell| cell.looked).min();
        let scene = self.scene(idx);
        let caches = self.cache_index.iter().filter_map(|(key, at)| {
            let cache = self.caches.get(at)?;
            let cell = &cache.cells[idx];
            let pairs = self.pairs(*at, idx, &scene, now);
            Some(NodeCacheRow {
                key: key.clone(),
                state: cell.state,
                images: [
                    cache.pattern(idx).wants.len(),
                    node.looks.holds_of(&cache.pattern(idx).images),
                    cell.failing as usize,
                ],
                purged: cache.purged,
                worst: pairs
                    .filter(|pair| pair.state != CellState::Ready || pair.failure.is_some())
                    .min_by_key(|pair| pair.failure.is_none()),
            })
        });
        let batches = node.live.iter();
        Some(NodeDetail {
            eligibility: node.eligibility(),
            puller: node.puller.clone(),
            failed_calls: node.call_failures,
            next_call: (node.not_before > now.tick).then(|| until(node.not_before, now.tick)),
            silent: node.silent_since.map(|since| until(now.tick, since)),
            looked: looked.and_then(|stamp| self.clock.at(stamp)),
            caches: caches.collect(),
            batches: batches
                .filter_map(|id| self.batch_row(*id, self.live.get(id)?, now.tick))
                .collect(),
        })
    }

    /// Calls under way after this one, of one node or cache or of all.
    pub fn view_batches(
        &self,
        now: Now,
        node: Option<&NodeName>,
        cache: Option<&CacheKey>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Page<BatchRow, BatchId> {
        let from = (after.map_or(Unbounded, Excluded), Unbounded);
        let rows = self
            .live
            .range(from)
            .filter_map(|(id, live)| Some((*id, self.batch_row(*id, live, now.tick)?)))
            .filter(|(_, row)| node.is_none_or(|node| row.node == *node))
            .filter(|(_, row)| cache.is_none_or(|cache| row.cache.as_ref() == Some(cache)));
        page(rows, limit)
    }

    fn batch_row(&self, id: BatchId, live: &Live, now: Tick) -> Option<BatchRow> {
        let (kind, cache, images, open) = match &live.work {
            LiveWork::Pull(pull) => {
                let cache = self.caches.get(&pull.cache);
                let cache = cache.map(|cache| cache.object.key.clone());
                (BatchKind::Pull, cache, pull.images.len(), pull.open())
            }
            LiveWork::Remove { images, unpin } => {
                let images = images.len() + unpin.len();
                (BatchKind::Remove, None, images, images)
            }
            LiveWork::Check { images } => (BatchKind::Check, None, images.len(), images.len()),
        };
        let lost = self.alarms.at(Alarm::Lost(id)).unwrap_or(now);
        let left = until(lost, now);
        Some(BatchRow {
            id,
            node: self.nodes[live.node].name.clone()?,
            cache,
            kind,
            images: (images, open),
            age: live.work.deadline().saturating_sub(left),
            left,
        })
    }

    /// Registries after this one that images were named of.
    pub fn view_registries(
        &self,
        now: Now,
        after: Option<&str>,
        limit: usize,
    ) -> Page<RegistryRow, Arc<str>> {
        let rows = self.names.registries.rows(now.tick);
        let rows = rows.filter(|row| after.is_none_or(|after| *row.host > *after));
        page(rows.map(|row| (row.host.clone(), row)), limit)
    }

    /// Sums over everything.
    pub fn view_sums(&self) -> Sums {
        let mut sums = Sums {
            lost: self.lost,
            ..Sums::default()
        };
        sums.nodes.insert(None, 0);
        for node in self.nodes.iter().filter(|node| node.facts.is_some()) {
            *sums.nodes.entry(node.eligibility().err()).or_default() += 1;
            sums.silent += usize::from(node.silent_since.is_some());
        }
        for live in self.live.values() {
            let kind = match live.work {
                LiveWork::Pull(_) => 0,
                LiveWork::Remove { .. } => 1,
                LiveWork::Check { .. } => 2,
            };
            sums.batches[kind] += 1;
        }
        sums
    }

    /// How a node stands with a cache, as the counts have it.
    pub fn state(&self, key: &CacheKey, node: &NodeName) -> Option<CellState> {
        let at = self.cache_index.get(key)?;
        let idx = *self.node_index.get(node)?;
        Some(self.caches.get(at)?.cells.get(idx)?.state)
    }

    /// Bytes that one node takes on average beyond its name and facts: what was seen of its images,
    /// and how it stands with every cache.
    pub fn bytes_per_node(&self) -> usize {
        let seen: usize = self
            .nodes
            .iter()
            .map(|node| size_of_val(node) + node.looks.bytes() + node.wanted.len().div_ceil(8))
            .sum();
        let cells: usize = self
            .caches
            .values()
            .map(|c| c.cells.capacity() * size_of::<crate::cell::Cell>())
            .sum();
        (seen + cells)
            .checked_div(self.node_index.len())
            .unwrap_or(0)
    }

    /// Nodes after this one, or one alone.
    fn nodes_after<'a>(
        &'a self,
        only: Option<&NodeName>,
        after: Option<&NodeName>,
    ) -> impl Iterator<Item = (&'a NodeName, NodeIdx)> {
        let from = (after.map_or(Unbounded, Excluded), Unbounded);
        let all = self.node_index.range::<NodeName, _>(from);
        let all = only.is_none().then_some(all).into_iter().flatten();
        let one = only.filter(|only| after.is_none_or(|after| *only > after));
        let one = one.and_then(|only| self.node_index.get_key_value(only));
        all.chain(one).map(|(name, idx)| (name, *idx))
    }
}

fn row(cache: &Cache) -> CacheRow {
    let holds = |type_| {
        let mut known = cache.object.status.conditions.iter();
        known.any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    CacheRow {
        key: cache.object.key.clone(),
        nodes: cache.counts.nodes,
        images: ImageCounts {
            kept: cache.kept(),
            ..cache.counts.images
        },
        status: cache.told.status.clone(),
        reason: cache.told.reason.clone(),
        started: cache.told.started,
        completed: cache.told.completed,
        operation: cache.operation.as_ref().map(|op| {
            let nodes = op.pulls.union_count(&op.removes);
            (nodes, op.open)
        }),
        refreshed: cache.refreshed,
        conditions: [
            kubefledged_api_types::conditions::READY,
            kubefledged_api_types::conditions::PROGRESSING,
            kubefledged_api_types::conditions::DEGRADED,
        ]
        .map(holds),
    }
}

/// The first rows of many.
fn page<R, C>(rows: impl Iterator<Item = (C, R)>, limit: usize) -> Page<R, C> {
    let limit = limit.clamp(1, MOST_ROWS);
    let mut page = Page {
        rows: Vec::new(),
        next: None,
    };
    let mut last = None;
    for (cursor, row) in rows {
        if page.rows.len() == limit {
            page.next = last;
            break;
        }
        page.rows.push(row);
        last = Some(cursor);
    }
    page
}

fn until(at: Tick, now: Tick) -> Duration {
    Duration::from_millis(at.0.saturating_sub(now.0))
}
