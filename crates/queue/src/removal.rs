//! One removal: name by name, and each name only if nothing speaks against it.

mod names;
mod results;

use std::collections::BTreeSet;

use kubefledged_api_types::names::failure;
use kubefledged_image::{ImageRef, glob};

use crate::{
    Answer, Authority, Call, CallId, Container, Image, RemoveResult, Runtime, RuntimeFacts,
    StreamId, Support, classify,
};
use names::{bare, repository, uses};
use results::{failed, kept, pinned, refused};

/// Where the current name stands.
#[derive(Clone, Debug)]
pub enum RemovalStep {
    /// Not begun.
    Begin,
    /// The runtime is asked whether the name is there.
    Inspecting,
    /// It goes only if we pulled it: did we?
    Tracing(Image),
    /// The runtime is asked who uses it.
    Asking(Image),
    /// It is pinned: is that us? What speaks against its removal is known.
    Owning(Image, Result<String, RemoveResult>),
    /// Our pin is taken off. What comes then, if it is known; otherwise everything is inspected again.
    Unpinning(Option<RemoveResult>),
    /// The runtime removes it.
    Removing,
    /// The runtime is asked whether it is gone.
    Verifying,
}

/// What is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A name: as written, and normalized.
    Name(String, String),
    /// Only our pin on this id.
    Pin(String),
}

/// One request.
#[derive(Debug)]
pub struct Removal {
    /// Where outcomes go, while somebody listens.
    pub stream: Option<StreamId>,
    /// Whose request.
    pub authority: Authority,
    /// What is to go.
    pub items: Vec<Item>,
    /// Normalized.
    pub desired: BTreeSet<String>,
    /// Normalized.
    pub releasable: BTreeSet<String>,
    /// Names that go only if we pulled them, normalized.
    pub only_pulled: BTreeSet<String>,
    /// Take our pins off.
    pub unpin_ours: bool,
    /// Which item is at hand.
    pub at: usize,
    /// Where it stands.
    pub step: RemovalStep,
    /// Its call.
    pub call: Option<CallId>,
    /// While the runtime removes: all names that may go, normalized. No pull of one may begin.
    pub held: BTreeSet<String>,
    /// Our pin was taken off the one at hand.
    unpinned: bool,
    /// The one at hand goes only if we pulled it, and we did not.
    not_pulled: bool,
    /// Those of `only_pulled` that we did pull, as far as they were asked about.
    pulled: BTreeSet<String>,
}

/// What else decides about a name.
pub struct RemovalContext<'a> {
    /// What runs here.
    pub facts: &'a RuntimeFacts,
    /// Globs of names that always stay.
    pub protected: &'a [String],
    /// Our own images.
    pub own: &'a [String],
    /// Whether a pull of ours is about to make this normalized name, or has made it since.
    pub claimed: &'a dyn Fn(&str) -> bool,
    /// A pull has ended, and of which image it made a name is not known yet.
    pub unverified: bool,
}

/// What follows for the name at hand.
#[derive(Debug)]
pub enum AfterRemoval {
    /// This call.
    Call(Call),
    /// Its outcome.
    Finish(RemoveResult),
    /// It is begun anew when no pull is unverified.
    Again,
}

/// What a removal keeps in memory, as so many images: one counts 1 KiB, and of what is only named the
/// names are kept.
pub fn size<'a>(items: usize, named: impl Iterator<Item = &'a String>) -> usize {
    items + named.map(String::len).sum::<usize>() / 1024
}

/// One form for all spellings; what does not parse stands for itself.
pub fn normalized(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| name.to_owned(), |image| image.normalized())
}

impl Item {
    /// For comparison.
    pub fn normal(&self) -> &str {
        match self {
            Self::Name(_, normal) => normal,
            Self::Pin(id) => id,
        }
    }
}

impl Removal {
    /// One that has not begun.
    pub fn new(stream: StreamId, authority: Authority, items: Vec<Item>) -> Self {
        Self {
            stream: Some(stream),
            authority,
            items,
            desired: BTreeSet::new(),
            releasable: BTreeSet::new(),
            only_pulled: BTreeSet::new(),
            unpin_ours: false,
            at: 0,
            step: RemovalStep::Begin,
            call: None,
            held: BTreeSet::new(),
            unpinned: false,
            not_pulled: false,
            pulled: BTreeSet::new(),
        }
    }

