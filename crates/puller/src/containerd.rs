//! Client of containerd's own API, on the same socket as CRI: pins, and the bytes of pulls. Other runtimes
//! answer `Unimplemented`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kubefledged_proto::containerd::{
    content::{
        InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest,
        content_client::ContentClient,
    },
    images::{
        GetImageRequest, Image, ListImagesRequest, UpdateImageRequest, images_client::ImagesClient,
    },
};
use kubefledged_queue::{Bytes, Support};
use tokio::sync::Mutex;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::progress::{self, Active, Manifest, Plan};

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

/// A client. Clones share the connection and their knowledge of pulls.
#[derive(Clone, Debug)]
pub struct Containerd {
    images: ImagesClient<Channel>,
    content: ContentClient<Channel>,
    /// Progress of the watched pulls by image name. Held while the runtime is asked: the queue and people may ask at the
    /// same time.
    plans: Arc<Mutex<HashMap<String, Plan>>>,
}

impl Containerd {
    /// Uses the connection of the socket.
    pub fn new(channel: Channel) -> Self {
        Self {
            images: ImagesClient::new(channel.clone()),
            content: ContentClient::new(channel),
            plans: Arc::default(),
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
    pub async fn progress(&self, names: &[String]) -> Result<BTreeMap<String, Bytes>, Status> {
        let mut plans = self.plans.lock().await;
        let active = self.statuses().await?;
        plans.retain(|name, _| names.contains(name));
        for name in names {
            if !plans.contains_key(name)
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
            seen.insert(name.clone(), plan.see(&active));
        }
        Ok(seen)
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
        let mut here = Vec::new();
        let mut stream = self.content.clone().list(request).await?.into_inner();
        while let Some(page) = stream.message().await? {
            for info in page.info {
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
        Ok(Plan::parse(&text, &here))
    }

    async fn read(&self, digest: String) -> Result<Vec<u8>, Status> {
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
