//! Image names as small numbers. Two spellings of one image have one number.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use kubefledged_image::ImageRef;

use super::{backoff, registries::Registries};
use crate::{
    ids::{IdSet, ImageId, Index, RegistryId, Stamp},
    vocabulary::ObservedImage,
};

/// So many contents of a name are remembered: a tag that moves leaves nodes with older ones.
const CONTENTS: usize = 4;

/// What the name of an image says, and what its registry last answered.
#[derive(Debug)]
pub struct Image {
    name: Arc<str>,
    /// Its registry: one for all spellings of a host. All images of a batch have the same.
    pub registry: RegistryId,
    /// It has no tag, or the tag `:latest`.
    pub floating: bool,
    /// Why the name cannot be parsed; `None`: it can.
    pub invalid: Option<String>,
    /// The registry's last answer about this name.
    pub registry_answer: Option<RegistryAnswer>,
    /// Size in bytes, as the runtime that reported it last counts it; 0: not known.
    pub size: u64,
    repository: String,
    /// What runtimes reported last. All nodes report the same, as long as the tag does not move.
    reported: Report,
    /// Digests of the images that runtimes reported last, the newest last.
    contents: Vec<(Digest, Arc<str>)>,
}

/// The digests that a runtime reported of an image, and which image they mean.
#[derive(Debug, Default)]
struct Report {
    repo_digests: Vec<String>,
    digest: Option<Digest>,
}

/// A registry's answer to a batch.
#[derive(Clone, Copy, Debug)]
pub struct RegistryAnswer {
    /// Stamp of the batch.
    pub stamp: Stamp,
    /// The image that the registry has; `None`: the runtime did not tell.
    pub digest: Option<Digest>,
}

/// Which image of a repository a node holds: a hash of its digests, because the only question is whether
/// two nodes hold the same image. It is short, because there is one for each pair of node and image: one tag in four
/// billion moves to an image with the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(NonZeroU32);

/// All images that some cache names. A number is used again after no cache names its image any more.
#[derive(Debug, Default)]
pub struct Images {
    ids: BTreeMap<Arc<str>, ImageId>,
    rows: Vec<Image>,
    free: Vec<ImageId>,
}

impl Images {
    /// The number of a name; a new name gets one.
    pub fn intern(&mut self, name: &str, registries: &mut Registries) -> ImageId {
        let parsed = ImageRef::parse(name);
        let key = match &parsed {
            Ok(parsed) => parsed.normalized(),
            Err(_) => name.to_owned(),
        };
        if let Some(id) = self.ids.get(key.as_str()) {
            return *id;
        }
        let name: Arc<str> = key.into();
        let image = match parsed {
            Ok(parsed) => Image {
                name: name.clone(),
                registry: registries.intern(&parsed.registry_key()),
                floating: parsed.is_floating(),
                invalid: None,
                registry_answer: None,
                size: 0,
                repository: repository(&name),
                reported: Report::default(),
                contents: Vec::new(),
            },
            Err(error) => Image {
                name: name.clone(),
                registry: registries.intern(""),
                floating: false,
                invalid: Some(error.to_string()),
                registry_answer: None,
                size: 0,
                repository: String::new(),
                reported: Report::default(),
                contents: Vec::new(),
            },
        };
        let id = self
            .free
            .pop()
            .unwrap_or_else(|| ImageId::from_index(self.rows.len()));
        if id.index() == self.rows.len() {
            self.rows.push(image);
        } else {
            self.rows[id.index()] = image;
        }
        self.ids.insert(name, id);
        id
    }

    /// What is known of an image.
    pub fn get(&self, id: ImageId) -> &Image {
        &self.rows[id.index()]
    }

    /// What is known of an image.
    pub fn get_mut(&mut self, id: ImageId) -> &mut Image {
        &mut self.rows[id.index()]
    }

    /// How many images have a number.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// All images with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (ImageId, &Image)> {
        self.ids.values().map(|id| (*id, self.get(*id)))
    }

    /// Frees the numbers of images that `named` lacks, and returns them.
    pub fn sweep(&mut self, named: &IdSet<ImageId>) -> IdSet<ImageId> {
        let gone: Vec<ImageId> = self
            .ids
            .values()
            .copied()
            .filter(|id| !named.contains(*id))
            .collect();
        for id in &gone {
            self.ids.remove(&self.rows[id.index()].name);
        }
        self.free.extend(&gone);
        gone.into_iter().collect()
    }

    /// Which image of its repository a runtime holds under this name; remembers its size. If the runtime
    /// names several digests of the repository, all of them count; if it names none, the answer is `None`.
    pub fn digest(&mut self, id: ImageId, observed: &ObservedImage) -> Option<Digest> {
        let image = &mut self.rows[id.index()];
        if observed.size > 0 {
            image.size = observed.size;
        }
        if image.reported.repo_digests != observed.repo_digests {
            let digests = own_digests(&image.repository, observed);
            let digest = digest_of(&digests);
            if let Some((digest, text)) = digest.zip(digests.first()) {
                image.contents.retain(|(known, _)| *known != digest);
                if image.contents.len() == CONTENTS {
                    image.contents.remove(0);
                }
                image.contents.push((digest, Arc::from(*text)));
            }
            image.reported = Report {
                digest,
                repo_digests: observed.repo_digests.clone(),
            };
        }
        image.reported.digest
    }
}

