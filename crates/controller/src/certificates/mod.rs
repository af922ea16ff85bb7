//! The CA and the certificates of all parts, kept right by the leader.
//!
//! [`rotation`] decides what is due and is pure; [`issue`] makes certificates, [`secrets`] reads
//! and writes them, [`webhook`] publishes the CA to the API server, [`fleet`] asks the pullers
//! what they trust, and [`keeper`] does all that in turn.
//!
//! A CA is replaced in three steps, and each is taken from what stands in the Secrets, so that a
//! new leader goes on where the old one was:
//!
//! 1. A new CA stands beside the old one in every bundle. Certificates stay those of the old.
//! 2. When everybody trusts both, all certificates are issued anew by the new one.
//! 3. When everybody presents a new one, the old CA leaves the bundles.
//!
//! "Everybody" is every puller that answers, at least [`keeper::FLOOR`] after all was published.

mod events;
mod fleet;
mod issue;
pub mod keeper;
mod metrics;
mod parsed;
mod roles;
mod rotation;
mod secrets;
mod webhook;

pub use keeper::{Keeper, Mode, Settings};
pub use metrics::Metrics;
pub(crate) use roles::Role;
pub(crate) use secrets::Secrets;
