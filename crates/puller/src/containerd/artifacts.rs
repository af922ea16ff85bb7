//! OCI artifacts. containerd pulls them like images, and unpacks only the layers that the configuration names. An artifact's
//! configuration names none, so that a volume of it is empty.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tonic::Code;

use super::Containerd;

/// Maximum number of ids that are remembered. A node has some hundred images.
const MOST: usize = 10_000;

/// By image id, whether it is an artifact. The id is the digest of the configuration, so that the answer never changes.
pub type Kinds = Arc<Mutex<HashMap<String, bool>>>;

impl Containerd {
    /// Returns whether an image id is that of an artifact. False where containerd's own interface is not served.
    pub async fn is_artifact(&self, id: &str) -> bool {
        let known = || self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = known().get(id) {
            return *kind;
        }
        let artifact = match self.read(id.to_owned()).await {
            Ok(text) => names_no_layers(&text),
            // Another runtime, or an id that is no digest of a configuration.
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => false,
            Err(_) => return false,
        };
        let mut known = known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(id.to_owned(), artifact);
        artifact
    }
}

/// Does an image configuration name no layers?
fn names_no_layers(configuration: &[u8]) -> bool {
    let Ok(configuration) = serde_json::from_slice::<Value>(configuration) else {
        return true;
    };
    let layers = configuration["rootfs"]["diff_ids"].as_array();
    layers.is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_layers_and_an_artifact_does_not() {
        let image = br#"{"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ["sha256:00"]}}"#;
        assert!(!names_no_layers(image));
        let artifacts: [&[u8]; 3] = [b"{}", br#"{"rootfs": {"diff_ids": []}}"#, b"name: chart"];
        for artifact in artifacts {
            assert!(names_no_layers(artifact));
        }
    }
}
