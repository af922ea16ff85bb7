//! A registry with real manifests and layers, and how the fake containerd pulls from it: as containerd does, a layer that
//! somebody else writes is waited for, and gone on with at the byte where that one stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use kubefledged_image::ImageRef;
use kubefledged_proto::cri::Image;
use tonic::Status;

use super::{FakeRuntime, Shared, State, normalized};
use crate::containerd::store::{Blob, LAYER, Lease, WriteError, sha256};

/// Time between two looks at a layer that somebody else writes.
const LOOK: Duration = Duration::from_millis(20);

/// After the end of a pull garbage is collected. On a real node it takes about a second.
const COLLECTED: Duration = Duration::from_millis(300);

/// An image in the registry.
#[derive(Clone, Debug)]
pub struct Published {
    /// Digest of the index.
    pub digest: String,
    /// The index, and the manifest of this platform.
    pub documents: Vec<Vec<u8>>,
    /// Digests and contents of the layers.
    pub layers: Vec<(String, Vec<u8>)>,
    config: Vec<u8>,
}

/// Part of a layer that the registry sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The layer.
    pub digest: String,
    /// The first byte.
    pub offset: usize,
    /// Number of bytes.
    pub length: usize,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    images: BTreeMap<String, Published>,
    sent: Vec<Fetched>,
    /// It sends no layer.
    silent: bool,
    /// Layers vanish after a pull.
    discards: bool,
    pulls: u64,
    /// Digest that a name on the node points to.
    targets: BTreeMap<String, String>,
}

impl Published {
    /// An image of these layers, for the architecture of this machine.
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        let layers: Vec<_> = layers
            .into_iter()
            .map(|layer| (sha256(&layer), layer))
            .collect();
        let named: Vec<String> = layers
            .iter()
            .map(|(digest, layer)| {
                let size = layer.len();
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#
                )
            })
            .collect();
        let config = format!(r#"{{"layers":{}}}"#, named.len()).into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":{}}},"layers":[{}]}}"#,
            sha256(&config),
            config.len(),
            named.join(",")
        );
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}]}}"#,
            sha256(manifest.as_bytes()),
            manifest.len(),
        );
        Self {
            digest: sha256(index.as_bytes()),
            documents: vec![index.into_bytes(), manifest.into_bytes()],
            layers,
            config,
        }
    }

    fn blobs(&self, source: &(String, String)) -> Vec<Blob> {
        let (index, manifest) = (&self.documents[0], &self.documents[1]);
        let mut layers: BTreeMap<String, String> = self
            .layers
            .iter()
            .enumerate()
            .map(|(at, (digest, _))| {
                (
                    format!("containerd.io/gc.ref.content.l.{at}"),
                    digest.clone(),
                )
            })
            .collect();
        let mut children: BTreeMap<String, String> = [(
            "containerd.io/gc.ref.content.m.0".to_owned(),
            sha256(manifest),
        )]
        .into();
        for labels in [&mut layers, &mut children] {
            labels.insert(source.0.clone(), source.1.clone());
        }
        let documents = [
            (index, children),
            (manifest, layers),
            (&self.config, BTreeMap::new()),
        ];
        let blobs = documents.into_iter().map(|(text, labels)| Blob {
            digest: sha256(text),
            labels,
            text: text.clone(),
            kept: false,
        });
        blobs.collect()
    }
}

impl FakeRuntime {
    /// Puts an image into the registry.
    pub fn publish(&self, name: &str, image: &Published) {
        let mut state = self.shared.state();
        state
            .registry
            .images
            .insert(normalized(name), image.clone());
    }

    /// Lets the registry send no layers from now on, or send them again.
    pub fn silence(&self, silent: bool) {
        self.shared.state().registry.silent = silent;
    }

    /// Lets layers vanish after a pull, as with `discard_unpacked_layers`.
    pub fn discard_layers(&self) {
        self.shared.state().registry.discards = true;
    }

    /// Returns the parts of layers that the registry sent.
    pub fn fetched(&self) -> Vec<Fetched> {
        self.shared.state().registry.sent.clone()
    }

    /// Returns whether the blob is complete in the store.
    pub fn has_blob(&self, digest: &str) -> bool {
        self.shared.state().store.find(digest).is_some()
    }

    /// Adds a blob that belongs to no image. Returns its digest.
    pub fn hold_blob(&self, text: &[u8]) -> String {
        let blob = Blob {
            digest: sha256(text),
            text: text.to_vec(),
            kept: true,
            ..Blob::default()
        };
        let digest = blob.digest.clone();
        self.shared.state().store.add(blob, "");
        digest
    }

    /// Returns the names of blobs that are being written, and how many bytes of each are there.
    pub fn writes(&self) -> Vec<(String, usize)> {
        let state = self.shared.state();
        let writes = state.store.writes.iter();
        writes
            .map(|(name, write)| (name.clone(), write.data.len()))
            .collect()
    }

    /// Returns the ids of the leases with their labels.
    pub fn leases(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let state = self.shared.state();
        let leases = state.store.leases.iter();
        leases
            .map(|(id, lease)| (id.clone(), lease.labels.clone()))
            .collect()
    }

