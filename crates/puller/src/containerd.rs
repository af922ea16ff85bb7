//! Client of containerd's own API, on the same socket as CRI: pins, and the bytes of pulls. Other runtimes
//! answer `Unimplemented`.

mod artifacts;
pub mod blobs;
mod names;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kubefledged_proto::containerd::{
    content::{
        InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest,
        content_client::ContentClient,
    },
    images::{
        GetImageRequest, Image, ListImagesRequest, UpdateImageRequest, images_client::ImagesClient,
    },
    leases::leases_client::LeasesClient,
};
use kubefledged_queue::{Progress, Support};
use tokio::sync::Mutex;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use artifacts::Kinds;

use crate::progress::{self, Active, Indexes, Manifest, Plan};

/// Namespace of the CRI plugin's images.
const NAMESPACE: &str = "k8s.io";
/// Label that the CRI plugin of containerd 2.x reports as `pinned`.
const PIN: &str = "io.cri-containerd.pinned";
/// Label that marks a pin as ours.
const OURS: &str = "kubefledged.io/pinned";
/// Label that marks a name as pulled by us. Its value is the digest of the image.
const PULLED: &str = "kubefledged.io/pulled";
/// Maximum size of a manifest that is read. Real ones have some KiB.
const MOST_MANIFEST: usize = 4 << 20;

/// Layers that a pull will bring, as another node says.
#[derive(Debug)]
pub struct Expected {
    /// Digest of the index or the manifest.
    pub digest: Arc<str>,
    /// Digests and sizes of the layers.
    pub layers: Vec<(String, u64)>,
    /// Bytes of them that came from other nodes so far.
    pub peers: AtomicU64,
    /// The runtime may be pulling something else.
    pub doubtful: AtomicBool,
}

impl Expected {
    fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }
}

/// A client. Clones share the connection and their knowledge of pulls.
#[derive(Clone, Debug)]
pub struct Containerd {
    images: ImagesClient<Channel>,
    content: ContentClient<Channel>,
    leases: LeasesClient<Channel>,
    /// Layers have a connection of their own, so that nothing else waits behind them.
    bulk: ContentClient<Channel>,
    /// Progress of the watched pulls by image name. Held while the runtime is asked: the queue and people may ask at the
    /// same time.
    plans: Arc<Mutex<HashMap<String, Plan>>>,
    /// Layers of pulls whose manifest is known from elsewhere, by image name.
    expected: Arc<std::sync::Mutex<HashMap<String, Arc<Expected>>>>,
    kinds: Kinds,
}

impl Containerd {
    /// Uses two connections to the socket, the second one for layers.
    pub fn new(channel: Channel, bulk: Channel) -> Self {
        Self {
            images: ImagesClient::new(channel.clone()),
            content: ContentClient::new(channel.clone()),
            leases: LeasesClient::new(channel),
            bulk: ContentClient::new(bulk),
            plans: Arc::default(),
            expected: Arc::default(),
            kinds: Kinds::default(),
        }
    }

    /// Returns whether pins may work and whether bytes are reported, that is, whether the socket serves
    /// this API. Only a test pin shows whether pins take effect.
    pub async fn abilities(&self) -> Result<(Support, bool), Status> {
        let pins = match self.pins().await {
            Ok(_) => Support::Unknown,
            Err(status) if status.code() == Code::Unimplemented => Support::No,
            Err(status) => return Err(status),
        };
        let progress = match self.statuses().await {
            Ok(_) => true,
            Err(status) if status.code() == Code::Unimplemented => false,
            Err(status) => return Err(status),
        };
        Ok((pins, progress))
    }

    // === pins

