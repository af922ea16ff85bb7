//! The heart of the puller. It decides everything and does no I/O: requests and answers of the
//! runtime go in as an [`Event`], runtime calls and replies come out as a [`Command`]. One command
//! is one runtime call, so that the races between pull, removal and garbage collection are decided
//! in here.

#![deny(missing_docs)]

mod classify;
mod event;
mod intent;
mod queue;
mod removal;
mod task;
#[cfg(test)]
mod tests;

pub use classify::{Class, Remedy, classify};
pub use event::{
    Answer, Authority, Call, CallError, CallId, Checked, Command, Container, CredentialId, Event,
    Image, Policy, PullOutcome, PullRequest, PullResult, RemoveOutcome, RemoveResult, Runtime,
    StreamId,
};
pub use queue::{Queue, Settings};

/// Milliseconds of a monotonic clock whose start does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// This long after.
    #[must_use]
    pub fn after(self, wait: std::time::Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}
