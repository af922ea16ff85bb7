//! What objects are told: operations begin and end, statuses are computed and written, Kubernetes Events are
//! emitted. It reads what planning found, and makes nodes be planned again.

mod caches;
mod causes;
pub mod conditions;
mod deletion;
mod due;
mod events;
mod failures;
mod gates;
mod operations;
mod quota;
mod reading;
mod refresh;
mod secrets;
mod sources;
pub mod status;
mod transitions;
mod writes;

use std::time::Duration;

use crate::vocabulary::CacheObject;

/// Pause before a command without an answer is given again.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Pause before a write that failed is tried again.
const WRITE_RETRY: Duration = Duration::from_secs(2);

/// Notes the version that a write of ours made, unless the watch has brought a later one.
fn written(object: &mut CacheObject, version: String) {
    if !is_older(&version, &object.resource_version) {
        object.resource_version = version;
    }
}

/// Is one resource version older than another? Those of one object are rising numbers in every Kubernetes; where
/// they are no numbers, the later event wins.
fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(a), Ok(b)) if a < b)
}
