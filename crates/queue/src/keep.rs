//! Pins: what follows when an image is there and its retention is to be seen to. Whether a runtime
//! lets a client pin is found out by trying, never from its version.

use crate::{Answer, Bytes, Call, CallError, Disk, Image, PinResult, Retention, Support, classify};

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Our pin is put on.
    Pinning,
    /// Did it take effect?
    Probing,
    /// It did not; it is taken off again.
    Undoing,
    /// Is the pin of the image that the name had before ours?
    Owning,
    /// Is the image that the name had before without a name now?
    Leaving,
    /// Our pin is taken off.
    Unpinning,
}

/// What is known when a step is decided.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// What the task wants.
    pub retention: Retention,
    /// Its name.
    pub name: &'a str,
    /// The id of the name before the pull.
    pub before: Option<&'a str>,
    /// Whether pins work here.
    pub pins: Support,
    /// The disk is above the watermark.
    pub full: Option<&'a str>,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This call.
    Call(Call, Step),
    /// Nothing.
    Done,
}

/// What a step found out.
#[derive(Debug, Default)]
pub struct Found {
    /// The image as it is now.
    pub image: Option<Image>,
    /// What became of the wish.
    pub pin: Option<PinResult>,
    /// Whether pins work here.
    pub pins: Option<Support>,
}

/// The first step for an image that is there.
pub fn begin(image: &Image, around: Circumstances<'_>, found: &mut Found) -> Next {
    match around.retention {
        Retention::Leave => Next::Done,
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
                return Next::Call(Call::Pin(image.id.clone(), true), Step::Pinning);
            }
            left(image, around)
        }
    }
}

/// A tag that moved leaves an image behind, with our pin on it.
fn left(image: &Image, around: Circumstances<'_>) -> Next {
    let moved = around.before.is_some_and(|before| before != image.id);
    if moved && around.pins != Support::No {
        Next::Call(Call::Pins, Step::Owning)
    } else {
        Next::Done
    }
}

/// The next step.
pub fn answered(
    step: &Step,
    answer: Answer,
    image: &Image,
    around: Circumstances<'_>,
    found: &mut Found,
) -> Next {
    match (step, answer) {
        (Step::Pinning, Answer::Pinned(Ok(()))) => {
            Next::Call(Call::Inspect(around.name.to_owned()), Step::Probing)
        }
        (Step::Probing, Answer::Inspected(Ok(Some(now)))) if now.pinned => {
            found.pins = Some(Support::Yes);
            found.pin = Some(PinResult::Pinned);
            let next = left(&now, around);
            found.image = Some(now);
            next
        }
        // Another image has the name by now: nothing is known of this runtime.
        (Step::Probing, Answer::Inspected(Ok(now)))
            if now.as_ref().is_none_or(|now| now.id != image.id) =>
        {
            let why = "the image went away while it was pinned".to_owned();
            found.pin = Some(PinResult::Failed(why));
            Next::Done
        }
        (Step::Probing, Answer::Inspected(Ok(_))) => {
            found.pins = Some(Support::No);
            found.pin = Some(PinResult::Unsupported);
            Next::Call(Call::Pin(image.id.clone(), false), Step::Undoing)
        }
        (Step::Owning, Answer::Pins(Ok(ours))) => {
            let ours = |id: &&str| *id != image.id && ours.iter().any(|known| known == id);
            match around.before.filter(ours) {
                Some(before) => Next::Call(Call::Inspect(before.to_owned()), Step::Leaving),
                None => Next::Done,
            }
        }
        // With another name left, whoever wants that one decides.
        (Step::Leaving, Answer::Inspected(Ok(Some(old)))) if old.tags.is_empty() => {
            Next::Call(Call::Pin(old.id, false), Step::Unpinning)
        }
        (Step::Pinning | Step::Probing, answer) => {
            let error = answer.error().unwrap_or_default();
            if error.code == "Unimplemented" {
                found.pins = Some(Support::No);
                found.pin = Some(PinResult::Unsupported);
            } else {
                found.pin = Some(PinResult::Failed(classify::tidy(&error.message)));
            }
            Next::Done
        }
        // What is left over, the controller finds by a check.
        (Step::Undoing | Step::Owning | Step::Leaving | Step::Unpinning, _) => Next::Done,
    }
}

/// Why nothing is pulled or pinned, with the figures; `None` below the watermark.
pub fn full(disk: Disk, watermark: u8) -> Option<String> {
    let used = disk.capacity.saturating_sub(disk.available);
    let percent = |part: u64| u128::from(part) * 100 / u128::from(disk.capacity.max(1));
    (percent(used) >= u128::from(watermark)).then(|| {
        format!(
            "the file system of the images is {} % full, {} of {} MiB are free: nothing is pulled or \
             pinned from {watermark} % on (--disk-watermark)",
            percent(used),
            disk.available >> 20,
            disk.capacity >> 20,
        )
    })
}

/// Why a pull was ended that no byte arrived for.
pub fn stalled(bytes: Bytes, limit: std::time::Duration) -> String {
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
            | Self::Pinned(Err(error))
            | Self::Progress(Err(error)) => Some(error),
            _ => None,
        }
    }
}
