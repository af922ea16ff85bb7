//! Converts between the types of the two pure crates and the messages of the contract
//! (`proto/kubefledged/puller/v1`). It does no I/O: the controller and the puller send the messages over
//! gRPC, the simulation delivers them itself.

#![deny(missing_docs)]

pub mod controller;
pub mod puller;

/// Key of the metadata of a refusal (`FAILED_PRECONDITION`). Its value is the term that the puller has
/// seen.
pub const SEEN_TERM: &str = "kubefledged-seen-term";
