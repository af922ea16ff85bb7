//! What the two pure crates say, as messages of the contract (`proto/kubefledged/puller/v1`) and
//! back. No I/O: the controller and the puller send these messages over gRPC, the simulation hands
//! them over itself.

#![deny(missing_docs)]

pub mod controller;
pub mod puller;

/// Metadata of a refusal (`FAILED_PRECONDITION`): the term that the puller has seen.
pub const SEEN_TERM: &str = "kubefledged-seen-term";
