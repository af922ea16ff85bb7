//! The CA and the certificates of all parts, which the leader reconciles.
//!
//! [`rotation`] decides the next step and is pure. [`issue`] issues certificates, [`secrets`] reads and
//! writes them, [`webhook`] publishes the CA to the API server, [`fleet`] asks the pullers which CAs they
//! trust, and [`keeper`] calls all of these.
//!
//! A CA is replaced in three steps. Each step is derived from the Secrets, so a new leader continues where
//! the old one stopped:
//!
//! 1. A new CA is added to every bundle, beside the old one. The certificates stay those of the old CA.
//! 2. When everybody trusts both CAs, all certificates are issued again by the new one.
//! 3. When everybody presents a new certificate, the old CA is removed from the bundles.
//!
//! "Everybody" is every puller that answers, at least [`keeper::FLOOR`] after everything was published.

mod events;
mod fleet;
mod issue;
pub mod keeper;
mod metrics;
mod parsed;
mod peers;
mod roles;
mod rotation;
mod secrets;
mod webhook;

pub use keeper::{Keeper, Mode, Settings};
pub use metrics::Metrics;
pub use peers::PeerAuthority;
pub(crate) use roles::Role;
pub(crate) use secrets::Secrets;
