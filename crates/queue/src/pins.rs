//! Pinning: the steps that follow once an image is present and a request wants it pinned. Whether a
//! runtime lets a client pin images is found out by a trial, never from its version.

use std::time::Duration;

use crate::{Answer, Bytes, Call, CallError, Image, PinResult, Retention, Support, classify};

/// How often an image is inspected again before it counts that a pin does not show: for some eight seconds.
/// containerd's CRI takes in a label asynchronously, and late while many images change.
const MOST_LOOKS: u32 = 5;
/// Before the first of these inspections; the pauses double.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The pause before an image that was inspected again so many times is inspected once more, because the runtime does not
/// show yet that our pin was set or taken off. `None`: it would show by now.
pub fn pause(looks: u32) -> Option<Duration> {
    (looks < MOST_LOOKS).then(|| FIRST_PAUSE * 2_u32.pow(looks))
}

/// The step whose answer is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinStep {
    /// The runtime sets our pin.
    Pinning,
    /// The image is inspected, so many times already: did the pin take effect?
    Probing(u32),
    /// The pin had no effect and is removed again.
    Undoing,
    /// Is the pin of the image that the name had before ours?
    Owning,
    /// The image that the name had before is inspected: has it still a tag?
    Leaving,
    /// Our pin is removed from the image that the name had before.
    Unpinning,
}

/// What is known when a step is decided.
#[derive(Clone, Copy, Debug)]
pub struct PinContext<'a> {
    /// The retention that the task's requests ask for.
    pub retention: Retention,
    /// Name of the image.
    pub name: &'a str,
    /// The id of the name before the pull.
    pub before: Option<&'a str>,
    /// Whether pins work here.
    pub pins: Support,
    /// Why nothing is pinned: the disk is above the watermark. `None`: it is not.
    pub full: Option<&'a str>,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub enum AfterPin {
    /// Make this call.
    Call(Call, PinStep),
    /// Inspect the image again after this time.
    Later(Duration, PinStep),
    /// Nothing: the pin is settled.
    Done,
}

/// What a step found out.
#[derive(Debug, Default)]
pub struct PinFindings {
    /// The image as the runtime has it now.
    pub image: Option<Image>,
    /// What became of the pin.
    pub pin: Option<PinResult>,
    /// Whether pins work here.
    pub pins: Option<Support>,
}

/// Decides the first step for an image that is present.
pub fn begin(image: &Image, around: PinContext<'_>, found: &mut PinFindings) -> AfterPin {
    match around.retention {
        Retention::Leave => AfterPin::Done,
        Retention::Pinned if image.pinned => {
            found.pin = Some(PinResult::Pinned);
            left(image, around)
        }
        Retention::Pinned => {
            if around.pins == Support::No {
                found.pin = Some(PinResult::Unsupported);
            } else if let Some(full) = around.full {
                found.pin = Some(PinResult::DiskPressure(full.to_owned()));
            } else {
                return AfterPin::Call(Call::Pin(image.id.clone(), true), PinStep::Pinning);
            }
            left(image, around)
        }
    }
}

/// A tag that moved leaves the image that it had before, with our pin.
fn left(image: &Image, around: PinContext<'_>) -> AfterPin {
    let moved = around.before.is_some_and(|before| before != image.id);
    if moved && around.pins != Support::No {
        AfterPin::Call(Call::Pins, PinStep::Owning)
    } else {
        AfterPin::Done
    }
}

/// Decides what follows from the answer to a step.
pub fn answered(
    step: &PinStep,
    answer: Answer,
    image: &Image,
    around: PinContext<'_>,
    found: &mut PinFindings,
) -> AfterPin {
    match step {
        PinStep::Pinning | PinStep::Probing(_) => pinning(step, answer, image, around, found),
        PinStep::Owning | PinStep::Leaving => leaving(step, answer, image, around),
        // A pin that stays is found by the controller's next check.
        PinStep::Undoing | PinStep::Unpinning => AfterPin::Done,
    }
}