    /// Returns the ids of the images that we pinned.
    pub async fn pins(&self) -> Result<Vec<String>, Status> {
        let filters = vec![format!("labels.\"{OURS}\"==\"true\"")];
        let request = within(ListImagesRequest { filters });
        let images = self.images.clone().list(request).await?.into_inner().images;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// Sets or removes the label on the image id that CRI uses. A label on a tag would be lost at its next
    /// pull.
    pub async fn pin(&self, id: String, on: bool) -> Result<(), Status> {
        // containerd deletes a label whose value is empty.
        let (pin, ours) = if on { ("pinned", "true") } else { ("", "") };
        let labels = [(PIN, pin), (OURS, ours)];
        let paths = labels
            .iter()
            .map(|(key, _)| format!("labels.{key}"))
            .collect();
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let Some(known) = self.image(id).await? else {
            return if on {
                Err(Status::not_found("the image is not there any more"))
            } else {
                // The image has no pin to remove.
                Ok(())
            };
        };
        let request = within(UpdateImageRequest {
            image: Some(Image {
                labels: labels.into(),
                ..known
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        });
        match self.images.clone().update(request).await {
            Ok(_) => Ok(()),
            Err(status) if !on && status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Reads an image with its target, because containerd 2.x crashes at an update without it.
    async fn image(&self, name: String) -> Result<Option<Image>, Status> {
        let request = within(GetImageRequest { name });
        match self.images.clone().get(request).await {
            Ok(answer) => {
                let image = answer.into_inner().image;
                Ok(image.filter(|image| image.target.is_some()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    // === marks

    /// Remembers that we pulled what lies under a name. The label names the image, so that it means nothing after
    /// somebody else has moved the tag.
    pub async fn mark(&self, name: String) -> Result<(), Status> {
        let Some(mut known) = self.image(name).await? else {
            return Ok(());
        };
        let digest = known.target.as_ref().map(|target| target.digest.clone());
        known.labels = [(PULLED.to_owned(), digest.unwrap_or_default())].into();
        let request = within(UpdateImageRequest {
            image: Some(known),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![format!("labels.{PULLED}")],
            }),
        });
        match self.images.clone().update(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Returns whether we pulled what lies under a name.
    pub async fn is_marked(&self, name: String) -> Result<bool, Status> {
        Ok(self.image(name).await?.is_some_and(|image| {
            let label = image.labels.get(PULLED);
            label.is_some_and(|label| image.target.is_some_and(|target| target.digest == *label))
        }))
    }

    // === bytes

    /// Returns the progress of the pulls of these names, as far as they can be distinguished.
    pub async fn progress(&self, names: &[String]) -> Result<BTreeMap<String, Progress>, Status> {
        let mut plans = self.plans.lock().await;
        let active = self.statuses().await?;
        plans.retain(|name, _| names.contains(name));
        for name in names {
            let expected = self.expected().get(name).cloned();
            if let Some(expected) = expected.filter(|known| !known.is_doubtful()) {
                let matches = |plan: &Plan| plan.digest() == Some(&expected.digest);
                if !plans.get(name).is_some_and(matches) {
                    let (digest, layers) = (expected.digest.clone(), expected.layers.clone());
                    plans.insert(name.clone(), Plan::new(Some(digest), layers, &[]));
                }
            } else if !plans.contains_key(name)
                && let Some(plan) = self.plan(name, names, &active).await?
            {
                plans.insert(name.clone(), plan);
            }
        }
        let mut seen = BTreeMap::new();
        for (name, plan) in plans.iter_mut() {
            for digest in plan.unseen(&active) {
                if self.complete(digest.clone()).await? {
                    plan.complete(&digest);
                }
            }
            let expected = self.expected().get(name).cloned();
            let peers = expected.map(|expected| expected.peers.load(Ordering::Relaxed));
            let progress = Progress {
                bytes: plan.see(&active),
                peers: peers.unwrap_or_default(),
                digest: plan.digest().cloned(),
            };
            seen.insert(name.clone(), progress);
        }
        Ok(seen)
    }

    /// Says which layers the pull of a name will bring, before the runtime does.
    pub fn expect(&self, name: String, expected: Arc<Expected>) {
        self.expected().insert(name, expected);
    }

    /// Returns the digests of the layers of a pull, as far as they are known.
    pub async fn layers(&self, name: &str) -> Vec<String> {
        let plans = self.plans.lock().await;
        plans.get(name).map(Plan::layers).unwrap_or_default()
    }

    /// What was expected of a pull may be wrong: what the runtime does itself is looked at again.
    pub async fn doubt(&self, name: &str) {
        let expected = self.expected().get(name).cloned();
        if let Some(expected) = expected {
            expected.doubtful.store(true, Ordering::Relaxed);
            self.plans.lock().await.remove(name);
        }
    }

    /// The pull of a name is over. Returns the layers that were seen of it, and how many of their bytes were there before
    /// it.
    pub async fn ended(&self, name: &str) -> Option<(u64, u64)> {
        self.expected().remove(name);
        let plan = self.plans.lock().await.remove(name)?;
        Some(plan.sizes())
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<String, Arc<Expected>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn complete(&self, digest: String) -> Result<bool, Status> {
        match self
            .content
            .clone()
            .info(within(InfoRequest { digest }))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    async fn statuses(&self) -> Result<Active, Status> {
        let request = within(ListStatusesRequest::default());
        let answer = self.content.clone().list_statuses(request).await?;
        let statuses = answer.into_inner().statuses.into_iter();
        Ok(progress::layers(statuses.map(|s| (s.r#ref, s.offset))))
    }

    /// Returns the layers of the image whose manifest has arrived and whose layers are being fetched.
    async fn plan(
        &self,
        name: &str,
        names: &[String],
        active: &Active,
    ) -> Result<Option<Plan>, Status> {
        if active.is_empty() {
            return Ok(None);
        }
        let Some(filter) = progress::filter(name, names) else {
            return Ok(None);
        };
        let request = within(ListContentRequest {
            filters: vec![filter],
        });
        let mut manifests = Vec::new();
        let (mut indexes, mut here) = (Indexes::default(), Vec::new());
        let mut stream = self.content.clone().list(request).await?.into_inner();
        while let Some(page) = stream.message().await? {
            for info in page.info {
                indexes.note(&info);
                match Manifest::of(&info) {
                    Some(manifest) => manifests.push(manifest),
                    None => here.push(info.digest),
                }
            }
        }
        let Some(digest) = progress::fetched(&manifests, active) else {
            return Ok(None);
        };
        let text = self.read(digest.to_owned()).await?;
        let top = indexes.top(digest);
        Ok(Plan::parse(Some(top.into()), &text, &here))
    }

    /// Reads a small blob: a manifest or an index.
    pub async fn read(&self, digest: String) -> Result<Vec<u8>, Status> {
        let request = within(ReadContentRequest {
            digest,
            ..ReadContentRequest::default()
        });
        let mut stream = self.content.clone().read(request).await?.into_inner();
        let mut text = Vec::new();
        while let Some(part) = stream.message().await? {
            text.extend(part.data);
            if text.len() > MOST_MANIFEST {
                return Err(Status::out_of_range("a manifest of more than 4 MiB"));
            }
        }
        Ok(text)
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}
