//! The heart of the controller. It decides everything and does no I/O: no client, clock, random
//! number or environment. What happened goes in as an [`Event`], what is to be done comes out as a
//! [`Command`], and every command that can fail is answered by an event.
//!
//! ```text
//! handle(now, event)        changes what is known and marks what it touches
//! poll(now, &mut commands)  decides about what is marked
//! next_wakeup()             when poll has something to do although nothing happens
//! ```
//!
//! The same events give the same commands, byte for byte.

#![deny(missing_docs)]

mod alarms;
mod assess;
mod backoff;
mod batches;
mod cache;
mod caches;
mod cell;
mod conditions;
mod deletion;
mod engine;
pub mod event;
mod facts;
mod failures;
mod images;
mod looks;
mod node;
mod nodes;
mod operation;
mod plan;
mod pulls;
mod refresh;
mod registry;
mod removal;
mod scope;
mod selector;
mod status;
#[cfg(test)]
mod tests;
mod turns;
pub mod view;
mod wants;
mod writes;

pub use cell::CellState;
pub use engine::{Engine, Settings};
pub use event::{
    Batch, BatchEnd, BatchId, CacheKey, CacheObject, CancelPulls, CheckReport, Command,
    CredentialScope, Disk, Event, ImageOutcome, ImageResult, InvalidCache, NodeFacts, NodeName,
    NodeTurn, Pin, PinResult, PullItem, Puller, Seen, Severity, Source, UselessSecrets, Work,
    WriteError,
};
pub use facts::Ineligible;
pub use plan::Stays;
pub use pulls::{Skip, Why};

pub use kubefledged_api_types::Tick;
use kubefledged_api_types::Timestamp;

/// The moment of a call: what waiting is measured by, and what stands in a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines and back-off.
    pub tick: Tick,
    /// For what people read.
    pub wall: Timestamp,
}