/// Our pin was put on, or the image was inspected to see whether that had an effect.
fn pinning(
    step: &PinStep,
    answer: Answer,
    image: &Image,
    around: PinContext<'_>,
    found: &mut PinFindings,
) -> AfterPin {
    match (step, answer) {
        (PinStep::Pinning, Answer::Pinned(Ok(()))) => {
            AfterPin::Call(Call::Inspect(around.name.to_owned()), PinStep::Probing(0))
        }
        (PinStep::Probing(_), Answer::Inspected(Ok(Some(now)))) if now.pinned => {
            found.pins = Some(Support::Yes);
            found.pin = Some(PinResult::Pinned);
            let next = left(&now, around);
            found.image = Some(now);
            next
        }
        // Another image has the name by now, so that nothing is known of this runtime.
        (PinStep::Probing(_), Answer::Inspected(Ok(now)))
            if now.as_ref().is_none_or(|now| now.id != image.id) =>
        {
            let why = "the image went away while it was pinned".to_owned();
            found.pin = Some(PinResult::Failed(why));
            AfterPin::Done
        }
        (PinStep::Probing(looks), Answer::Inspected(Ok(_))) => match pause(*looks) {
            Some(pause) => AfterPin::Later(pause, PinStep::Probing(looks + 1)),
            // It works for others: the label stays, and the controller's next check looks again.
            None if around.pins == Support::Yes => {
                let why = "the runtime does not show the pin yet".to_owned();
                found.pin = Some(PinResult::Failed(why));
                AfterPin::Done
            }
            None => {
                found.pins = Some(Support::No);
                found.pin = Some(PinResult::Unsupported);
                AfterPin::Call(Call::Pin(image.id.clone(), false), PinStep::Undoing)
            }
        },
        (_, answer) => {
            let error = answer.error().unwrap_or_default();
            if error.code == "Unimplemented" {
                found.pins = Some(Support::No);
                found.pin = Some(PinResult::Unsupported);
            } else {
                found.pin = Some(PinResult::Failed(classify::tidy(&error.message)));
            }
            AfterPin::Done
        }
    }
}

/// Removes our pin from the image that the name had before, if no other tag means that image. A pin that
/// stays because a call failed is found by the controller's next check.
fn leaving(step: &PinStep, answer: Answer, image: &Image, around: PinContext<'_>) -> AfterPin {
    match (step, answer) {
        (PinStep::Owning, Answer::Pins(Ok(ours))) => {
            let ours = |id: &&str| *id != image.id && ours.iter().any(|known| known == id);
            match around.before.filter(ours) {
                Some(before) => AfterPin::Call(Call::Inspect(before.to_owned()), PinStep::Leaving),
                None => AfterPin::Done,
            }
        }
        // If a tag is left, the pulls and removals of that tag decide about the pin.
        (PinStep::Leaving, Answer::Inspected(Ok(Some(old)))) if old.tags.is_empty() => {
            AfterPin::Call(Call::Pin(old.id, false), PinStep::Unpinning)
        }
        _ => AfterPin::Done,
    }
}

/// Returns the message of a pull that was ended because too few bytes arrived.
pub fn stalled(bytes: Bytes, limit: Duration) -> String {
    format!(
        "too few bytes arrived for {} s: {} of {} bytes are here",
        limit.as_secs(),
        bytes.done,
        bytes.total
    )
}

impl Answer {
    fn error(self) -> Option<CallError> {
        match self {
            Self::Inspected(Err(error))
            | Self::Pulled(Err(error))
            | Self::Containers(Err(error))
            | Self::Removed(Err(error))
            | Self::Disk(Err(error))
            | Self::Pins(Err(error))
            | Self::Traced(Err(error))
            | Self::Marked(Err(error))
            | Self::Pinned(Err(error))
            | Self::Progress(Err(error)) => Some(error),
            _ => None,
        }
    }
}
