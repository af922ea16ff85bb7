//! Writes to one `ImageCache` object: at most one of the status and one of the finalizer are in flight.

use std::time::Duration;

use kubefledged_api_types::ImageCacheStatus;

use super::{
    backoff,
    last_operation::{Announcement, Identity},
};
use crate::vocabulary::Tick;

/// Back-off before the whole status of an object that was too large is tried again.
const OVERSIZE_RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What the status writer does.
#[derive(Debug)]
pub enum WriterState {
    /// Nothing is in flight. The next write may begin at `not_before`, or at once if an operation begins or
    /// ends.
    Ready,
    /// A write is in flight. Its answer leads to `Ready`, `BackOff` or `AwaitsObject`.
    InFlight(Box<StatusWrite>),
    /// The last write failed. The next one begins at `not_before`, whatever happens.
    BackOff,
    /// The last write was refused, because the object has a newer version. When the watch brings it, `BackOff`
    /// follows.
    AwaitsObject,
}

/// A status write in flight.
#[derive(Debug)]
pub struct StatusWrite {
    /// The status that was sent.
    pub status: ImageCacheStatus,
    /// The resource version that it replaces.
    pub over: String,
}

/// Writes the status of one object.
#[derive(Debug)]
pub struct StatusWriter {
    /// What it does.
    pub state: WriterState,
    /// The next write does not begin before this; `None`: there was no write yet.
    pub not_before: Option<Tick>,
    /// A write that records new names does not wait longer than until then; `None`: there was no write yet.
    pub names_not_before: Option<Tick>,
    /// The status may differ from what was written.
    pub unsaved: bool,
    /// What the last Kubernetes Event was emitted for.
    pub announced: Announcement,
    /// The operation that the last write tells of.
    pub sent: Identity,
    /// Writes of the same operation so far, without the first.
    pub repeats: u32,
    /// The object is too large to be stored with everything that its status must say; `None`: it is not.
    pub oversize: Option<Oversize>,
    /// While a list is being received: the version of the object when the list began.
    pub listed_over: Option<String>,
}

/// An object that is too large for the API server.
#[derive(Clone, Copy, Debug)]
pub struct Oversize {
    /// How often it was refused.
    tries: u32,
    /// The whole status is tried again at this time, and before that only what has room.
    pub retry_at: Tick,
}

impl Oversize {
    /// Another refusal.
    fn again(before: Option<Self>, now: Tick, spread: u64) -> Self {
        let tries = before.map_or(0, |before| before.tries) + 1;
        let (first, most) = OVERSIZE_RETRY;
        Self {
            tries,
            retry_at: now.after(backoff::wait(first, most, tries, spread)),
        }
    }
}

impl StatusWriter {
    /// Notes that the object was too large. What has room is written next, to say so.
    pub fn too_large(&mut self, now: Tick, spread: u64) {
        self.oversize = Some(Oversize::again(self.oversize, now, spread));
    }

    /// The object has another spec: the whole status may have room now.
    pub fn try_whole(&mut self, now: Tick) {
        if let Some(oversize) = &mut self.oversize {
            oversize.retry_at = now;
        }
    }

    /// Notes that a write was stored. If only a part of the status had room, the whole is tried again later; if the
    /// whole had, that is said next.
    pub fn after_oversize(&mut self, now: Tick) {
        if let Some(oversize) = self.oversize {
            self.unsaved = true;
            if oversize.retry_at > now {
                self.not_before = Some(oversize.retry_at);
            } else {
                self.oversize = None;
            }
        }
    }

    /// Has only a part of the status room now?
    pub fn is_short(&self, now: Tick) -> bool {
        self.oversize
            .is_some_and(|oversize| oversize.retry_at > now)
    }

    /// A writer of a status that was written before, perhaps by another leader.
    pub fn new(written: &ImageCacheStatus) -> Self {
        Self {
            state: WriterState::Ready,
            not_before: None,
            names_not_before: None,
            unsaved: false,
            announced: Announcement::of(written),
            sent: Identity::of(written),
            repeats: 0,
            oversize: None,
            listed_over: None,
        }
    }

    /// Does it wait for the watch to bring a newer version of the object?
    pub fn awaits_object(&self) -> bool {
        matches!(self.state, WriterState::AwaitsObject)
    }

    /// Notes that the watch has brought the object.
    pub fn object_came(&mut self) {
        if self.awaits_object() {
            self.state = WriterState::BackOff;
        }
    }

    /// May a write begin now? `transition`: an operation begins or ends.
    pub fn may_write(&self, now: Tick, transition: bool) -> bool {
        let due = self.not_before.is_none_or(|at| at <= now);
        match self.state {
            WriterState::Ready => due || transition,
            WriterState::BackOff => due,
            WriterState::InFlight(_) | WriterState::AwaitsObject => false,
        }
    }

    /// When it writes next, if it has anything to write and waits for nothing else.
    pub fn writes_at(&self) -> Option<Tick> {
        match self.state {
            WriterState::Ready | WriterState::BackOff if self.unsaved => self.not_before,
            _ => None,
        }
    }

    /// Takes the write that was answered.
    pub fn answered(&mut self) -> Option<StatusWrite> {
        match std::mem::replace(&mut self.state, WriterState::Ready) {
            WriterState::InFlight(write) => Some(*write),
            state => {
                self.state = state;
                None
            }
        }
    }
}

/// The write of our finalizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinalizerWrite {
    /// Nothing is in flight.
    #[default]
    Idle,
    /// A write is in flight. Without an answer it is sent again at this time.
    InFlight {
        /// When.
        again: Tick,
        /// It sets the finalizer.
        present: bool,
    },
    /// The last write failed. The next one begins at this time.
    BackOff {
        /// When.
        again: Tick,
    },
}

impl FinalizerWrite {
    /// When the next write may begin; `None`: now.
    pub fn not_before(self) -> Option<Tick> {
        match self {
            Self::Idle => None,
            Self::InFlight { again, .. } | Self::BackOff { again } => Some(again),
        }
    }

    /// Must the next write wait?
    pub fn waits(self, now: Tick) -> bool {
        self.not_before().is_some_and(|at| at > now)
    }

    /// Is a write not answered yet? A status write would then meet another version of the object.
    pub fn in_flight(self) -> bool {
        matches!(self, Self::InFlight { .. })
    }
}
