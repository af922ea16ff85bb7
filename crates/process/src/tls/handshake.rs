//! Counts failed handshakes by reason, and logs them at a limited rate.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use rustls::{CertificateError, Error};
use tokio::time::Instant;

use crate::log::Pace;

/// Between two log lines of one reason.
const QUIET: Duration = Duration::from_secs(10);

/// Reason of a failed handshake. The set is closed, because it is the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// This process has no certificate yet.
    NoIdentity,
    /// The peer did not finish in time.
    Timeout,
    /// The peer had not finished when others needed its place.
    Crowded,
    /// The peer went away.
    Closed,
    /// The peer presented no certificate.
    NoCertificate,
    /// The peer's certificate was issued by a CA that we do not trust.
    UnknownIssuer,
    /// The peer's certificate has expired by our clock.
    Expired,
    /// The peer's certificate is not valid yet by our clock.
    NotYetValid,
    /// The peer's certificate is for the other side of a connection (client or server).
    WrongUsage,
    /// The server's certificate has another name.
    WrongName,
    /// The peer's certificate cannot be used for another reason.
    BadCertificate,
    /// The peer refused our certificate or our TLS version.
    Alert,
    /// The peer does not speak TLS.
    Protocol,
    /// The connection failed.
    Io,
}

impl Reason {
    /// Returns the reason of a handshake's error.
    pub fn of(error: &io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => Self::Closed,
                io::ErrorKind::TimedOut => Self::Timeout,
                io::ErrorKind::QuotaExceeded => Self::Crowded,
                _ => Self::Io,
            };
        };
        match tls {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(_) => Self::Alert,
            Error::InvalidCertificate(certificate) => Self::of_certificate(certificate),
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;

        match error {
            // For a CA with the same name as ours, rustls reports a wrong signature.
            E::UnknownIssuer | E::BadSignature => Self::UnknownIssuer,
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYetValid,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => Self::WrongUsage,
            E::NotValidForName | E::NotValidForNameContext { .. } => Self::WrongName,
            _ => Self::BadCertificate,
        }
    }

    /// Returns the label value of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::Timeout => "timeout",
            Self::Crowded => "crowded",
            Self::Closed => "closed",
            Self::NoCertificate => "no_certificate",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongUsage => "wrong_usage",
            Self::WrongName => "wrong_name",
            Self::BadCertificate => "bad_certificate",
            Self::Alert => "alert",
            Self::Protocol => "protocol",
            Self::Io => "io",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: &'static str,
}

/// Counter and log of failed handshakes. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    counts: Family<Labels, Counter>,
    logged: Arc<Mutex<BTreeMap<Reason, Pace>>>,
}

impl Failures {
    /// Registers the counter in a metrics registry with the prefix kubefledged.
    pub fn register(registry: &mut Registry) -> Self {
        let failures = Self::default();
        registry.register(
            "tls_handshake_failures",
            "Failed TLS handshakes, by reason",
            failures.counts.clone(),
        );
        failures
    }

    /// For tests of what is exposed: as if one had failed.
    pub fn example(&self) {
        let reason = Reason::Closed.label();
        drop(self.counts.get_or_create(&Labels { reason }));
    }

    /// Records a failed handshake.
    pub fn count(&self, reason: Reason, error: &io::Error, peer: &SocketAddr) {
        let label = reason.label();
        self.counts.get_or_create(&Labels { reason: label }).inc();
        if reason == Reason::Closed {
            // Port scans and probes of load balancers cause these.
            tracing::debug!(reason = label, %peer, %error, "a TLS handshake failed");
        } else if let Some(unlogged) = self.due(reason, Instant::now()) {
            tracing::warn!(reason = label, %peer, %error, unlogged, "a TLS handshake failed");
        }
    }

    /// Returns the number of unlogged failures if it is time for another log line.
    fn due(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = logged.entry(reason);
        pace.or_insert_with(|| Pace::new(1, QUIET)).due(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: Error) -> Reason {
        Reason::of(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn each_failure_has_its_reason() {
        let certificate = |error| of(Error::InvalidCertificate(error));
        assert_eq!(of(Error::NoCertificatesPresented), Reason::NoCertificate);
        assert_eq!(of(Error::DecryptError), Reason::Protocol);
        assert_eq!(
            certificate(CertificateError::UnknownIssuer),
            Reason::UnknownIssuer
        );
        assert_eq!(
            certificate(CertificateError::InvalidPurpose),
            Reason::WrongUsage
        );
        assert_eq!(certificate(CertificateError::Expired), Reason::Expired);
        assert_eq!(
            Reason::of(&io::ErrorKind::UnexpectedEof.into()),
            Reason::Closed
        );
        assert_eq!(
            Reason::of(&io::ErrorKind::PermissionDenied.into()),
            Reason::Io
        );
    }

    #[test]
    fn a_flood_is_one_line_and_a_count() {
        let failures = Failures::default();
        let start = Instant::now();
        assert_eq!(failures.due(Reason::Expired, start), Some(0));
        assert_eq!(failures.due(Reason::Expired, start), None);
        assert_eq!(failures.due(Reason::Alert, start), Some(0));
        assert_eq!(failures.due(Reason::Expired, start + QUIET / 2), None);
        assert_eq!(failures.due(Reason::Expired, start + QUIET), Some(2));
        assert_eq!(failures.due(Reason::Expired, start + 2 * QUIET), Some(0));
    }
}
