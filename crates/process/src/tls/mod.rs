//! TLS with certificates that change while connections are open.
//!
//! rustls and tonic read a certificate only once. Here each handshake uses the newest [`Identity`].
//! Open connections continue with the identity they began with. Sessions are not resumed, because a
//! resumed session would use an old identity.
//!
//! [`files`] follows a mounted Secret, [`accept`] is the server side, [`connect`] the client side,
//! [`handshake`] reports why a handshake failed, and [`signed`] signs with the key of a certificate.

pub mod accept;
pub mod connect;
pub mod files;
mod gather;
pub mod handshake;
pub mod identity;
pub mod signed;

pub use accept::{Stream, incoming, incoming_within};
pub use connect::Connector;
pub use handshake::{Failures, Reason};
pub use identity::{Identity, IdentityError, Served};
pub use signed::Signing;

/// Names that certificates of mutual TLS must have, one for each role. They contain no address, because
/// the addresses of pods change.
///
/// They contain the namespace, so that two installations under one CA cannot command each other.
pub mod names {
    /// Returns the name of the controller as a client of the pullers.
    pub fn controller(namespace: &str) -> String {
        format!("controller.{namespace}.kubefledged.internal")
    }

    /// Returns the name of a person with `grpcurl`, who may only read.
    pub fn debug(namespace: &str) -> String {
        format!("debug.{namespace}.kubefledged.internal")
    }

    /// Returns the name of one node's puller as a client of other pullers. Names of nodes may be too long for a label, so
    /// it begins with a hash of the node's.
    pub fn peer(namespace: &str, node: &str) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, node.as_bytes());
        let label = super::identity::hex(&hash.as_ref()[..20]);
        format!("{label}.{}", peers(namespace))
    }

    /// Returns what the names of all pullers as clients end in, after a dot.
    pub fn peers(namespace: &str) -> String {
        format!("peer.{namespace}.kubefledged.internal")
    }

    /// Returns the name of a puller as a server. All pullers share it.
    pub fn puller(namespace: &str) -> String {
        format!("puller.{namespace}.kubefledged.internal")
    }
}

/// Keys of a Secret of type kubernetes.io/tls, which are also the names of its mounted files.
pub mod keys {
    /// The certificate, followed by intermediate certificates.
    pub const CERTIFICATE: &str = "tls.crt";
    /// The private key of the certificate.
    pub const KEY: &str = "tls.key";
    /// The trusted CAs. During a rotation these are the old and the new one.
    pub const CA: &str = "ca.crt";
}
