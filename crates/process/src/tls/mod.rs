//! TLS whose certificates change while connections run.
//!
//! rustls itself is told a certificate once; tonic's TLS too. Here each handshake takes the newest
//! [`Identity`], connections that are open go on under the one they began with, and no session is
//! resumed, since that would go on under an old one.
//!
//! [`files`] follows a mounted Secret, [`accept`] serves, [`connect`] dials, [`handshake`] tells
//! why a handshake failed.

pub mod accept;
pub mod connect;
pub mod files;
pub mod handshake;
pub mod identity;

pub use accept::{Stream, incoming, incoming_within};
pub use connect::Connector;
pub use handshake::{Failures, Reason};
pub use identity::{Identity, IdentityError, Served};

/// What a peer must be called in its certificate: the roles of mutual TLS, each with one name.
/// No address is in it: pods come and go, and the name stays.
///
/// The namespace is part of it, so that two installations under one CA do not command each other.
pub mod names {
    /// The controller, as a client of the pullers.
    pub fn controller(namespace: &str) -> String {
        format!("controller.{namespace}.kubefledged.internal")
    }

    /// A person with `grpcurl`, who may only look.
    pub fn debug(namespace: &str) -> String {
        format!("debug.{namespace}.kubefledged.internal")
    }

    /// A puller, as a server. All pullers share it.
    pub fn puller(namespace: &str) -> String {
        format!("puller.{namespace}.kubefledged.internal")
    }
}

/// Keys of a Secret of type kubernetes.io/tls, and names of the files that it is mounted as.
pub mod keys {
    /// The leaf, then intermediate certificates.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Its private key.
    pub const KEY: &str = "tls.key";
    /// Whom to trust: during a rotation the old CA and the new one.
    pub const CA: &str = "ca.crt";
}
