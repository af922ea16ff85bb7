//! Names and objects of the fleet.

use std::sync::Arc;

use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, ImageCacheStatus};
use kubefledged_engine::{
    CacheKey, CacheObject, ImageOutcome, ImageResult, NodeFacts, NodeName, ObservedImage,
};

/// The number of an image.
pub fn image(reference: &str) -> usize {
    let image = reference.trim_start_matches("registry.example/app");
    image.trim_end_matches(":1").parse().unwrap_or(0)
}

/// An image that is there.
pub fn present(index: usize, image: usize, result: ImageResult) -> ImageOutcome {
    ImageOutcome {
        observed: Some(ObservedImage {
            image_id: format!("sha256:{image}"),
            repo_digests: vec![format!("registry.example/app{image}@sha256:{image}")],
            size: 1 << 20,
            ..ObservedImage::default()
        }),
        ..ImageOutcome::new(index, result)
    }
}

/// A number of bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes of an image"
)]
pub fn bytes(bytes: f64) -> u64 {
    bytes as u64
}

/// The name of a node.
pub fn name(node: usize) -> NodeName {
    NodeName(format!("{node}").into())
}

/// The number of a node.
pub fn number(name: &NodeName) -> usize {
    name.0.parse().unwrap_or(0)
}

/// A node that is ready.
pub fn facts() -> NodeFacts {
    NodeFacts {
        ready: true,
        ..NodeFacts::default()
    }
}

/// A cache of so many images on all nodes.
pub fn cache(images: usize) -> CacheObject {
    let images = (0..images).map(|image| format!("registry.example/app{image}:1"));
    CacheObject {
        key: CacheKey {
            namespace: Arc::from("default"),
            name: Arc::from("wave"),
        },
        uid: "uid".to_owned(),
        resource_version: "1".to_owned(),
        generation: 1,
        spec: ImageCacheSpec {
            cache_spec: vec![CacheSpecEntry {
                images: images.collect(),
                ..CacheSpecEntry::default()
            }],
            ..ImageCacheSpec::default()
        },
        status: ImageCacheStatus::default(),
        refresh: None,
        purge: None,
        purge_came_later: false,
        deleting: false,
        finalizer: false,
    }
}
