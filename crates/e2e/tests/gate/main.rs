//! The node gate: pods wait for a new node, and the node for its images. Each test switches the gate on in the
//! installation that is there, and off again. One test at a time.
//!
//! `make test-gate` runs all of them on a cluster of their own, and `make bench-real-gate` the one that measures.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod join;
mod measure;
mod outage;
mod recipes;
mod rights;
mod setup;
