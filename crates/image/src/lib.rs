//! Image references by the distribution grammar, and which registry credentials match them.
//!
//! The string a user writes goes to the runtime as it is ([`ImageRef::runtime_name`]); the
//! normalized form is for comparison and for looking up credentials ([`ImageRef::normalized`]).

#![deny(missing_docs)]

mod address;
pub mod credentials;
pub mod glob;

mod reference;

pub use credentials::{Keyring, Pattern};
pub use reference::{ImageRef, ImageRefError};
