//! Writes to one `ImageCache` object: at most one of the status and one of the finalizer are in flight.

use kubefledged_api_types::ImageCacheStatus;

use super::last_operation::{Announcement, Identity};
use crate::vocabulary::Tick;

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
    /// The status may differ from what was written.
    pub unsaved: bool,
    /// What the last Kubernetes Event was emitted for.
    pub announced: Announcement,
    /// The operation that the last write tells of.
    pub sent: Identity,
    /// While a list is being received: the version of the object when the list began.
    pub listed_over: Option<String>,
}

impl StatusWriter {
    /// A writer of a status that was written before, perhaps by another leader.
    pub fn new(written: &ImageCacheStatus) -> Self {
        Self {
            state: WriterState::Ready,
            not_before: None,
            unsaved: false,
            announced: Announcement::of(written),
            sent: Identity::of(written),
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
            Self::InFlight { again } | Self::BackOff { again } => Some(again),
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