    /// What it keeps in memory, as so many images.
    pub fn size(&self) -> usize {
        size(
            self.items.len(),
            self.desired.iter().chain(&self.releasable),
        )
    }

    /// The first call for the item at hand.
    pub fn begin(&mut self, facts: &RuntimeFacts) -> AfterRemoval {
        match &self.items[self.at] {
            Item::Name(..) => {
                self.step = RemovalStep::Inspecting;
                AfterRemoval::Call(Call::Inspect(self.runtime_name()))
            }
            Item::Pin(_) if facts.pins == Support::No => AfterRemoval::Finish(RemoveResult::Absent),
            Item::Pin(id) => {
                let image = Image {
                    id: id.clone(),
                    ..Image::default()
                };
                self.step = RemovalStep::Owning(image, Err(RemoveResult::Removed));
                AfterRemoval::Call(Call::Pins)
            }
        }
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, around: &RemovalContext<'_>) -> AfterRemoval {
        self.call = None;
        match (
            std::mem::replace(&mut self.step, RemovalStep::Begin),
            answer,
        ) {
            (RemovalStep::Inspecting, Answer::Inspected(Ok(None))) => {
                AfterRemoval::Finish(RemoveResult::Absent)
            }
            (RemovalStep::Inspecting, Answer::Inspected(Ok(Some(image)))) => self.found(image),
            (RemovalStep::Tracing(image), Answer::Traced(Ok(ours))) => self.traced(image, ours),
            (RemovalStep::Asking(_), Answer::Containers(Ok(_))) if around.unverified => {
                AfterRemoval::Again
            }
            (RemovalStep::Asking(image), Answer::Containers(Ok(containers))) => {
                let target = self.target(&image, &containers, around);
                if !image.pinned {
                    return self.act(&image, target);
                }
                if around.facts.pins == Support::No || self.unpinned {
                    return AfterRemoval::Finish(target.err().unwrap_or_else(pinned));
                }
                self.step = RemovalStep::Owning(image, target);
                AfterRemoval::Call(Call::Pins)
            }
            (RemovalStep::Owning(image, target), Answer::Pins(Ok(ours))) => {
                self.owned(&image, target, ours.contains(&image.id))
            }
            (RemovalStep::Unpinning(Some(result)), Answer::Pinned(Ok(()))) => {
                AfterRemoval::Finish(result)
            }
            // Somebody may have come meanwhile.
            (RemovalStep::Unpinning(None), Answer::Pinned(Ok(()))) => {
                self.unpinned = true;
                self.step = RemovalStep::Inspecting;
                AfterRemoval::Call(Call::Inspect(self.runtime_name()))
            }
            (RemovalStep::Removing, Answer::Removed(Ok(()))) => {
                self.step = RemovalStep::Verifying;
                AfterRemoval::Call(Call::Inspect(self.runtime_name()))
            }
            (RemovalStep::Verifying, Answer::Inspected(Ok(left))) => {
                let still = || failed("the runtime removed the image and still has it");
                AfterRemoval::Finish(left.map_or(RemoveResult::Removed, |_| still()))
            }
            (
                _,
                Answer::Inspected(Err(error))
                | Answer::Containers(Err(error))
                | Answer::Removed(Err(error))
                | Answer::Pins(Err(error))
                | Answer::Traced(Err(error))
                | Answer::Pinned(Err(error))
                | Answer::Pulled(Err(error)),
            ) => AfterRemoval::Finish(refused(&error)),
            (_, _) => AfterRemoval::Finish(failed("the runtime answered another question")),
        }
    }

    /// The image is there: may it go, and who uses it?
    fn found(&mut self, image: Image) -> AfterRemoval {
        if self.only_pulled.contains(self.items[self.at].normal()) {
            self.step = RemovalStep::Tracing(image);
            return AfterRemoval::Call(Call::Trace(self.runtime_name()));
        }
        self.step = RemovalStep::Asking(image);
        AfterRemoval::Call(Call::Containers)
    }

    /// Whether we pulled it is known: who uses it?
    fn traced(&mut self, image: Image, ours: bool) -> AfterRemoval {
        self.not_pulled = !ours;
        if ours {
            let normal = self.items[self.at].normal().to_owned();
            self.pulled.insert(normal);
        }
        self.step = RemovalStep::Asking(image);
        AfterRemoval::Call(Call::Containers)
    }

