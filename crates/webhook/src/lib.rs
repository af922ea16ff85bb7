//! The admission webhook: refuses `ImageCache` objects that cannot work, with kube-fledged's words,
//! and warns of what will surprise.
//!
//! [`admission`] decides and is pure. [`certificate`] keeps the server's certificate the one that
//! stands in the Secret and tells whether the API server takes it, [`server`] speaks HTTP,
//! [`handlers`] and [`app`] connect them.

#![deny(missing_docs)]

pub mod admission;
pub mod app;
pub mod args;
pub mod certificate;
pub mod handlers;
pub mod server;
