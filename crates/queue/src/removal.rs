//! One removal: name by name, and each name only if nothing speaks against it.

mod names;
mod results;
mod steps;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubefledged_image::ImageRef;

use crate::{
    Answer, Authority, Call, CallId, Image, RemoveResult, Runtime, RuntimeFacts, StreamId, Support,
    Tick, Untag,
};
use names::{is_artifact, is_short, runtime_name};
use results::{failed, refused};

/// Where the current name stands.
#[derive(Clone, Debug)]
pub enum RemovalStep {
    /// Not begun.
    Begin,
    /// The runtime is asked which image a desired short name means here.
    Resolving(String),
    /// The runtime is asked whether the name is there.
    Inspecting,
    /// It goes only if we pulled it: did we?
    Tracing(Image),
    /// The runtime is asked who uses it.
    Asking(Image),
    /// It is pinned: is that us? What speaks against its removal is known.
    Owning(Image, Result<Part, RemoveResult>),
    /// Our pin is taken off this id. What comes then, if it is known; otherwise everything is inspected again.
    Unpinning(String, Option<RemoveResult>),
    /// The runtime removes it.
    Removing(Target),
    /// The runtime is asked what is left of the image.
    Verifying(Target),
}

/// What the runtime is told to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The image.
    id: String,
    /// How much of it; `None`: nothing yet, an earlier removal was not seen to its end.
    part: Option<Part>,
}

/// What of an image the runtime is told to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// This name.
    Name(String),
    /// This name, of several images with one id.
    Alone(Untag),
    /// All of it, by its id.
    All(String),
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
    /// When the last inspection began: its answer may show what was so then.
    pub inspected: Option<Tick>,
    /// How often the one at hand was looked at again, because a pin that was taken off may still show.
    unpin_looks: u32,
    /// The one at hand goes only if we pulled it, and we did not.
    not_pulled: bool,
    /// Those of `only_pulled` that we did pull, as far as they were asked about.
    pulled: BTreeSet<String>,
    /// The name at hand is gone, and something of its image may be left: what became of the name.
    gone: Option<RemoveResult>,
    /// Desired names without a registry, as they were written.
    short: Vec<String>,
    /// The images that these mean here, as far as they were asked about. CRI-O searches its registries for them.
    meant: BTreeMap<String, Option<Image>>,
    /// The name at hand is looked at again, and not before.
    pub paused: Option<Tick>,
    /// How often it was looked at again.
    pub looks: u32,
    /// What became of it before that.
    earlier: Option<RemoveResult>,
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
    /// The id of the image whose removal under this normalized name was begun and not seen to its end.
    pub unfinished: &'a dyn Fn(&str) -> Option<String>,
    /// Whether our pin was taken off this id a moment before the last inspection. containerd's CRI takes that in
    /// asynchronously, and may still show the pin.
    pub unpinned: &'a dyn Fn(&str) -> bool,
}

