//! Image names as small numbers. Two spellings of one image are one number.

use std::{collections::BTreeMap, sync::Arc};

use kubefledged_image::ImageRef;

use crate::{
    Seen, backoff,
    node::Stamp,
    registry::{Registries, RegistryId},
};

/// An image, whatever its spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub u32);

impl ImageId {
    /// Into a bit set or a vector.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// From a bit set.
    pub fn from_index(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// What is known of an image by its name alone, and what a registry last said of it.
#[derive(Debug)]
pub struct Image {
    name: Arc<str>,
    /// Host of its registry; batches are homogeneous in it.
    pub registry: RegistryId,
    /// No tag or `:latest`.
    pub floating: bool,
    /// Why the name does not parse.
    pub invalid: Option<String>,
    /// What the registry has, and the stamp of the batch that asked.
    pub news: Option<(Stamp, Digest)>,
    /// As the runtime that was asked last counts it; 0: not known.
    pub size: u64,
    repository: String,
}

/// Which image of a repository a node holds; 0: not known. A hash, because all that is asked is
/// whether two nodes hold the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Is it known, and the same?
    pub fn same(self, other: Self) -> bool {
        self.0 != 0 && self == other
    }

    /// Is it known?
    pub fn known(self) -> bool {
        self.0 != 0
    }
}

/// All images that some cache names. A number is used again when no cache names its image any more.
#[derive(Debug, Default)]
pub struct Images {
    ids: BTreeMap<Arc<str>, ImageId>,
    rows: Vec<Image>,
    free: Vec<ImageId>,
}

impl Images {
    /// The number of a name.
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
                registry: registries.intern(parsed.registry()),
                floating: parsed.is_floating(),
                invalid: None,
                news: None,
                size: 0,
                repository: repository(&name),
            },
            Err(error) => Image {
                name: name.clone(),
                registry: registries.intern(""),
                floating: false,
                invalid: Some(error.to_string()),
                news: None,
                size: 0,
                repository: String::new(),
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

    /// How many are named.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Numbers of images that `named` does not have; they are free from now on.
    pub fn sweep(&mut self, named: &fixedbitset::FixedBitSet) -> Vec<ImageId> {
        let gone: Vec<ImageId> = self
            .ids
            .values()
            .copied()
            .filter(|id| !named.contains(id.index()))
            .collect();
        for id in &gone {
            self.ids.remove(&self.rows[id.index()].name);
        }
        self.free.extend(&gone);
        gone
    }

    /// Which image of its repository a runtime has under this name; notes its size. Where the runtime names several
    /// digests, all of them count; where it names none of the repository, nothing is known.
    pub fn digest(&mut self, id: ImageId, seen: &Seen) -> Digest {
        if seen.size > 0 {
            self.rows[id.index()].size = seen.size;
        }
        let repository_of = &self.rows[id.index()].repository;
        let mut digests: Vec<&str> = seen
            .repo_digests
            .iter()
            .filter_map(|name| name.split_once('@'))
            .filter(|(name, _)| {
                // As runtimes write it; another spelling is the same.
                name == repository_of
                    || ImageRef::parse(name)
                        .is_ok_and(|name| repository(&name.normalized()) == *repository_of)
            })
            .map(|(_, digest)| digest)
            .collect();
        if digests.is_empty() {
            return Digest::default();
        }
        digests.sort_unstable();
        let parts: Vec<&[u8]> = digests.iter().map(|digest| digest.as_bytes()).collect();
        Digest(backoff::hash(0, &parts).max(1))
    }
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

    fn seen(digests: &[&str]) -> Seen {
        Seen {
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            ..Seen::default()
        }
    }

    #[test]
    fn spellings_of_one_image_are_one_and_a_bad_name_is_remembered_as_such() {
        let mut images = Images::default();
        let a = intern(&mut images, "nginx");
        assert_eq!(a, intern(&mut images, "docker.io/library/nginx:latest"));
        assert_ne!(a, intern(&mut images, "nginx:1.27"));
        assert!(images.get(a).floating);
        let bad = intern(&mut images, "UPPER/case:x");
        assert!(images.get(bad).invalid.is_some());
    }

    #[test]
    fn numbers_of_images_that_nobody_names_are_used_again() {
        let mut images = Images::default();
        let (a, b) = (intern(&mut images, "a:1"), intern(&mut images, "b:1"));
        let mut named = fixedbitset::FixedBitSet::with_capacity(8);
        named.insert(b.index());
        assert_eq!(images.sweep(&named), [a]);
        assert_eq!(intern(&mut images, "c:1"), a);
        assert_eq!((images.len(), intern(&mut images, "b:1")), (2, b));
    }

    #[test]
    fn digests_of_the_images_own_repository_tell_what_a_node_holds() {
        let mut images = Images::default();
        let id = intern(&mut images, "r.test:5000/a/b:1");
        let mut of = |digests: &[&str]| images.digest(id, &seen(digests));
        assert!(
            of(&["r.test:5000/a/b@sha256:1"])
                .same(of(&["other/x@sha256:9", "r.test:5000/a/b@sha256:1"]))
        );
        assert!(!of(&["r.test:5000/a/b@sha256:1"]).same(of(&["r.test:5000/a/b@sha256:2"])));
        assert!(!of(&["other/x@sha256:1"]).known() && !of(&[]).known());
        assert!(!of(&[]).same(of(&[])), "what is not known is not the same");
    }
}
