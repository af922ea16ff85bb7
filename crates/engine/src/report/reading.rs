//! What conditions say of the workloads that name images.

use super::causes::plural;
use crate::model::{cache::Cache, source::Reading};

/// Why workloads that name images of a cache cannot be read; `None`: they can, or it reads none.
pub fn unreadable(cache: &Cache) -> Option<&str> {
    cache.sources.as_ref()?.reading.error()
}

/// Were the workloads of a cache never read, and why; `None`: they were.
pub fn unread(cache: &Cache) -> Option<&Reading> {
    let reading = &cache.sources.as_ref()?.reading;
    (!matches!(reading, Reading::Known(_))).then_some(reading)
}

/// Of how many names that workloads name there is no room; `None`: all have room.
pub fn beyond(cache: &Cache) -> Option<String> {
    let beyond = cache.sources.as_ref()?.named.beyond;
    (beyond > 0).then(|| {
        format!(
            "workloads name {} more than the ImageCache or its namespace may have, and the newest have room: select fewer workloads, or use several ImageCaches",
            plural(beyond, "image")
        )
    })
}
