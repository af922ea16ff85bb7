//! What a removal tells the runtime to remove, or why the name stays.

use kubefledged_api_types::names::failure;
use kubefledged_image::glob;

use super::{
    Item, Part, Removal, RemovalContext,
    names::{bare, is_several, is_short, repository, runtime_name, uses},
    normalized,
    results::kept,
};
use crate::{Container, Image, RemoveResult, Runtime, Untag, classify};

impl Removal {
    /// What to remove, or why not; its pin is decided apart.
    pub(super) fn target(
        &self,
        image: &Image,
        containers: &[Container],
        around: &RemovalContext<'_>,
    ) -> Result<Part, RemoveResult> {
        let normal = self.items[self.at].normal();
        if self.not_pulled {
            let why = "kubefledged did not pull it (removalPolicy: OnlyPulled)".to_owned();
            return Err(kept(failure::NOT_PULLED, why));
        }
        if let Some(why) = self.protection(image, around) {
            return Err(kept(failure::IN_USE, why));
        }
        if containers.iter().any(|container| uses(container, image)) {
            let why = "a container on the node uses it".to_owned();
            return Err(kept(failure::IN_USE, why));
        }
        let docker = around.facts.runtime == Runtime::Docker;
        let several = !docker && is_several(image);
        let shared = |other: &str| {
            let reason = if several {
                failure::SHARED_ARTIFACT
            } else {
                failure::SHARED_IMAGE
            };
            Err(kept(reason, classify::tidy(&format!("it is also {other}"))))
        };
        let own = self.own_name(image, around);
        if self.desired.contains(normal) || self.desired.contains(&own) {
            let why = "another image cache wants it".to_owned();
            return Err(kept(failure::SHARED_IMAGE, why));
        }
        if let Some(other) = self.wanted_as(image, normal, around) {
            return shared(other);
        }
        let by_digest = normal.contains('@');
        let mut tags = image.tags.iter();
        let tag = tags.find(|tag| normalized(tag) == own);
        match (
            around.facts.runtime,
            self.other_name(image, normal, &own, around),
        ) {
            // Only the name goes there; but a digest is no name that could go alone.
            (Runtime::Crio, Some(other)) if by_digest => shared(&other),
            (Runtime::Crio, Some(other)) => {
                tag.map_or_else(|| shared(&other), |tag| Ok(Part::Name(tag.clone())))
            }
            // By name while there is one: an artifact has no other, and CRI-O sees who uses it.
            (Runtime::Crio, None) => Ok(tag.or(image.tags.first()).map_or_else(
                || Part::All(bare(&image.id).to_owned()),
                |tag| Part::Name(tag.clone()),
            )),
            (Runtime::Containerd, Some(other)) if several && around.facts.untags => {
                let digest = image.digests.iter().find(|known| normalized(known) == own);
                let alone = |name: &String| Untag {
                    id: image.id.clone(),
                    name: name.clone(),
                    wanted: self.wanted_digests(image, around),
                };
                tag.or(digest)
                    .map_or_else(|| shared(&other), |name| Ok(Part::Alone(alone(name))))
            }
            (Runtime::Containerd | Runtime::Docker, Some(other)) => shared(&other),
            (Runtime::Containerd | Runtime::Docker, None) => Ok(Part::All(image.id.clone())),
        }
    }

    /// Names with digests that somebody wants as such.
    fn wanted_digests(&self, image: &Image, around: &RemovalContext<'_>) -> Vec<String> {
        let wanted = |name: &&String| {
            let normal = normalized(name);
            self.desired.contains(&normal) || (around.claimed)(&normal)
        };
        image.digests.iter().filter(wanted).cloned().collect()
    }

    /// The name that the image really has here, normalized. CRI-O searches its registries for a short name, and
    /// lists what it found.
    fn own_name(&self, image: &Image, around: &RemovalContext<'_>) -> String {
        let Item::Name(written, normal) = &self.items[self.at] else {
            return self.items[self.at].normal().to_owned();
        };
        let searched = around.facts.runtime == Runtime::Crio && is_short(written);
        if !searched || image.tags.iter().any(|tag| normalized(tag) == *normal) {
            return normal.clone();
        }
        let path = format!("/{}", runtime_name(written));
        let mut tags = image.tags.iter();
        let found = match image.tags.as_slice() {
            [only] => Some(only),
            _ => tags.find(|tag| tag.ends_with(&path)),
        };
        found.map_or_else(|| normal.clone(), |tag| normalized(tag))
    }

    /// A desired short name that means this image here, although the image has another name.
    fn wanted_as<'a>(
        &'a self,
        image: &Image,
        normal: &str,
        around: &RemovalContext<'_>,
    ) -> Option<&'a str> {
        let named = |name: &str| image.tags.iter().any(|tag| normalized(tag) == name);
        let wanted = |short: &String, meant: &Option<Image>| {
            let full = normalized(short);
            let here = meant.as_ref().is_some_and(|meant| meant.id == image.id);
            here && full != normal && !named(&full)
        };
        if around.facts.runtime != Runtime::Crio {
            return None;
        }
        let mut meant = self.meant.iter();
        meant
            .find(|(short, meant)| wanted(short, meant))
            .map(|(short, _)| short.as_str())
    }

    /// Why it always stays.
    fn protection(&self, image: &Image, around: &RemovalContext<'_>) -> Option<String> {
        let written = match &self.items[self.at] {
            Item::Name(name, _) => name,
            Item::Pin(id) => id,
        };
        let all = || image.tags.iter().chain(&image.digests).chain([written]);
        let is = |other: &String| all().any(|name| normalized(name) == normalized(other));
        if around.facts.sandbox_image.as_ref().is_some_and(is) {
            return Some("it is the sandbox image of the runtime".to_owned());
        }
        if around.own.iter().any(is) {
            return Some("it is an image of kubefledged itself".to_owned());
        }
        let protects = |pattern: &&String| all().any(|name| glob::matches(pattern, name));
        let pattern = around.protected.iter().find(protects)?;
        Some(format!("protected by --protected-images {pattern}"))
    }

    /// Another name of the image that is not ours to remove.
    fn other_name(
        &self,
        image: &Image,
        normal: &str,
        own: &str,
        around: &RemovalContext<'_>,
    ) -> Option<String> {
        let ours = |other: &str| {
            let kept = self.desired.contains(other)
                || (around.claimed)(other)
                || (self.only_pulled.contains(other) && !self.pulled.contains(other));
            let free = self.releasable.contains(other)
                || self.items.iter().any(|item| item.normal() == other);
            // A pull of the name that a short one means here keeps it.
            other == normal || (other == own && !(around.claimed)(other)) || (free && !kept)
        };
        let tags: Vec<String> = image.tags.iter().map(|tag| normalized(tag)).collect();
        if let Some(tag) = tags.iter().find(|tag| !ours(tag)) {
            return Some(tag.clone());
        }
        // Each tag brings a digest of its repository along, which is nobody's own. One of another
        // repository was pulled by digest; CRI-O lists it after its tag has gone, too.
        let known = tags.iter().map(String::as_str).chain([normal]).chain(
            self.releasable
                .iter()
                .map(String::as_str)
                .chain(self.items.iter().map(Item::normal)),
        );
        image
            .digests
            .iter()
            .map(|digest| normalized(digest))
            .find(|digest| {
                self.desired.contains(digest)
                    || (around.claimed)(digest)
                    || (around.facts.runtime != Runtime::Crio
                        && !known
                            .clone()
                            .any(|name| repository(name) == repository(digest)))
            })
    }
}
