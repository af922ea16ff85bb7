//! The steps of a removal: what follows from what the runtime said of the name at hand.

use std::time::Duration;

use kubefledged_api_types::names::failure;

use super::{
    AfterRemoval, Item, Part, Removal, RemovalContext, RemovalStep, Target, normalized,
    results::{failed, kept, pinned},
};
use crate::{Call, Image, RemoveResult, Untag};

/// Before an image is looked at again, of which the runtime may still show a pin that was taken off. The pauses double,
/// so many times.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MOST_DOUBLED: u32 = 5;

impl Removal {
    /// The name is not there. If its removal was begun before and not seen to its end, the image may still be
    /// there under its id.
    pub(super) fn absent(&mut self, around: &RemovalContext<'_>) -> AfterRemoval {
        let Some(id) = (around.unfinished)(self.items[self.at].normal()) else {
            return AfterRemoval::Finish(self.gone.take().unwrap_or(RemoveResult::Absent));
        };
        self.gone.get_or_insert(RemoveResult::Absent);
        self.verify(Target { id, part: None })
    }

    pub(super) fn verify(&mut self, target: Target) -> AfterRemoval {
        let call = Call::Inspect(target.id.clone());
        self.step = RemovalStep::Verifying(target);
        AfterRemoval::Call(call)
    }

    /// What is left of the image. CRI-O removes one name at a time: its other names follow, if nothing speaks
    /// against that, and then the image.
    pub(super) fn left(&mut self, left: Option<Image>, target: &Target) -> AfterRemoval {
        let Some(left) = left else {
            return AfterRemoval::Finish(self.gone.take().unwrap_or(RemoveResult::Removed));
        };
        let still = match &target.part {
            Some(Part::Name(name)) => left.tags.contains(name),
            Some(Part::Alone(Untag { name, .. })) => {
                left.tags.contains(name) || left.digests.contains(name)
            }
            Some(Part::All(_)) => true,
            None => false,
        };
        if still {
            return AfterRemoval::Finish(failed("the runtime removed the image and still has it"));
        }
        let normal = self.items[self.at].normal();
        let mut names = left.tags.iter().chain(&left.digests);
        if !names.any(|name| normalized(name) == normal) {
            self.gone.get_or_insert(RemoveResult::Removed);
        }
        self.step = RemovalStep::Asking(left);
        AfterRemoval::Call(Call::Containers)
    }

    /// The image is there: may it go, and who uses it?
    pub(super) fn found(&mut self, image: Image) -> AfterRemoval {
        if self.only_pulled.contains(self.items[self.at].normal()) {
            self.step = RemovalStep::Tracing(image);
            return AfterRemoval::Call(Call::Trace(self.runtime_name()));
        }
        self.step = RemovalStep::Asking(image);
        AfterRemoval::Call(Call::Containers)
    }

    /// Whether we pulled it is known: who uses it?
    pub(super) fn traced(&mut self, image: Image, ours: bool) -> AfterRemoval {
        self.not_pulled = !ours;
        if ours {
            let normal = self.items[self.at].normal().to_owned();
            self.pulled.insert(normal);
        }
        self.step = RemovalStep::Asking(image);
        AfterRemoval::Call(Call::Containers)
    }

    pub(super) fn act(
        &mut self,
        image: &Image,
        target: Result<Part, RemoveResult>,
    ) -> AfterRemoval {
        let part = match target {
            Ok(part) => part,
            Err(kept) => return AfterRemoval::Finish(kept),
        };
        let call = match part.clone() {
            Part::Alone(untag) => Call::Untag(untag),
            Part::Name(target) | Part::All(target) => Call::Remove(target),
        };
        let names = image.tags.iter().chain(&image.digests);
        self.held.extend(names.map(|name| normalized(name)));
        self.held.insert(self.items[self.at].normal().to_owned());
        self.step = RemovalStep::Removing(Target {
            id: image.id.clone(),
            part: Some(part),
        });
        AfterRemoval::Call(call)
    }

    /// The image is pinned, and not by us; but a pin of ours that was just taken off may still show.
    pub(super) fn still_pinned(
        &mut self,
        id: &str,
        target: Result<Part, RemoveResult>,
        around: &RemovalContext<'_>,
    ) -> AfterRemoval {
        if target.is_ok() && (around.unpinned)(id) {
            let pause = FIRST_PAUSE * 2_u32.pow(self.unpin_looks.min(MOST_DOUBLED));
            self.unpin_looks += 1;
            return AfterRemoval::Later(pause);
        }
        AfterRemoval::Finish(target.err().unwrap_or_else(pinned))
    }

    /// A pinned image, and whose pin it is.
    pub(super) fn owned(
        &mut self,
        image: &Image,
        target: Result<Part, RemoveResult>,
        ours: bool,
        around: &RemovalContext<'_>,
    ) -> AfterRemoval {
        let only_the_pin = matches!(self.items[self.at], Item::Pin(_));
        if !ours {
            if only_the_pin {
                return AfterRemoval::Finish(RemoveResult::Absent);
            }
            return self.still_pinned(&image.id, target, around);
        }
        let mut names = image.tags.iter().chain(&image.digests);
        let desired = names.any(|name| self.desired.contains(&normalized(name)));
        if only_the_pin || (self.unpin_ours && !desired) {
            self.step = RemovalStep::Unpinning(image.id.clone(), target.err());
            return AfterRemoval::Call(Call::Pin(image.id.clone(), false));
        }
        AfterRemoval::Finish(
            target
                .err()
                .unwrap_or_else(|| kept(failure::PINNED, "an image cache pins it".to_owned())),
        )
    }
}