    /// Makes a lease of a puller that is gone; without a purpose it is somebody else's.
    pub fn lease(&self, id: &str, purpose: &str, end: &str) {
        let mut labels = BTreeMap::from([("containerd.io/gc.expire".to_owned(), end.to_owned())]);
        if !purpose.is_empty() {
            labels.insert("kubefledged.io/peers".to_owned(), purpose.to_owned());
        }
        let lease = Lease {
            labels,
            ..Lease::default()
        };
        self.shared
            .state()
            .store
            .leases
            .insert(id.to_owned(), lease);
    }

    /// Answers each write to a blob only after this time.
    pub fn write_slowly(&self, pace: Duration) {
        self.shared.state().write_pace = pace;
    }

    /// Lets nobody write blobs.
    pub fn refuse_writes(&self) {
        self.shared.state().refuse_writes = true;
    }
}

impl State {
    /// The digest that a name or an id on the node points to.
    pub(crate) fn target(&self, name: &str) -> String {
        let target = self.registry.targets.get(&normalized(name));
        target.map_or_else(|| name.to_owned(), Clone::clone)
    }

    /// Points a name or an id to a digest.
    pub(crate) fn point(&mut self, name: &str, digest: &str) {
        let targets = &mut self.registry.targets;
        targets.insert(name.to_owned(), digest.to_owned());
    }
}

impl Shared {
    /// Pulls an image that the registry has. `None`: it has none of this name.
    pub(super) async fn fetch(&self, name: &str) -> Option<Result<(), Status>> {
        let normal = normalized(name);
        let image = self.state().registry.images.get(&normal).cloned()?;
        let lease = {
            let mut state = self.state();
            state.registry.pulls += 1;
            format!("pull-{}", state.registry.pulls)
        };
        self.state()
            .store
            .leases
            .insert(lease.clone(), <_>::default());
        // The lease goes also if the caller does.
        let held = Held {
            shared: self,
            lease,
        };
        let result = self.fetch_under(&image, &normal, &held.lease).await;
        Some(result)
    }

    async fn fetch_under(
        &self,
        image: &Published,
        normal: &str,
        lease: &str,
    ) -> Result<(), Status> {
        let parsed = ImageRef::parse(normal).map_err(|error| Status::unknown(error.to_string()))?;
        let host = parsed.registry().split(':').next().unwrap_or_default();
        let source = format!("containerd.io/distribution.source.{host}");
        let source = (source, parsed.repository().to_owned());
        for blob in image.blobs(&source) {
            self.state().store.add(blob, lease);
        }
        let mut open: Vec<&(String, Vec<u8>)> = image.layers.iter().collect();
        while !open.is_empty() {
            let mut failed = None;
            open.retain(
                |(digest, layer)| match self.fetch_layer(digest, layer, lease) {
                    Ok(there) => !there,
                    Err(status) => {
                        failed = Some(status);
                        false
                    }
                },
            );
            if let Some(status) = failed {
                return Err(status);
            }
            tokio::time::sleep(LOOK).await;
        }
        self.state()
            .bring(image, normal, parsed.repository(), parsed.registry());
        Ok(())
    }

    /// Takes a layer if nobody else writes it. Returns whether it is there.
    #[allow(clippy::result_large_err)] // tonic's own error
    fn fetch_layer(&self, digest: &str, layer: &[u8], lease: &str) -> Result<bool, Status> {
        let mut state = self.state();
        let name = format!("{LAYER}{digest}");
        let total = i64::try_from(layer.len()).unwrap_or_default();
        let offset = match state.store.open(&name, digest, total, lease) {
            Ok(offset) => usize::try_from(offset).unwrap_or_default(),
            Err(WriteError::Exists) => return Ok(true),
            Err(WriteError::Locked) => return Ok(false),
        };
        if state.registry.silent {
            state.store.unlock(&name);
            return Ok(false);
        }
        if let Some(rest) = layer.get(offset..).filter(|rest| !rest.is_empty()) {
            state.registry.sent.push(Fetched {
                digest: digest.to_owned(),
                offset,
                length: rest.len(),
            });
            let write = state.store.writes.entry(name.clone()).or_default();
            write.data.extend_from_slice(rest);
        }
        if state.store.commit(&name, digest, lease) {
            return Ok(true);
        }
        Err(Status::failed_precondition(format!(
            "failed to pull and unpack image: failed commit on ref \"{name}\": unexpected commit digest"
        )))
    }
}

struct Held<'a> {
    shared: &'a Shared,
    lease: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.state().store.leases.remove(&self.lease);
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            tokio::time::sleep(COLLECTED).await;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.store.collect_garbage();
        });
    }
}

impl State {
    /// The image is on the node now.
    fn bring(&mut self, image: &Published, normal: &str, repository: &str, host: &str) {
        let id = sha256(&image.config);
        let mut names: BTreeSet<String> = image.documents.iter().map(|text| sha256(text)).collect();
        names.insert(id.clone());
        if !self.registry.discards {
            names.extend(image.layers.iter().map(|(digest, _)| digest.clone()));
        }
        self.store.roots.insert(id.clone(), names);
        let targets = &mut self.registry.targets;
        targets.insert(normal.to_owned(), image.digest.clone());
        self.images.retain(|known| known.id != id);
        let size: usize = image.layers.iter().map(|(_, layer)| layer.len()).sum();
        self.images.push(Image {
            id,
            repo_tags: vec![normal.to_owned()],
            repo_digests: vec![format!("{host}/{repository}@{}", image.digest)],
            size: u64::try_from(size).unwrap_or_default(),
            pinned: false,
        });
    }
}
