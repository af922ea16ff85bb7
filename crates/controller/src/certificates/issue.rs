//! Issues certificates with ECDSA P-256, random serial numbers, and one use each.

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::{
    parsed::{Certificate, Pair},
    roles::Role,
};

const DAY: i64 = 24 * 3600;
/// Lifetime of a CA. It is replaced after two thirds of it.
pub const CA_LIFE: i64 = 365 * DAY;
/// Lifetime of a certificate. It is renewed after two thirds of it.
pub const LEAF_LIFE: i64 = 30 * DAY;
/// New certificates are valid from this time before now, because clocks of nodes differ.
pub const BACKDATE: i64 = 3600;

/// Creates a CA. `now` is in seconds since the epoch.
pub fn ca(now: i64) -> anyhow::Result<Pair> {
    let mut params = params(now - BACKDATE, now + CA_LIFE)?;
    let serial = params.serial_number.as_ref().map(ToString::to_string);
    // Two CAs at the same time have different names, so that people can tell them apart.
    let name = format!("kubefledged CA {}", serial.unwrap_or_default());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    pair(&certificate, &key)
}

/// Issues a certificate. It is never valid longer than its CA.
pub fn leaf(ca: &Pair, role: Role, names: &[String], now: i64) -> anyhow::Result<Pair> {
    let not_after = (now + LEAF_LIFE).min(ca.certificate.not_after);
    let not_before = (now - BACKDATE).max(ca.certificate.not_before);
    let mut params = params(not_before, not_after)?;
    let common = names.last().context("a certificate needs a name")?;
    // X.509 limits it to 64 characters; what counts are the subject alternative names.
    let common: String = common.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![role.usage()];
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate.pem, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    pair(&certificate, &key)
}

/// Issues the client certificate (DER) of a node's puller for the key of a request, of which nothing else is taken. Its
/// signature shows that whoever asks has the key.
pub fn peer(
    ca: &Pair,
    (node, name): (&str, String),
    request: &[u8],
    now: i64,
) -> anyhow::Result<Vec<u8>> {
    let request = CertificateSigningRequestParams::from_der(&request.to_vec().into());
    let mut request = request.context("the puller's request for a certificate cannot be used")?;
    let not_after = (now + LEAF_LIFE).min(ca.certificate.not_after);
    let not_before = (now - BACKDATE).max(ca.certificate.not_before);
    let mut params = params(not_before, not_after)?;
    // For people alone.
    let common: String = node.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = CertificateParams::new(vec![name])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    request.params = params;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate.pem, KeyPair::from_pem(&ca.key)?)?;
    Ok(request.signed_by(&issuer)?.der().to_vec())
}

fn pair(certificate: &str, key: &KeyPair) -> anyhow::Result<Pair> {
    Ok(Pair {
        certificate: Certificate::parse(certificate)?,
        key: Zeroizing::new(key.serialize_pem()),
    })
}

fn params(not_before: i64, not_after: i64) -> anyhow::Result<CertificateParams> {
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    // Positive, and never shorter.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = moment(not_before)?;
    params.not_after = moment(not_after)?;
    Ok(params)
}

fn moment(seconds: i64) -> anyhow::Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(seconds)?)
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn leaf_of(ca: &Pair, role: Role, now: i64) -> Pair {
        leaf(ca, role, &role.names("ns", "svc"), now).unwrap()
    }

    #[test]
    fn a_leaf_chains_to_its_ca_for_its_own_use_and_no_other() {
        let (ca, stranger) = (ca(NOW).unwrap(), ca(NOW).unwrap().certificate);
        for role in Role::ALL {
            let leaf = leaf_of(&ca, role, NOW).certificate;
            for other in Role::ALL {
                assert_eq!(
                    ca.certificate.issued(&leaf, other, NOW),
                    role.usage() == other.usage(),
                    "{role:?} as {other:?}"
                );
            }
            assert!(!stranger.issued(&leaf, role, NOW));
            assert_eq!(leaf.names(), role.names("ns", "svc"));
        }
    }

    #[test]
    fn a_certificate_is_valid_on_a_node_whose_clock_is_an_hour_slow_and_until_its_ca_ends() {
        let ca = ca(NOW).unwrap();
        let leaf = leaf_of(&ca, Role::Puller, NOW).certificate;
        assert!(ca.certificate.issued(&leaf, Role::Puller, NOW - BACKDATE));
        assert!(
            !ca.certificate
                .issued(&leaf, Role::Puller, NOW - BACKDATE - 1)
        );
        assert_eq!(leaf.not_after, NOW + LEAF_LIFE);
        let late = leaf_of(&ca, Role::Puller, NOW + CA_LIFE - DAY).certificate;
        assert_eq!(late.not_after, ca.certificate.not_after);
        assert!(!ca.certificate.issued(&late, Role::Puller, NOW + CA_LIFE));
    }

    #[test]
    fn certificates_are_due_after_two_thirds_of_their_lives() {
        let ca = ca(NOW).unwrap();
        let leaf = leaf_of(&ca, Role::Debug, NOW).certificate;
        assert!(!leaf.is_due_at(NOW + 19 * DAY));
        assert!(leaf.is_due_at(NOW + 20 * DAY));
        assert!(!ca.certificate.is_due_at(NOW + 243 * DAY));
        assert!(ca.certificate.is_due_at(NOW + 244 * DAY));
    }

    #[test]
    fn keys_are_p_256_serial_numbers_random_and_a_ca_signs_leaves_only() {
        let ca = ca(NOW).unwrap();
        let leaves: Vec<_> = (0..2)
            .map(|_| leaf_of(&ca, Role::Puller, NOW).certificate)
            .collect();
        assert_ne!(leaves[0].serial(), leaves[1].serial());
        assert_eq!(leaves[0].serial().len(), 32);
        for certificate in [&ca.certificate, &leaves[0]] {
            let der = pem::parse(&certificate.pem).unwrap();
            let (_, parsed) = X509Certificate::from_der(der.contents()).unwrap();
            let key = parsed.public_key().parsed().unwrap();
            assert_eq!(key.key_size(), 256);
            let is_ca = certificate == &ca.certificate;
            let constraints = parsed.basic_constraints().unwrap();
            let constraints =
                constraints.map(|found| (found.value.ca, found.value.path_len_constraint));
            assert_eq!(constraints, is_ca.then_some((true, Some(0))));
        }
    }
}
