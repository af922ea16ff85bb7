//! What can be seen inside, between events: plain rows, one page at a time. Pages are no consistent snapshot. Why
//! an image is pulled or not is the answer of the very functions that planning asks.

mod batches;
mod caches;
mod explain;
mod fleet;
mod nodes;
mod page;
mod pairs;
mod rows;
mod workloads;

pub use explain::{PlanQuery, PlanRow, PlanStep};
pub use fleet::{NodeRow, PullingRow, SpecRow};
pub use page::{MOST_ROWS, Page};
pub use pairs::{PairFailure, PairQuery, PairRow};
pub use rows::{
    BatchKind, BatchRow, Budget, CacheDetail, CacheRow, DesiredRow, NamingRow, NamingRows,
    NodeCacheRow, NodeDetail, PeerSums, PendingRow, Progress, RegistryRow, Sums, TrueConditions,
};
