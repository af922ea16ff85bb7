//! Converts between the types of the two pure crates and the messages of the contract
//! (`proto/kubefledged/puller/v1`). It does no I/O: the controller and the puller send the messages over
//! gRPC, the simulation delivers them itself.

#![deny(missing_docs)]

pub mod checks;
pub mod controller;
pub mod puller;
pub mod terms;
pub mod tickets;

use std::time::Duration;

pub use kubefledged_queue::LONG_PULL;

/// Maximum size of one request, in bytes. A puller refuses a larger one.
pub const MESSAGE_LIMIT: usize = 8 << 20;
/// Time between two heartbeats of a puller on each open stream.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// A stream without a message for this time is lost. It is three heartbeats.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Time between HTTP/2 pings on a connection with calls in flight.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Key of the metadata of a refusal (`FAILED_PRECONDITION`). Its value is the term that the puller has
/// seen.
pub const SEEN_TERM: &str = "kubefledged-seen-term";
