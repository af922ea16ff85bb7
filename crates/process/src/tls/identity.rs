//! A certificate, its key and the trusted CAs, read from PEM.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject as _};

use super::keys;

/// The certificate that a process presents, and the CAs that it trusts.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    anchors: Vec<CertificateDer<'static>>,
}

/// Why a Secret or a directory contains no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or key is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The content is not PEM.
    #[error("{0} is not PEM: {1}")]
    Pem(&'static str, pem::Error),
    /// The PEM contains no certificate.
    #[error("{0} contains no certificate")]
    NoCertificate(&'static str),
    /// The certificate is invalid, or the key is unusable or belongs to another certificate.
    #[error("certificate and private key cannot be used together: {0}")]
    KeyPair(rustls::Error),
    /// The list of CAs cannot be used.
    #[error("ca.crt cannot be used: {0}")]
    Trust(String),
}

/// The newest server configuration, and the facts that `GetInfo` reports about it.
pub struct Served {
    /// Configuration of each new handshake.
    pub config: Arc<ServerConfig>,
    /// SHA-256 of each trusted CA certificate, in lower-case hex.
    pub trusted: Vec<String>,
    /// Serial number of the certificate, in lower-case hex.
    pub serial: String,
    /// The trusted CA certificates.
    pub anchors: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Parses the PEM texts and checks that the key belongs to the certificate. `ca` may be empty if no
    /// peer is to be trusted.
    pub fn from_pem(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<Self, IdentityError> {
        let chain = certificates(certificate, keys::CERTIFICATE)?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate(keys::CERTIFICATE));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| IdentityError::Pem(keys::KEY, error))?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(IdentityError::KeyPair)?;
        Ok(Self {
            chain,
            key,
            anchors: certificates(ca, keys::CA)?,
        })
    }

    /// Uses a certificate with its intermediates, its key (PKCS #8), and trusted CAs.
    ///
    /// # Errors
    /// The key belongs to another certificate.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate(keys::CERTIFICATE));
        }
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(IdentityError::KeyPair)?;
        Ok(Self {
            chain,
            key,
            anchors,
        })
    }

    /// The certificate with its intermediates, and its key.
    pub(super) fn parts(&self) -> (&[CertificateDer<'static>], PrivateKeyDer<'static>) {
        (&self.chain, self.key.clone_key())
    }

    /// Returns a server configuration that requires a client certificate of a trusted CA. It uses TLS
    /// 1.3 only, because both sides are ours.
    pub fn mutual_server(&self) -> Result<Served, IdentityError> {
        let trust = |error: &dyn fmt::Display| IdentityError::Trust(error.to_string());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .build()
                .map_err(|error| trust(&error))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(IdentityError::KeyPair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(IdentityError::KeyPair)?;
        self.served(config, &[b"h2"])
    }

    /// Returns a server configuration for all clients, with TLS 1.2 or 1.3. The API server presents no
    /// certificate.
    pub fn server(&self) -> Result<Served, IdentityError> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::KeyPair)?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(IdentityError::KeyPair)?;
        self.served(config, &[b"h2", b"http/1.1"])
    }

    fn served(&self, mut config: ServerConfig, alpn: &[&[u8]]) -> Result<Served, IdentityError> {
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Served {
            config: Arc::new(config),
            trusted: self.anchors.iter().map(|ca| fingerprint(ca)).collect(),
            serial: serial(&self.chain[0])?,
            anchors: self.anchors.clone(),
        })
    }

    /// Returns a client configuration that presents this certificate and uses HTTP/2.
    pub fn client(&self) -> Result<ClientConfig, IdentityError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(IdentityError::KeyPair)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(IdentityError::KeyPair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Returns whether a client that trusts the CAs of this PEM accepts this identity as a server now.
    pub fn is_served_under(&self, bundle: &[u8], now: UnixTime) -> Result<(), String> {
        let anchors = certificates(bundle, "caBundle").map_err(|error| error.to_string())?;
        let anchors: Vec<_> = anchors
            .iter()
            .filter_map(|ca| webpki::anchor_from_trusted_cert(ca).ok())
            .collect();
        let leaf = webpki::EndEntityCert::try_from(&self.chain[0]).map_err(|e| e.to_string())?;
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &self.chain[1..],
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .map(drop)
        .map_err(|error| error.to_string())
    }

    fn roots(&self) -> Result<RootCertStore, IdentityError> {
        if self.anchors.is_empty() {
            return Err(IdentityError::NoCertificate(keys::CA));
        }
        let mut roots = RootCertStore::empty();
        for anchor in &self.anchors {
            roots
                .add(anchor.clone())
                .map_err(|error| IdentityError::Trust(error.to_string()))?;
        }
        Ok(roots)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            chain,
            key: _,
            anchors,
        } = self;
        f.debug_struct("Identity")
            .field("chain", &chain.len())
            .field("anchors", &anchors.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            config: _,
            trusted,
            serial,
            anchors: _,
        } = self;
        f.debug_struct("Served")
            .field("trusted", trusted)
            .field("serial", serial)
            .finish_non_exhaustive()
    }
}

/// Returns the crypto provider of all binaries.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns all certificates of a PEM text, in its order.
pub fn certificates(
    pem: &[u8],
    name: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Pem(name, error))
}

/// Returns the SHA-256 of a certificate in lower-case hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(::ring::digest::digest(&::ring::digest::SHA256, certificate).as_ref())
}

/// Returns the serial number of a certificate in lower-case hex, without a leading zero byte for the
/// sign.
pub fn serial(certificate: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let leaf = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| IdentityError::Trust(error.to_string()))?;
    let bytes = leaf.serial();
    Ok(hex(bytes.strip_prefix(&[0]).unwrap_or(bytes)))
}

/// Returns the DNS names in a certificate's subject alternative names.
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|leaf| leaf.valid_dns_names().map(ToOwned::to_owned).collect())
        .unwrap_or_default()
}

/// Writes bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
