//! The part of the status that tells of the last operation, parsed.

use kubefledged_api_types::{
    ImageCacheStatus, PurgeStatus, Timestamp,
    conditions::{DEGRADED, Degraded},
    names::{message, reason, status},
};

use super::operation::Kind;

/// `status.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Empty: there was no operation yet.
    #[default]
    None,
    /// The operation runs.
    Processing,
    /// Every image is where it should be.
    Succeeded,
    /// Some image failed on some node.
    Failed,
    /// There was no node to work on.
    NothingDone,
    /// The operation was given up.
    Aborted,
    /// kube-fledged wrote it; we never do.
    Unknown,
    /// A word that is none of ours.
    Other(String),
}

impl Phase {
    /// From `status.status`.
    pub fn parse(text: &str) -> Self {
        match text {
            "" => Self::None,
            status::PROCESSING => Self::Processing,
            status::SUCCEEDED => Self::Succeeded,
            status::FAILED => Self::Failed,
            status::NOTHING_DONE => Self::NothingDone,
            status::ABORTED => Self::Aborted,
            status::UNKNOWN => Self::Unknown,
            other => Self::Other(other.to_owned()),
        }
    }

    /// As it is in the status.
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Processing => status::PROCESSING,
            Self::Succeeded => status::SUCCEEDED,
            Self::Failed => status::FAILED,
            Self::NothingDone => status::NOTHING_DONE,
            Self::Aborted => status::ABORTED,
            Self::Unknown => status::UNKNOWN,
            Self::Other(other) => other,
        }
    }
}

/// `status.reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An operation of ours.
    Operation(Kind),
    /// The stored spec cannot be parsed.
    InvalidSpec,
    /// Empty, or a word that is none of ours.
    Other(String),
}

impl Subject {
    fn parse(text: &str) -> Self {
        match Kind::parse(text) {
            Some(kind) => Self::Operation(kind),
            None if text == reason::INVALID => Self::InvalidSpec,
            None => Self::Other(text.to_owned()),
        }
    }

    /// As it is in the status.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Operation(kind) => kind.reason(),
            Self::InvalidSpec => reason::INVALID,
            Self::Other(other) => other,
        }
    }

    /// The operation; `None`: it is none of ours.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Operation(kind) => Some(*kind),
            Self::InvalidSpec | Self::Other(_) => None,
        }
    }
}

/// Which operation a status tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `status.reason`
    pub subject: Subject,
    /// `status.startTime`
    pub started: Option<Timestamp>,
}

impl Identity {
    /// Of a status.
    pub fn of(status: &ImageCacheStatus) -> Self {
        Self {
            subject: Subject::parse(&status.reason),
            started: status.start_time,
        }
    }
}

/// What of a status Kubernetes Events were emitted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// `status.status`
    pub phase: Phase,
    /// `status.startTime`
    pub started: Option<Timestamp>,
    /// `status.listsWithoutNodes`; `None`: there are none.
    pub unmatched: Option<Vec<u32>>,
    /// Images are lost.
    pub losing: bool,
}

impl Announcement {
    /// Of a status.
    pub fn of(status: &ImageCacheStatus) -> Self {
        Self {
            phase: Phase::parse(&status.status),
            started: status.start_time,
            unmatched: (!status.lists_without_nodes.is_empty())
                .then(|| status.lists_without_nodes.clone()),
            losing: status.conditions.iter().any(|condition| {
                condition.type_ == DEGRADED
                    && condition.reason == Degraded::LostToGarbageCollection.as_str()
            }),
        }
    }
}

/// What the status says of the last operation.
#[derive(Clone, Debug, PartialEq)]
pub struct LastOperation {
    /// `status.status`
    pub phase: Phase,
    /// `status.reason`
    pub subject: Subject,
    /// `status.message`
    pub message: String,
    /// `status.startTime`
    pub started: Option<Timestamp>,
    /// `status.completionTime`
    pub completed: Option<Timestamp>,
}

impl LastOperation {
    /// From a status that was written before.
    pub fn of(status: &ImageCacheStatus) -> Self {
        Self {
            phase: Phase::parse(&status.status),
            subject: Subject::parse(&status.reason),
            message: status.message.clone(),
            started: status.start_time,
            completed: status.completion_time,
        }
    }

    /// An operation that begins.
    pub fn begin(kind: Kind, started: Timestamp) -> Self {
        Self {
            phase: Phase::Processing,
            subject: Subject::Operation(kind),
            message: kind.running().to_owned(),
            started: Some(started),
            completed: None,
        }
    }

    /// A spec that cannot be parsed.
    pub fn invalid(message: String, now: Timestamp) -> Self {
        Self {
            phase: Phase::Failed,
            subject: Subject::InvalidSpec,
            message,
            started: Some(now),
            completed: Some(now),
        }
    }

    /// The purge that a cache was left with whose spec could not be used for a while. `left`: images of it are still to
    /// be removed.
    pub fn purged(purge: &PurgeStatus, left: bool) -> Self {
        let (phase, message) = if left {
            (Phase::Failed, message::DELETE_FAILED)
        } else {
            (Phase::Succeeded, message::DELETED)
        };
        Self {
            phase,
            subject: Subject::Operation(Kind::Purge),
            message: message.to_owned(),
            started: purge.start_time,
            completed: purge.completion_time,
        }
    }

    /// Notes how the operation ended.
    pub fn end(&mut self, phase: Phase, message: &str, at: Timestamp) {
        self.phase = phase;
        message.clone_into(&mut self.message);
        self.completed = Some(at);
    }

    /// Notes that the operation was given up.
    pub fn abort(&mut self, at: Timestamp) {
        self.end(Phase::Aborted, message::ABORTED, at);
    }
}