impl Image {
    /// The digest of a content as runtimes report it; `None`: it was reported too long ago.
    pub fn text(&self, digest: Digest) -> Option<&Arc<str>> {
        let mut contents = self.contents.iter();
        let found = contents.find(|(known, _)| *known == digest);
        found.map(|(_, text)| text)
    }
}

/// The digests of an image in its own repository, sorted.
fn own_digests<'a>(repository_of: &str, observed: &'a ObservedImage) -> Vec<&'a str> {
    let mut digests: Vec<&str> = observed
        .repo_digests
        .iter()
        .filter_map(|name| name.split_once('@'))
        .filter(|(name, _)| {
            // Runtimes write the normalized spelling; any other spelling is parsed.
            *name == repository_of
                || ImageRef::parse(name)
                    .is_ok_and(|name| repository(&name.normalized()) == repository_of)
        })
        .map(|(_, digest)| digest)
        .collect();
    digests.sort_unstable();
    digests
}

/// Which image of a repository these digests mean.
fn digest_of(digests: &[&str]) -> Option<Digest> {
    if digests.is_empty() {
        return None;
    }
    let parts: Vec<&[u8]> = digests.iter().map(|digest| digest.as_bytes()).collect();
    let hash = NonZeroU32::new((backoff::hash(0, &parts) >> 32) as u32);
    Some(Digest(hash.unwrap_or(NonZeroU32::MIN)))
}

/// A normalized name without tag and digest.
fn repository(normalized: &str) -> String {
    let name = normalized
        .split_once('@')
        .map_or(normalized, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[last..].find(':').map_or(name.len(), |at| last + at);
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intern(images: &mut Images, name: &str) -> ImageId {
        images.intern(name, &mut Registries::default())
    }

    fn observed(digests: &[&str]) -> ObservedImage {
        ObservedImage {
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            ..ObservedImage::default()
        }
    }

    #[test]
    fn spellings_of_one_image_have_one_number_and_a_malformed_name_is_marked() {
        let mut images = Images::default();
        let a = intern(&mut images, "nginx");
        assert_eq!(a, intern(&mut images, "docker.io/library/nginx:latest"));
        assert_ne!(a, intern(&mut images, "nginx:1.27"));
        assert!(images.get(a).floating);
        let bad = intern(&mut images, "UPPER/case:x");
        assert!(images.get(bad).invalid.is_some());
    }

    #[test]
    fn numbers_of_images_that_no_cache_names_are_used_again() {
        let mut images = Images::default();
        let (a, b) = (intern(&mut images, "a:1"), intern(&mut images, "b:1"));
        let named = [b].into_iter().collect();
        assert!(images.sweep(&named).iter().eq([a]));
        assert_eq!(intern(&mut images, "c:1"), a);
        assert_eq!((images.len(), intern(&mut images, "b:1")), (2, b));
    }

    #[test]
    fn all_spellings_of_a_registry_share_one_budget() {
        let (mut images, mut registries) = (Images::default(), Registries::default());
        let mut registry = |name| {
            let image = images.intern(name, &mut registries);
            images.get(image).registry
        };
        let one = registry("registry.corp/a:1");
        assert_eq!(one, registry("Registry.Corp/b:1"));
        assert_eq!(one, registry("registry.corp:443/c:1"));
        assert_ne!(one, registry("registry.corp:5000/a:1"));
    }

    #[test]
    fn only_digests_of_the_images_own_repository_tell_which_image_a_node_holds() {
        let mut images = Images::default();
        let id = intern(&mut images, "r.test:5000/a/b:1");
        let mut of = |digests: &[&str]| images.digest(id, &observed(digests));
        let one = of(&["r.test:5000/a/b@sha256:1"]);
        assert!(one.is_some());
        assert_eq!(one, of(&["other/x@sha256:9", "r.test:5000/a/b@sha256:1"]));
        assert_ne!(one, of(&["r.test:5000/a/b@sha256:2"]));
        assert_eq!((of(&["other/x@sha256:1"]), of(&[])), (None, None));
    }
}
