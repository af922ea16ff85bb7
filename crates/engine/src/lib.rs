//! The controller's engine. It decides everything and does no I/O: no client, clock, random number or environment.
//! Events go in, commands come out, and an event answers every command that can fail.
//!
//! ```text
//! handle(now, event)        changes what is known, and marks what it concerns
//! poll(now, &mut commands)  decides about what is marked
//! next_wakeup()             when poll has something to do although nothing happens
//! ```
//!
//! The same events give the same commands, byte for byte.
//!
//! The modules are layers. Each uses only those before it, and `hack/layers` keeps it so:
//!
//! | layer | what belongs there |
//! |---|---|
//! | `ids` | numbers of nodes, caches, images, ...; stamps; sets of numbers |
//! | `vocabulary` | events, commands, and the reasons behind decisions |
//! | `model` | what is known: plain data that keeps itself consistent |
//! | `plan` | pure decisions: what one node is asked to do, and how it stands, as a value |
//! | `commit` | carries plans out; begins and ends batches; takes in their outcomes |
//! | `report` | operations, statuses, conditions, Kubernetes Events, writes to the API server |
//! | `view` | rows for the debug service and metrics |
//! | `engine` | the order of it all |

#![deny(missing_docs)]

mod commit;
mod engine;
mod ids;
mod model;
mod plan;
mod report;
#[cfg(test)]
mod tests;
pub mod view;
mod vocabulary;

pub use commit::Engine;
pub use vocabulary::*;
