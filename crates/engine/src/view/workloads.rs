//! Which workloads name the images of a cache.

use super::{
    page::MOST_ROWS,
    rows::{NamingRow, NamingRows},
};
use crate::{commit::Engine, vocabulary::CacheKey};

impl Engine {
    /// The workloads that name the images of a cache, or this one of them. `None`: there is no such cache.
    pub fn view_workloads(&self, key: &CacheKey, image: Option<&str>) -> Option<NamingRows> {
        let cache = self.model.caches.get(self.model.caches.find(key)?)?;
        let sources = cache.sources.iter();
        let all = sources.flat_map(|sources| sources.naming(&self.model.workloads, image));
        let mut rows: Vec<NamingRow> = all
            .take(MOST_ROWS + 1)
            .map(|naming| NamingRow {
                kind: naming.kind.clone(),
                workload: naming.key.clone(),
                image: naming.image.clone(),
                list: naming.list as usize,
            })
            .collect();
        let truncated = rows.len() > MOST_ROWS;
        rows.truncate(MOST_ROWS);
        Some(NamingRows { rows, truncated })
    }
}
