//! What pullers need to take layers from each other: tickets that the controller signs, and a certificate for each node.

use kubefledged_process::tls::{Identity, IdentityError, Signing, names};

use super::{issue, parsed::Pair};

/// Signs tickets, and issues the certificates with which pullers ask each other.
pub struct PeerAuthority {
    signing: Signing,
    namespace: String,
    /// The CA that everybody trusts by now. `None`: somebody else issues the certificates, and pullers get none.
    issuer: Option<Pair>,
}

impl PeerAuthority {
    /// Signs with the key of the controller's certificate.
    pub(super) fn new(
        identity: &Identity,
        namespace: &str,
        issuer: Option<&Pair>,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            signing: Signing::new(identity)?,
            namespace: namespace.to_owned(),
            issuer: issuer.cloned(),
        })
    }

    /// Whether pullers can get certificates.
    pub fn can_issue(&self) -> bool {
        self.issuer.is_some()
    }

    /// Fingerprint of the CA that issues their certificates.
    pub fn issuer(&self) -> String {
        let issuer = self.issuer.as_ref();
        issuer.map_or_else(String::new, |ca| ca.certificate.fingerprint())
    }

    /// Signs tickets.
    pub fn signing(&self) -> &Signing {
        &self.signing
    }

    /// Issues the certificate (DER) of a node's puller for the key of its request (PKCS #10, DER). `now` is in seconds
    /// since the epoch.
    ///
    /// # Errors
    /// The request is none, or there is no CA.
    pub fn issue(&self, node: &str, request: &[u8], now: i64) -> anyhow::Result<Vec<u8>> {
        let issuer = self.issuer.as_ref();
        let issuer = issuer.ok_or_else(|| anyhow::anyhow!("there is no CA of ours"))?;
        let name = names::peer(&self.namespace, node);
        issue::peer(issuer, (node, name), request, now)
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_process::tls::identity::dns_names;
    use rcgen::{CertificateParams, KeyPair};

    use super::{
        super::{parsed::Certificate, roles::Role},
        *,
    };

    const NOW: i64 = 1_700_000_000;

    fn authority(issuer: Option<&Pair>) -> PeerAuthority {
        let ca = issue::ca(NOW).unwrap();
        let names = Role::Controller.names("ns", "svc");
        let leaf = issue::leaf(&ca, Role::Controller, &names, NOW).unwrap();
        let (certificate, key) = (leaf.certificate.pem.as_bytes(), leaf.key.as_bytes());
        let identity = Identity::from_pem(certificate, key, b"").unwrap();
        PeerAuthority::new(&identity, "ns", issuer).unwrap()
    }

    #[test]
    fn a_node_gets_a_certificate_for_its_key_under_its_own_name_whatever_it_asks_for() {
        let ca = issue::ca(NOW).unwrap();
        let authority = authority(Some(&ca));
        let key = KeyPair::generate().unwrap();
        let asked = names::controller("ns");
        let mut params = CertificateParams::new(vec![asked]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let request = CertificateParams::new(vec![names::controller("ns")]).unwrap();
        let request = request.serialize_request(&key).unwrap();
        let der = authority.issue("node-1", request.der(), NOW).unwrap();
        let names = dns_names(&der.clone().into());
        assert_eq!(names, [names::peer("ns", "node-1")]);
        let text = pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let issued = Certificate::parse(&text).unwrap();
        assert!(ca.certificate.issued(&issued, Role::Controller, NOW));
        assert!(!ca.certificate.issued(&issued, Role::Puller, NOW));
        assert_eq!(issued.not_after, NOW + issue::LEAF_LIFE);
        assert!(!authority.issuer().is_empty());
    }

    #[test]
    fn a_request_that_is_none_gets_nothing_and_neither_does_anybody_without_a_ca() {
        let ca = issue::ca(NOW).unwrap();
        assert!(authority(Some(&ca)).issue("n", b"junk", NOW).is_err());
        let none = authority(None);
        assert!(!none.can_issue() && none.issuer().is_empty());
        assert!(none.issue("n", b"junk", NOW).is_err());
    }
}
