//! The admission webhook. It refuses `ImageCache` objects that cannot work, with the messages of
//! kube-fledged, and warns about surprising ones.
//!
//! [`admission`] decides and is pure. [`certificate`] follows the server's certificate in its Secret and
//! checks whether the API server accepts it. [`server`] serves HTTP, [`handlers`] answers requests, and
//! [`metrics`] counts them. [`app`] connects the parts.

#![deny(missing_docs)]

pub mod admission;
pub mod app;
pub mod args;
pub mod certificate;
pub mod handlers;
pub mod metrics;
pub mod server;
mod size;
