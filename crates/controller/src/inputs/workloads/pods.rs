//! The part of pod templates that is read: images, and where their credentials are.

use std::sync::Arc;

use kubefledged_api_types::workloads::ImagePlace;
use kubefledged_engine::{Labels, Workload, WorkloadImage};
use serde::{Deserialize, Deserializer};

/// Maximum number of images of one workload. A custom object may have any number of templates.
const MOST_IMAGES: usize = 512;
/// The `ServiceAccount` of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// A pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    #[serde(deserialize_with = "or_none")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_none")]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "or_none")]
    volumes: Vec<Volume>,
    #[serde(deserialize_with = "or_none")]
    image_pull_secrets: Vec<SecretReference>,
    service_account_name: Option<String>,
    service_account: Option<String>,
}

/// A container. It may stand alone, as the model server of an `InferenceService` does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    name: Option<String>,
    image: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: Option<String>,
    image: Option<ImageVolume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ImageVolume {
    reference: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SecretReference {
    name: Option<String>,
}

/// Reads `null` as an empty list, as the API server does.
fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl From<Container> for PodSpec {
    fn from(container: Container) -> Self {
        Self {
            containers: vec![container],
            ..Self::default()
        }
    }
}

impl PodSpec {
    fn images(&self) -> impl Iterator<Item = WorkloadImage> {
        let all = |containers: &[Container], place| {
            let images = containers.iter().filter_map(move |container| {
                image(container.name.as_deref(), container.image.as_deref(), place)
            });
            images.collect::<Vec<_>>()
        };
        let volumes = self.volumes.iter().filter_map(|volume| {
            let reference = volume.image.as_ref()?.reference.as_deref();
            image(volume.name.as_deref(), reference, ImagePlace::Volume)
        });
        let volumes: Vec<_> = volumes.collect();
        all(&self.containers, ImagePlace::Container)
            .into_iter()
            .chain(all(&self.init_containers, ImagePlace::InitContainer))
            .chain(volumes)
    }
}

/// An image; `None`: none is named. Admission fills in some of them later.
fn image(
    container: Option<&str>,
    reference: Option<&str>,
    place: ImagePlace,
) -> Option<WorkloadImage> {
    let reference = reference.map(str::trim).filter(|name| !name.is_empty())?;
    Some(WorkloadImage {
        container: container.unwrap_or_default().into(),
        place,
        reference: reference.into(),
    })
}

/// A workload with these pod templates; `None`: they name no image. `account`: its pods get the pull secrets of
/// their `ServiceAccount` if the templates have none. A Pod has got them already.
pub fn workload(labels: Labels, templates: &[PodSpec], account: bool) -> Option<Workload> {
    let images: Box<[WorkloadImage]> = templates
        .iter()
        .flat_map(PodSpec::images)
        .take(MOST_IMAGES)
        .collect();
    let secrets = templates
        .iter()
        .flat_map(|template| &template.image_pull_secrets);
    let mut names: Vec<String> = Vec::new();
    for name in secrets.filter_map(|secret| secret.name.clone()) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    let set = |name: &&String| !name.is_empty();
    let mut accounts = templates.iter().filter_map(|template| {
        let name = template.service_account_name.as_ref().filter(set);
        name.or(template.service_account.as_ref().filter(set))
    });
    let service_account = accounts.next().map_or(DEFAULT_ACCOUNT, String::as_str);
    (!images.is_empty()).then(|| Workload {
        labels,
        images,
        secrets: names.into(),
        service_account: account.then(|| Arc::from(service_account)),
    })
}
