//! Image references in the grammar of the distribution project, and matching of registry credentials.
//!
//! The runtime gets the text that the user wrote ([`ImageRef::runtime_name`]). The normalized form is for
//! comparing and for finding credentials ([`ImageRef::normalized`]).

#![deny(missing_docs)]

mod address;
pub mod credentials;
pub mod glob;

mod reference;

pub use credentials::{Keyring, Pattern};
pub use reference::{ImageRef, ImageRefError};
