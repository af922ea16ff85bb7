//! Parsed certificates of Secrets.

use std::time::Duration;

use anyhow::Context as _;
use kubefledged_process::tls::identity::{certificates, dns_names, fingerprint, serial};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::roles::Role;

/// A certificate and its private key, both as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: Certificate,
    /// Its private key. It is overwritten in memory when dropped.
    pub key: Zeroizing<String>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate as PEM.
    pub pem: String,
    der: CertificateDer<'static>,
    /// Start of its validity, in seconds since the epoch.
    pub not_before: i64,
    /// End of its validity, in seconds since the epoch.
    pub not_after: i64,
}

impl Certificate {
    /// Parses the first certificate of a PEM text. `pem` keeps the whole text with its intermediates.
    pub fn parse(pem: &str) -> anyhow::Result<Self> {
        let der = certificates(pem.as_bytes(), "tls.crt")?
            .into_iter()
            .next()
            .context("no certificate")?;
        Self::of(pem.to_owned(), der)
    }

    /// Returns each certificate of a bundle.
    pub fn parse_all(pem: &str) -> anyhow::Result<Vec<Self>> {
        let all = certificates(pem.as_bytes(), "ca.crt")?.into_iter();
        all.map(|der| {
            let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
            let block = pem::encode_config(&Pem::new("CERTIFICATE", der.to_vec()), config);
            Self::of(block, der)
        })
        .collect()
    }

    fn of(pem: String, der: CertificateDer<'static>) -> anyhow::Result<Self> {
        let (_, parsed) = X509Certificate::from_der(&der).context("no X.509 certificate")?;
        let validity = parsed.validity();
        let (not_before, not_after) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        Ok(Self {
            pem,
            der,
            not_before,
            not_after,
        })
    }

    /// Returns whether the certificate is valid at this time.
    pub fn is_valid_at(&self, now: i64) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Returns whether two thirds of its lifetime have passed.
    pub fn is_due_at(&self, now: i64) -> bool {
        now >= self.not_after - (self.not_after - self.not_before) / 3
    }

    /// Returns whether this CA issued that certificate for its role and both are valid now.
    pub fn issued(&self, leaf: &Self, role: Role, now: i64) -> bool {
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&self.der) else {
            return false;
        };
        let Ok(seconds) = u64::try_from(now) else {
            return false;
        };
        let end = webpki::EndEntityCert::try_from(&leaf.der);
        let verified = end.and_then(|end| {
            end.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                role.key_usage(),
                None,
                None,
            )
            .map(drop)
        });
        // Path validation does not check the dates of the CA itself.
        verified.is_ok() && self.is_valid_at(now)
    }

    /// Returns its DNS names.
    pub fn names(&self) -> Vec<String> {
        dns_names(&self.der)
    }

    /// Returns the value in the form in which a puller reports it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Returns the value in the form in which a puller reports it.
    pub fn serial(&self) -> String {
        serial(&self.der).unwrap_or_default()
    }
}