/// What follows for the name at hand.
#[derive(Debug)]
pub enum AfterRemoval {
    /// This call.
    Call(Call),
    /// Its outcome.
    Finish(RemoveResult),
    /// It is begun anew, when no pull is unverified and its pause is over.
    Again,
    /// The same, after this time.
    Later(Duration),
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
            inspected: None,
            unpin_looks: 0,
            not_pulled: false,
            pulled: BTreeSet::new(),
            gone: None,
            short: Vec::new(),
            meant: BTreeMap::new(),
            paused: None,
            looks: 0,
            earlier: None,
        }
    }

    /// The names that some cache desires on this node.
    pub fn desire(&mut self, names: &[String]) {
        self.desired = names.iter().map(|name| normalized(name)).collect();
        let short = names.iter().filter(|name| is_short(name));
        self.short = short.cloned().collect();
    }

    /// What it keeps in memory, as so many images.
    pub fn size(&self) -> usize {
        size(
            self.items.len(),
            self.desired
                .iter()
                .chain(&self.releasable)
                .chain(&self.short),
        )
    }

    /// The first call for the item at hand.
    pub fn begin(&mut self, facts: &RuntimeFacts) -> AfterRemoval {
        if self.paused.is_some() {
            return AfterRemoval::Again;
        }
        match &self.items[self.at] {
            Item::Name(..) => self.look(facts),
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

    /// Is the name at hand there? Only CRI-O gives a short name a meaning of its own, so that it is first asked
    /// what the desired ones mean.
    fn look(&mut self, facts: &RuntimeFacts) -> AfterRemoval {
        let mut short = self.short.iter();
        let next = short.find(|name| !self.meant.contains_key(*name));
        if let Some(name) = next.filter(|_| facts.runtime == Runtime::Crio) {
            self.step = RemovalStep::Resolving(name.clone());
            return AfterRemoval::Call(Call::Inspect(runtime_name(name)));
        }
        self.step = RemovalStep::Inspecting;
        AfterRemoval::Call(Call::Inspect(self.runtime_name()))
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, around: &RemovalContext<'_>) -> AfterRemoval {
        self.call = None;
        match self.step_on(answer, around) {
            // The name is gone all the same, and what is left of the image is somebody else's.
            AfterRemoval::Finish(RemoveResult::Kept { .. }) if self.gone.is_some() => {
                AfterRemoval::Finish(self.gone.take().unwrap_or(RemoveResult::Removed))
            }
            next => next,
        }
    }

    fn step_on(&mut self, answer: Answer, around: &RemovalContext<'_>) -> AfterRemoval {
        match (
            std::mem::replace(&mut self.step, RemovalStep::Begin),
            answer,
        ) {
            (RemovalStep::Resolving(name), Answer::Inspected(Ok(image))) => {
                self.meant.insert(name, image);
                self.look(around.facts)
            }
            (RemovalStep::Inspecting, Answer::Inspected(Ok(None))) => self.absent(around),
            (RemovalStep::Inspecting, Answer::Inspected(Ok(Some(image)))) => self.found(image),
            (RemovalStep::Tracing(image), Answer::Traced(Ok(ours))) => self.traced(image, ours),
            (RemovalStep::Asking(_), Answer::Containers(Ok(_))) if around.unverified => {
                // CRI-O may have lost a name of the image already. It waits for the pull, and not for itself.
                self.held.clear();
                AfterRemoval::Again
            }
            (RemovalStep::Asking(image), Answer::Containers(Ok(containers))) => {
                let target = self.target(&image, &containers, around);
                let crio = around.facts.runtime == Runtime::Crio;
                // The pin is on the id, which stays.
                let alone = matches!(target, Ok(Part::Alone(_)));
                if !image.pinned || alone || (crio && is_artifact(&image)) {
                    return self.act(&image, target);
                }
                if around.facts.pins == Support::No || self.unpinned {
                    return self.still_pinned(&image.id, target, around);
                }
                self.step = RemovalStep::Owning(image, target);
                AfterRemoval::Call(Call::Pins)
            }
            (RemovalStep::Owning(image, target), Answer::Pins(Ok(ours))) => {
                self.owned(&image, target, ours.contains(&image.id), around)
            }
            (RemovalStep::Unpinning(_, Some(result)), Answer::Pinned(Ok(()))) => {
                AfterRemoval::Finish(result)
            }
            // Somebody may have come meanwhile.
            (RemovalStep::Unpinning(_, None), Answer::Pinned(Ok(()))) => {
                self.unpinned = true;
                self.step = RemovalStep::Inspecting;
                AfterRemoval::Call(Call::Inspect(self.runtime_name()))
            }
            (RemovalStep::Removing(target), Answer::Removed(Ok(()))) => self.verify(target),
            (RemovalStep::Verifying(target), Answer::Inspected(Ok(left))) => {
                self.left(left, &target)
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

    /// Somebody else has inspected a normalized name since: its image may have more names than it had.
    pub fn saw(&mut self, name: &str, newer: &Image) {
        for (_, image) in self
            .meant
            .iter_mut()
            .filter(|(short, _)| normalized(short) == name)
        {
            *image = Some(newer.clone());
        }
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
        matches!(
            self.step,
            RemovalStep::Removing(_) | RemovalStep::Verifying(_)
        )
    }

    /// The image of which our pin is being taken off.
    pub fn unpinning(&self) -> Option<&str> {
        match &self.step {
            RemovalStep::Unpinning(id, _) => Some(id),
            _ => None,
        }
    }

    /// The image whose removal is under way.
    pub fn removing(&self) -> Option<&str> {
        match &self.step {
            RemovalStep::Removing(target) => Some(&target.id),
            _ => None,
        }
    }

    /// The name at hand is gone, and a pull of it that was ended may still make it again: it is looked at again,
    /// and not before this time.
    pub fn look_again(&mut self, at: Tick, result: RemoveResult) {
        if self.earlier != Some(RemoveResult::Removed) {
            self.earlier = Some(result);
        }
        self.looks += 1;
        self.paused = Some(at);
        self.step = RemovalStep::Begin;
        self.call = None;
        self.gone = None;
        self.held.clear();
    }

    /// Whether it has removed the name at hand before, if now there is nothing to remove.
    pub fn overall(&self, result: RemoveResult) -> RemoveResult {
        match (&self.earlier, result) {
            (Some(RemoveResult::Removed), RemoveResult::Absent) => RemoveResult::Removed,
            (_, result) => result,
        }
    }

    /// On to the next name.
    pub fn next(&mut self) {
        self.at += 1;
        self.step = RemovalStep::Begin;
        self.call = None;
        self.unpinned = false;
        self.inspected = None;
        self.unpin_looks = 0;
        self.not_pulled = false;
        self.gone = None;
        self.paused = None;
        self.looks = 0;
        self.earlier = None;
        self.held.clear();
    }

    /// What the runtime is asked about.
    fn runtime_name(&self) -> String {
        match &self.items[self.at] {
            Item::Name(name, _) => runtime_name(name),
            Item::Pin(id) => id.clone(),
        }
    }
}
