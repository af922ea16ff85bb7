//! Names and ids of images, as runtimes write them.

use std::collections::BTreeSet;

use kubefledged_image::ImageRef;

use super::normalized;
use crate::{Container, Image};

/// A normalized name without tag and digest.
pub fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    name[path..]
        .find(':')
        .map_or(name, |colon| &name[..path + colon])
}

/// What the runtime is asked for.
pub fn runtime_name(written: &str) -> String {
    ImageRef::parse(written).map_or_else(|_| written.to_owned(), |image| image.runtime_name())
}

/// Whether a name has no registry.
pub fn is_short(written: &str) -> bool {
    let hub = ["docker.io/", "index.docker.io/"];
    ImageRef::parse(written).is_ok_and(|image| image.registry() == "docker.io")
        && !hub.iter().any(|host| written.starts_with(host))
}

pub fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// Whether CRI-O keeps this as an artifact: then its id is the digest of its manifest, where an image has that of its
/// configuration. CRI-O shows every artifact as pinned, whoever brought it.
pub fn is_artifact(image: &Image) -> bool {
    let digest = format!("@sha256:{}", bare(&image.id));
    image.digests.iter().any(|known| known.ends_with(&digest))
}

/// Whether what the runtime shows as one image is several: containerd makes the id of the configuration, and all artifacts
/// with the empty configuration have one.
pub fn is_several(image: &Image) -> bool {
    let digest = |name: &String| name.split_once('@').map(|(_, digest)| digest.to_owned());
    let digests: BTreeSet<String> = image.digests.iter().filter_map(digest).collect();
    digests.len() > 1
}

pub fn uses(container: &Container, image: &Image) -> bool {
    let mut said = container.image.iter().filter(|said| !said.is_empty());
    said.any(|said| {
        // cri-dockerd writes docker://id and docker-pullable://name@digest.
        let said = said
            .split_once("://")
            .map_or(said.as_str(), |(_, said)| said);
        let mut names = image.tags.iter().chain(&image.digests);
        bare(said) == bare(&image.id)
            || names.any(|name| name == said || normalized(name) == normalized(said))
    })
}
