//! `list`: `ImageCaches` with progress and size, from the objects alone.

use kube::api::ListParams;
use kubefledged_api_types::{
    Timestamp,
    conditions::{DEGRADED, READY, STALLED},
};
use serde::Serialize;

use crate::{
    access::{Access, StoredCache},
    exit::{Exit, Failure},
    output::{
        Out, Row,
        quantities::{between, now, percent, short},
    },
};

/// Objects of one page: thousands of them are never in memory at once as JSON.
const PAGE: u32 = 500;

/// An `ImageCache` in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheRow {
    namespace: String,
    name: String,
    /// The word of its conditions that says most.
    state: String,
    ready_nodes: i64,
    desired_nodes: i64,
    ready_images: i64,
    desired_images: i64,
    bytes: i64,
    size: String,
    operation: String,
    status: String,
    age: String,
}

impl Row for CacheRow {
    const HEAD: &'static [&'static str] = &[
        "NAMESPACE",
        "NAME",
        "STATE",
        "NODES",
        "IMAGES",
        "SIZE",
        "OPERATION",
        "AGE",
    ];

    fn cells(&self) -> Vec<String> {
        let whole = u64::try_from(self.desired_images).unwrap_or(0);
        let part = u64::try_from(self.ready_images).unwrap_or(0);
        vec![
            self.namespace.clone(),
            self.name.clone(),
            self.state.clone(),
            format!("{}/{}", self.ready_nodes, self.desired_nodes),
            match whole {
                0 => "0/0".to_owned(),
                _ => format!("{part}/{whole} ({} %)", percent(part, whole)),
            },
            self.size.clone(),
            format!("{} {}", self.operation, self.status),
            self.age.clone(),
        ]
    }

    fn name(&self) -> String {
        format!("imagecache.kubefledged.io/{}", self.name)
    }
}

/// Lists the `ImageCaches`.
pub async fn run(access: &Access, out: Out) -> Result<Exit, Failure> {
    let (api, now) = (access.caches(), now());
    let mut rows = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await;
        let list = list.map_err(|error| Failure::of_kube("cannot list ImageCaches", &error))?;
        rows.extend(list.items.iter().map(|cache| row(cache, now)));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    out.rows(&rows)?;
    Ok(Exit::Good)
}

fn row(cache: &StoredCache, now: Timestamp) -> CacheRow {
    let status = &cache.status;
    let nodes = status.nodes.unwrap_or_default();
    let images = status.images.clone().unwrap_or_default();
    let or = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
    let age = cache.created().map(|created| short(between(created, now)));
    CacheRow {
        namespace: cache.namespace(),
        name: cache.name(),
        state: state(cache),
        ready_nodes: nodes.ready,
        desired_nodes: nodes.desired,
        ready_images: images.ready,
        desired_images: images.desired,
        bytes: images.bytes,
        size: or(&images.size, "-"),
        operation: or(
            status
                .reason
                .strip_prefix("ImageCache")
                .unwrap_or(&status.reason),
            "-",
        ),
        status: status.status.clone(),
        age: age.unwrap_or_default(),
    }
}

/// One word for the conditions: what needs somebody comes before what is under way.
fn state(cache: &StoredCache) -> String {
    let reason = |type_| {
        cache
            .condition(type_)
            .map(|condition| condition.reason.clone())
    };
    let purged = cache.status.purge.is_some();
    let word = match () {
        () if cache.metadata.deletion_timestamp.is_some() => "Deleting",
        () if !cache.is_observed() && !cache.is(STALLED) => "NotObserved",
        () if cache.is(STALLED) => {
            return format!("Stalled: {}", reason(STALLED).unwrap_or_default());
        }
        () if cache.is(DEGRADED) => {
            return format!("Degraded: {}", reason(DEGRADED).unwrap_or_default());
        }
        () if cache.is(READY) => "Ready",
        () if purged => "Purged",
        () => return reason(READY).unwrap_or_else(|| "Suspended".to_owned()),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cache(status: &serde_json::Value) -> StoredCache {
        let object = json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": "web", "namespace": "shop", "generation": 1, "creationTimestamp": "2026-11-01T00:00:00Z"},
            "spec": {"cacheSpec": "this cannot be parsed"}, "status": status,
        });
        serde_json::from_value(object).expect("an object")
    }

    #[test]
    fn a_row_has_progress_and_size_also_if_the_spec_cannot_be_parsed() {
        let row = row(
            &cache(&json!({
                "status": "Processing", "reason": "ImageCacheCreate", "observedGeneration": 1,
                "nodes": {"desired": 4, "ready": 1, "pulling": 3},
                "images": {"desired": 8, "ready": 5, "bytes": 20_000_000, "size": "20.0 MB"},
                "conditions": [{"type": "Ready", "status": "False", "reason": "ImagesMissing", "message": "m",
                                "lastTransitionTime": "2026-11-01T00:00:00Z"}],
            })),
            Timestamp(1_793_494_800),
        );
        assert_eq!(
            row.cells(),
            [
                "shop",
                "web",
                "ImagesMissing",
                "1/4",
                "5/8 (62 %)",
                "20.0 MB",
                "Create Processing",
                "1h"
            ]
            .map(str::to_owned)
        );
    }

    #[test]
    fn an_object_that_no_controller_has_seen_is_told_apart() {
        let fresh = cache(&json!({"observedGeneration": -1}));
        assert_eq!(state(&fresh), "NotObserved");
        assert_eq!(row(&fresh, Timestamp(0)).cells()[5], "-");
    }
}