    fn act(&mut self, image: &Image, target: Result<String, RemoveResult>) -> AfterRemoval {
        match target {
            Ok(target) => {
                let names = image.tags.iter().chain(&image.digests);
                self.held = names.map(|name| normalized(name)).collect();
                self.held.insert(self.items[self.at].normal().to_owned());
                self.step = RemovalStep::Removing;
                AfterRemoval::Call(Call::Remove(target))
            }
            Err(kept) => AfterRemoval::Finish(kept),
        }
    }

    /// A pinned image, and whose pin it is.
    fn owned(
        &mut self,
        image: &Image,
        target: Result<String, RemoveResult>,
        ours: bool,
    ) -> AfterRemoval {
        let only_the_pin = matches!(self.items[self.at], Item::Pin(_));
        if !ours {
            return AfterRemoval::Finish(if only_the_pin {
                RemoveResult::Absent
            } else {
                target.err().unwrap_or_else(pinned)
            });
        }
        let mut names = image.tags.iter().chain(&image.digests);
        let desired = names.any(|name| self.desired.contains(&normalized(name)));
        if only_the_pin || (self.unpin_ours && !desired) {
            self.step = RemovalStep::Unpinning(target.err());
            return AfterRemoval::Call(Call::Pin(image.id.clone(), false));
        }
        AfterRemoval::Finish(
            target
                .err()
                .unwrap_or_else(|| kept(failure::PINNED, "an image cache pins it".to_owned())),
        )
    }

    /// Somebody else has inspected an image since: it may have more names than it had.
    pub fn saw(&mut self, newer: &Image) {
        if let RemovalStep::Tracing(image)
        | RemovalStep::Asking(image)
        | RemovalStep::Owning(image, _) = &mut self.step
            && image.id == newer.id
        {
            image.clone_from(newer);
        }
    }

    /// The runtime removes, or has removed, the name at hand.
    pub fn acting(&self) -> bool {
        matches!(self.step, RemovalStep::Removing | RemovalStep::Verifying)
    }

    /// On to the next name.
    pub fn next(&mut self) {
        self.at += 1;
        self.step = RemovalStep::Begin;
        self.call = None;
        self.unpinned = false;
        self.not_pulled = false;
        self.held.clear();
    }

    /// What the runtime is asked about.
    fn runtime_name(&self) -> String {
        match &self.items[self.at] {
            Item::Name(name, _) => {
                ImageRef::parse(name).map_or_else(|_| name.clone(), |image| image.runtime_name())
            }
            Item::Pin(id) => id.clone(),
        }
    }

    /// What to remove, or why not; its pin is decided apart.
    fn target(
        &self,
        image: &Image,
        containers: &[Container],
        around: &RemovalContext<'_>,
    ) -> Result<String, RemoveResult> {
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
        let shared = |other: &str| {
            Err(kept(
                failure::SHARED_IMAGE,
                classify::tidy(&format!("it is also {other}")),
            ))
        };
        if self.desired.contains(normal) {
            let why = "another image cache wants it".to_owned();
            return Err(kept(failure::SHARED_IMAGE, why));
        }
        let by_digest = normal.contains('@');
        match (around.facts.runtime, self.other_name(image, normal, around)) {
            // Only the name goes there; but a digest is no name that could go alone.
            (Runtime::Crio, Some(other)) if by_digest => shared(&other),
            (Runtime::Crio, Some(_)) => Ok(self.runtime_name()),
            (Runtime::Crio, None) => Ok(bare(&image.id).to_owned()),
            (Runtime::Containerd | Runtime::Docker, Some(other)) => shared(&other),
            (Runtime::Containerd | Runtime::Docker, None) => Ok(image.id.clone()),
        }
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
        around: &RemovalContext<'_>,
    ) -> Option<String> {
        let ours = |other: &str| {
            let kept = self.desired.contains(other)
                || (around.claimed)(other)
                || (self.only_pulled.contains(other) && !self.pulled.contains(other));
            let free = self.releasable.contains(other)
                || self.items.iter().any(|item| item.normal() == other);
            other == normal || (free && !kept)
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
