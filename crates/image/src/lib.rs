//! Image references by the distribution grammar, and which registry credentials match them.
//!
//! The string a user writes goes to the runtime as it is; the normalized form is for comparison
//! and for looking up credentials.

#![deny(missing_docs)]

pub mod credentials;
mod reference;

pub use reference::{ImageRef, ImageRefError};
