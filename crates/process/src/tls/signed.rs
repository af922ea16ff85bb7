//! Signatures with the key of a certificate, which anybody who trusts its CA can verify.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{SignatureScheme, sign::Signer};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};

use super::{
    Identity, IdentityError,
    identity::{dns_names, provider},
};

/// One scheme for each kind of key, so that a signature needs no name of its scheme.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];
/// The same schemes.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 4] = [
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
];
/// Certificates that a chain may have.
const MOST_CERTIFICATES: usize = 8;

/// The time since 1970, with which the times of certificates and of what they signed are compared.
pub fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// Signs with the key of a certificate.
#[derive(Clone)]
pub struct Signing {
    chain: Arc<[Vec<u8>]>,
    signer: Arc<dyn Signer>,
}

/// Why a signature is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no certificate of the signer, or it cannot be read.
    #[error("the certificate of the signer cannot be read")]
    Certificate,
    /// No trusted CA issued it for clients, or it is not valid now.
    #[error("the certificate of the signer is not trusted: {0}")]
    Untrusted(String),
    /// It is the certificate of somebody else.
    #[error("{0} may not sign it")]
    Name(String),
    /// The signature is by another key, or of something else.
    #[error("the signature is not that of the signer")]
    Signature,
}

impl Signing {
    /// Signs with the key of this identity.
    ///
    /// # Errors
    /// The key is of no kind that can be used.
    pub fn new(identity: &Identity) -> Result<Self, IdentityError> {
        let (chain, key) = identity.parts();
        let key = provider().key_provider.load_private_key(key);
        let signer = key.map_err(IdentityError::KeyPair)?.choose_scheme(&SCHEMES);
        let signer = signer.ok_or_else(|| {
            IdentityError::KeyPair(rustls::Error::General("an unknown kind of key".to_owned()))
        })?;
        Ok(Self {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            signer: signer.into(),
        })
    }

    /// The signer's certificate (DER), followed by intermediate ones.
    pub fn chain(&self) -> &Arc<[Vec<u8>]> {
        &self.chain
    }

    /// Signs.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.signer.sign(message).map_err(IdentityError::KeyPair)
    }
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain, signer: _ } = self;
        f.debug_struct("Signing")
            .field("chain", &chain.len())
            .finish_non_exhaustive()
    }
}

/// Verifies that whoever has exactly this DNS name in a client certificate of one of these CAs signed the message.
///
/// # Errors
/// Says which part is wrong.
pub fn verify(
    message: &[u8],
    signature: &[u8],
    chain: &[Vec<u8>],
    (name, anchors): (&str, &[CertificateDer<'_>]),
    now: Duration,
) -> Result<(), SignatureError> {
    let (first, rest) = chain.split_first().ok_or(SignatureError::Certificate)?;
    if rest.len() >= MOST_CERTIFICATES {
        return Err(SignatureError::Certificate);
    }
    let first = CertificateDer::from(first.as_slice());
    let rest: Vec<_> = rest
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    is_client(&first, &rest, anchors, now)?;
    let names = dns_names(&first);
    if names != [name] {
        return Err(SignatureError::Name(names.join(",")));
    }
    let leaf = webpki::EndEntityCert::try_from(&first).map_err(|_| SignatureError::Certificate)?;
    let verifies = |algorithm| leaf.verify_signature(algorithm, message, signature).is_ok();
    if ALGORITHMS.into_iter().any(verifies) {
        Ok(())
    } else {
        Err(SignatureError::Signature)
    }
}

/// Verifies that one of these CAs issued a client certificate that is valid now, in time since 1970.
///
/// # Errors
/// None did.
pub fn is_client(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
    now: Duration,
) -> Result<(), SignatureError> {
    let anchors: Vec<_> = anchors
        .iter()
        .filter_map(|ca| webpki::anchor_from_trusted_cert(ca).ok())
        .collect();
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| SignatureError::Certificate)?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        rest,
        UnixTime::since_unix_epoch(now),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(|error| SignatureError::Untrusted(error.to_string()))
}

#[cfg(test)]
mod tests {
    use kubefledged_testkit::{Ca, Leaf, Usage};

    use super::*;

    fn identity(leaf: &Leaf, ca: &Ca) -> Identity {
        let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
        Identity::from_pem(certificate, key, ca.pem().as_bytes()).unwrap()
    }

    #[test]
    fn only_the_named_client_of_a_trusted_ca_signs_and_only_what_it_signed_is_believed() {
        let (ca, stranger) = (Ca::default(), Ca::default());
        let trusted = [CertificateDer::from(ca.der())];
        let signing = |leaf: Leaf, ca: &Ca| Signing::new(&identity(&leaf, ca)).unwrap();
        let by = signing(ca.issue(&["a.test"], Usage::Client), &ca);
        let other = signing(ca.issue(&["a.test"], Usage::Client), &ca);
        let check = |message: &[u8], signature: &[u8], chain: &[Vec<u8>], name, now| {
            verify(message, signature, chain, (name, &trusted[..]), now)
        };
        let signature = by.sign(b"text").unwrap();
        let chain = by.chain().clone();
        assert_eq!(check(b"text", &signature, &chain, "a.test", now()), Ok(()));
        let wrong = SignatureError::Signature;
        for (message, signature, chain) in [
            (&b"texts"[..], signature.clone(), chain.clone()),
            (b"text", other.sign(b"text").unwrap(), chain.clone()),
            (b"text", signature.clone(), other.chain().clone()),
            (b"text", Vec::new(), chain.clone()),
        ] {
            let result = check(message, &signature, &chain, "a.test", now());
            assert_eq!(result, Err(wrong.clone()));
        }
        let named = SignatureError::Name("a.test".to_owned());
        assert_eq!(
            check(b"text", &signature, &chain, "b.test", now()),
            Err(named)
        );
        let none = SignatureError::Certificate;
        assert_eq!(
            check(b"text", &signature, &[], "a.test", now()),
            Err(none.clone())
        );
        let junk = [vec![1, 2, 3]];
        assert_eq!(
            check(b"text", &signature, &junk, "a.test", now()),
            Err(none)
        );
        for signer in [
            signing(stranger.issue(&["a.test"], Usage::Client), &stranger),
            signing(ca.issue(&["a.test"], Usage::Server), &ca),
        ] {
            let signature = signer.sign(b"text").unwrap();
            let result = check(b"text", &signature, signer.chain(), "a.test", now());
            assert!(
                matches!(result, Err(SignatureError::Untrusted(_))),
                "{result:?}"
            );
        }
        let late = Duration::from_secs(200_000_000_000);
        let result = check(b"text", &signature, &chain, "a.test", late);
        assert!(matches!(result, Err(SignatureError::Untrusted(_))));
    }
}
