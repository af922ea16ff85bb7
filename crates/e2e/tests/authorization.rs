//! Who may call what on a puller's port: the table of docs/security.md, tried with real certificates.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, sync::Arc};

use kubefledged_e2e::{
    Cluster,
    call::Answer,
    document::{table, words},
    fleet::{OURS, entry},
};
use kubefledged_process::tls::{Identity, identity::provider, names};
use kubefledged_testkit::{Ca, Leaf, Usage, issued_by};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

const FAILURES: &str = "kubefledged_tls_handshake_failures_total";

/// Every method that the puller's port serves, from the descriptors that its reflection shows.
fn served() -> BTreeSet<String> {
    let sets = [
        kubefledged_proto::PULLER_DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let sets = sets.map(|set| FileDescriptorSet::decode(set).unwrap());
    let files = sets.into_iter().flat_map(|set| set.file);
    let methods = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let path = format!("{package}.{}", service.name());
            let methods = service.method.into_iter();
            methods.map(move |method| format!("{path}/{}", method.name()))
        })
    });
    methods.collect()
}

/// Trusts our CA and presents this.
fn client(leaf: &Leaf, trusted: &str) -> Arc<ClientConfig> {
    let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
    let identity = Identity::from_pem(certificate, key, trusted.as_bytes()).unwrap();
    Arc::new(identity.client().unwrap())
}

/// Trusts our CA and presents nothing.
fn nobody(trusted: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        roots.add(ca.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn allowed(cell: &str) -> Answer {
    match cell {
        "yes" | "yes, with a ticket" => Answer::Reached,
        _ => Answer::Refused,
    }
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one row of the table after the other"
)]
fn each_certificate_may_call_what_the_table_says_and_nothing_else() {
    let cluster = Cluster::default();
    let rows = table("docs/security.md", "### What each certificate may call").unwrap();
    let listed: BTreeSet<String> = rows.iter().map(|row| words(&row[0]).concat()).collect();
    assert_eq!(listed, served(), "the table lists every method");

    let stored = |name: &str| {
        let secret = cluster.secret(&format!("kubefledged-{name}-tls")).unwrap();
        let certificate = entry(&secret, "tls.crt").unwrap();
        let key = entry(&secret, "tls.key").unwrap();
        (Leaf { certificate, key }, entry(&secret, "ca.crt").unwrap())
    };
    let (controller, trusted) = stored("controller");
    let foreign = Ca::default().issue(&[&names::controller(OURS)], Usage::Client);
    let strangers = [
        ("nobody", nobody(&trusted)),
        ("the puller", client(&stored("puller").0, &trusted)),
        ("the webhook", client(&stored("webhook-server").0, &trusted)),
        ("a foreign CA", client(&foreign, &trusted)),
    ];
    let controller = client(&controller, &trusted);
    let debug = client(&stored("debug").0, &trusted);
    let ca = cluster.secret("kubefledged-ca").unwrap();
    let ca = (
        entry(&ca, "tls.crt").unwrap(),
        entry(&ca, "tls.key").unwrap(),
    );
    let peer = issued_by(
        (&ca.0, &ca.1),
        &[&names::peer(OURS, "another")],
        Usage::Client,
    );
    let peer = client(&peer, &trusted);

    let pullers = cluster.pods("puller").unwrap();
    let before = cluster.metric(&pullers[0], 8082, FAILURES).unwrap();
    let puller = cluster.reach(&pullers[0]).unwrap();
    for row in &rows {
        let method = words(&row[0]).concat();
        let answer = puller.call(&controller, &method).unwrap();
        assert_eq!(answer, allowed(&row[1]), "controller: {method}");
        let answer = puller.call(&debug, &method).unwrap();
        assert_eq!(answer, allowed(&row[2]), "debug: {method}");
        let answer = puller.call(&peer, &method).unwrap();
        assert_eq!(answer, allowed(&row[3]), "another puller: {method}");
        for (who, client) in &strangers {
            let answer = puller.call(client, &method).unwrap();
            assert_eq!(answer, Answer::NoConnection, "{who}: {method}");
        }
    }
    let unknown = "kubefledged.puller.v1.PullerService/Format";
    let answer = puller.call(&controller, unknown).unwrap();
    assert_eq!(answer, Answer::Refused);

    let after = cluster.metric(&pullers[0], 8082, FAILURES).unwrap();
    let rose = |reason: &str| {
        let series = format!("reason=\"{reason}\"");
        let count = |metric: &std::collections::BTreeMap<String, f64>| {
            metric.get(&series).copied().unwrap_or(0.0)
        };
        count(&after) - count(&before)
    };
    let calls = f64::from(u32::try_from(rows.len()).unwrap());
    for (reason, strangers) in [
        ("no_certificate", 1.0),
        ("wrong_usage", 2.0),
        ("unknown_issuer", 1.0),
    ] {
        assert!(rose(reason) >= strangers * calls, "{reason}: {after:?}");
    }
}
