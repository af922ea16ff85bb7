//! containerd's own interface, on the same socket as CRI: pins, and the bytes of a pull. Other
//! runtimes answer `Unimplemented`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
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
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::progress::{self, Active, Manifest, Plan};

/// Where the CRI plugin keeps its images.
const NAMESPACE: &str = "k8s.io";
/// What the CRI plugin of containerd 2.x reads as `pinned`.
const PIN: &str = "io.cri-containerd.pinned";
/// Tells whose pin it is.
const OURS: &str = "kubefledged.io/pinned";
/// A manifest is some KiB; nothing that claims to be one fills our memory.
const MOST_MANIFEST: usize = 4 << 20;

/// A client; clones share the connection and what is known of pulls.
#[derive(Clone, Debug)]
pub struct Containerd {
    images: ImagesClient<Channel>,
    content: ContentClient<Channel>,
    /// Of the pulls that are being watched, by name.
    plans: Arc<Mutex<HashMap<String, Plan>>>,
}

impl Containerd {
    /// On the socket's connection.
    pub fn new(channel: Channel) -> Self {
        Self {
            images: ImagesClient::new(channel.clone()),
            content: ContentClient::new(channel),
            plans: Arc::default(),
        }
    }

    /// Whether pins may work, and whether bytes can be seen: does the socket speak this at all?
    /// That a pin takes effect, only trying tells.
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

    /// Ids that carry our pin.
    pub async fn pins(&self) -> Result<Vec<String>, Status> {
        let filters = vec![format!("labels.\"{OURS}\"==\"true\"")];
        let request = within(ListImagesRequest { filters });
        let images = self.images.clone().list(request).await?.into_inner().images;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// Labels the id under which CRI knows the image: a label on a tag is lost at its next pull.
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
                // Nothing is pinned on it.
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

    /// An image with what it points to: containerd 2.x crashes at an update without.
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

    // === bytes

    /// How far the pulls of these names are, of those that can be told apart.
    pub async fn progress(&self, names: &[String]) -> Result<BTreeMap<String, Bytes>, Status> {
        let active = self.statuses().await?;
        let mut plans = std::mem::take(&mut *self.plans());
        plans.retain(|name, _| names.contains(name));
        for name in names {
            if !plans.contains_key(name)
                && let Some(plan) = self.plan(name, names, &active).await?
            {
                plans.insert(name.clone(), plan);
            }
        }
        let mut seen = BTreeMap::new();
        for (name, plan) in &mut plans {
            for digest in plan.unseen(&active) {
                if self.complete(digest.clone()).await? {
                    plan.complete(&digest);
                }
            }
            seen.insert(name.clone(), plan.see(&active));
        }
        *self.plans() = plans;
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

    fn plans(&self) -> std::sync::MutexGuard<'_, HashMap<String, Plan>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn statuses(&self) -> Result<Active, Status> {
        let request = within(ListStatusesRequest::default());
        let answer = self.content.clone().list_statuses(request).await?;
        let statuses = answer.into_inner().statuses.into_iter();
        Ok(progress::layers(statuses.map(|s| (s.r#ref, s.offset))))
    }

    /// The layers of an image whose manifest has arrived and some of whose layers are arriving.
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
