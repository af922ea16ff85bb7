//! Fakes and helpers for tests: a dev-dependency only.

#![deny(missing_docs)]

pub mod certificates;
mod collector;
mod containerd;
mod documented;
mod plain;
mod program;
pub mod removal;
pub mod runtime;
mod wait;

pub use certificates::{Ca, Leaf, SecretDirectory, Usage, issued_by};
pub use collector::{Collector, SeenSpan};
pub use containerd::store::sha256;
pub use documented::assert_documented;
pub use plain::Plain;
pub use program::Program;
pub use runtime::{Call, FakeRuntime, Fetched, Login, Native, Published, Removal};
pub use wait::eventually;
