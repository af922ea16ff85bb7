//! States of a pair of node and image, for people.

use clap::ValueEnum;
use kubefledged_proto::debug::State;
use serde::Serialize;

/// State of a pair of node and image, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// The last attempt failed
    Failed,
    /// The node's puller does not answer
    Unreachable,
    /// Nothing is known yet, or the pull waits
    Pending,
    /// A pull is running
    Pulling,
    /// The node gets no images now, or not this one
    Out,
    /// The image is present
    Ready,
}

impl Shown {
    /// From the debug service's.
    pub fn of(state: State) -> Self {
        match state {
            State::Ready => Self::Ready,
            State::Pulling => Self::Pulling,
            State::Failed => Self::Failed,
            State::Pending => Self::Pending,
            State::Unreachable => Self::Unreachable,
            State::Out | State::Unspecified => Self::Out,
        }
    }

    /// One letter for a cell.
    pub fn letter(self) -> char {
        match self {
            Self::Failed => 'F',
            Self::Unreachable => 'U',
            Self::Pending => '.',
            Self::Pulling => 'p',
            Self::Out => '-',
            Self::Ready => '#',
        }
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::Pending => "pending",
            Self::Pulling => "pulling",
            Self::Out => "out",
            Self::Ready => "ready",
        }
    }
}
