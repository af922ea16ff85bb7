//! Fakes and helpers for tests: a dev-dependency only.

#![deny(missing_docs)]

pub mod runtime;
mod wait;

pub use runtime::{Call, FakeRuntime, Login, Removal};
pub use wait::eventually;
