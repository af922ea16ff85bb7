//! The heart of the puller. It decides everything and does no I/O: requests and answers of the
//! runtime go in as an [`Event`], runtime calls and replies come out as a [`Command`]. One command
//! is one runtime call, so that the races between pull, removal and garbage collection are decided
//! in here.

#![deny(missing_docs)]

mod classify;
mod disk;
mod event;
mod facts;
mod intent;
mod pins;
mod queue;
mod removal;
mod sharing;
mod task;
#[cfg(test)]
mod tests;

pub use classify::{Class, REFUSED_ARTIFACT, Remedy, classify, without_signatures};
pub use disk::{full, lacks_room};
pub use event::{
    Answer, Authority, Call, CallError, CallId, Checked, Command, CredentialId, Event, Mark,
    PinResult, Policy, PullOutcome, PullRequest, PullResult, RemoveOutcome, RemoveResult, Report,
    Retention, StreamId, Untag,
};
pub use facts::{Container, Disk, Image, Runtime, RuntimeFacts, Support};
pub use queue::{PullRow, PullState, Queue, Settings, Totals};
pub use sharing::{Bytes, Peer, Peers, Progress, Sharing, Sources, Transfer};
pub use task::LONG_PULL;

pub use kubefledged_api_types::Tick;
