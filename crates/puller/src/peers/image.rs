//! What an image consists of, by documents of which each is verified by the digest that the one before names. Whoever
//! sends them can leave nothing out and add nothing.

use kubefledged_contract::tickets::is_digest;
use kubefledged_process::tls::identity::hex;
use ring::digest::{SHA256, digest};
use serde::Deserialize;

/// Documents from the top to the manifest.
const MOST_DOCUMENTS: usize = 3;
/// Layers of one image. Runtimes refuse more than some 125.
const MOST_LAYERS: usize = 512;
/// Size of one layer.
const MOST_SIZE: u64 = 1 << 42;

/// One layer of an image, compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `sha256:...`
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// An image for the platform of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of the first document: an index, or the manifest.
    pub digest: String,
    /// The documents.
    pub documents: Vec<Vec<u8>>,
    /// The layers, each once, the lowest first.
    pub layers: Vec<Layer>,
}

/// Why documents are no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There are none, or too many.
    #[error("the number of documents is wrong")]
    Number,
    /// A document is not the one that was asked for.
    #[error("a document has another digest")]
    Digest,
    /// A document cannot be read.
    #[error("a document cannot be read")]
    Malformed,
    /// The image is for another platform.
    #[error("the image is for another platform")]
    Platform,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// SHA-256 as manifests write it.
pub fn sha256(data: &[u8]) -> String {
    format!("sha256:{}", hex(digest(&SHA256, data).as_ref()))
}

/// Returns the manifests for our platform that an index names. `None`: it is no index, but a manifest.
pub fn children(document: &[u8]) -> Result<Option<Vec<String>>, Wrong> {
    let document: Document = serde_json::from_slice(document).map_err(|_| Wrong::Malformed)?;
    if document.manifests.is_empty() {
        return Ok(None);
    }
    let ours = document.manifests.into_iter().filter(is_ours);
    Ok(Some(ours.map(|child| child.digest).collect()))
}

fn is_ours(child: &Descriptor) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    let platform = child.platform.as_ref();
    platform.is_none_or(|known| known.os == "linux" && known.architecture == architecture)
}

impl Image {
    /// Verifies documents that somebody sent for this digest.
    ///
    /// # Errors
    /// They are not the image of this digest for our platform.
    pub fn verify(digest: &str, documents: Vec<Vec<u8>>) -> Result<Self, Wrong> {
        if documents.is_empty() || documents.len() > MOST_DOCUMENTS {
            return Err(Wrong::Number);
        }
        let mut allowed = vec![digest.to_owned()];
        for document in &documents {
            if !allowed.contains(&sha256(document)) {
                return Err(if allowed.is_empty() {
                    Wrong::Platform
                } else {
                    Wrong::Digest
                });
            }
            allowed = children(document)?.unwrap_or_default();
        }
        let manifest = documents.last().map_or(&[][..], Vec::as_slice);
        let layers = layers(manifest)?;
        Ok(Self {
            digest: digest.to_owned(),
            documents,
            layers,
        })
    }

    /// Bytes of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

fn layers(manifest: &[u8]) -> Result<Vec<Layer>, Wrong> {
    let document: Document = serde_json::from_slice(manifest).map_err(|_| Wrong::Malformed)?;
    if !document.manifests.is_empty() || document.layers.len() > MOST_LAYERS {
        return Err(Wrong::Malformed);
    }
    let mut layers: Vec<Layer> = Vec::new();
    for Descriptor { digest, size, .. } in document.layers {
        if !is_digest(&digest) || size > MOST_SIZE {
            return Err(Wrong::Malformed);
        }
        if !layers.iter().any(|known| known.digest == digest) {
            layers.push(Layer { digest, size });
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use kubefledged_testkit::Published;

    use super::*;

    fn published() -> Published {
        Published::new(vec![vec![1; 10], vec![2; 20], vec![1; 10]])
    }

    #[test]
    fn an_index_leads_to_the_layers_of_our_platform_each_once() {
        let image = published();
        let verified = Image::verify(&image.digest, image.documents.clone()).unwrap();
        let sizes: Vec<u64> = verified.layers.iter().map(|layer| layer.size).collect();
        assert_eq!((sizes, verified.size()), (vec![10, 20], 30));
        let manifest = image.documents[1].clone();
        let alone = Image::verify(&sha256(&manifest), vec![manifest]).unwrap();
        assert_eq!(alone.layers, verified.layers);
    }

    #[test]
    fn documents_that_are_not_those_of_the_digest_are_refused() {
        let image = published();
        let (digest, [index, manifest]) =
            (image.digest, <[_; 2]>::try_from(image.documents).unwrap());
        let other = Published::new(vec![vec![9]]).documents[1].clone();
        for (documents, wrong) in [
            (vec![], Wrong::Number),
            (vec![index.clone(); 4], Wrong::Number),
            (vec![manifest.clone()], Wrong::Digest),
            (vec![index.clone(), other], Wrong::Digest),
            (vec![index.clone(), index.clone()], Wrong::Digest),
            // The index alone has no layers.
            (vec![index.clone()], Wrong::Malformed),
        ] {
            assert_eq!(Image::verify(&digest, documents), Err(wrong));
        }
        let junk = b"<html>".to_vec();
        let refused = Image::verify(&sha256(&junk), vec![junk]);
        assert_eq!(refused, Err(Wrong::Malformed));
        let foreign = String::from_utf8(index).unwrap().replace("linux", "plan9");
        let digest = sha256(foreign.as_bytes());
        let refused = Image::verify(&digest, vec![foreign.into_bytes(), manifest]);
        assert_eq!(refused, Err(Wrong::Platform));
    }
}
