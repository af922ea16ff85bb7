//! What real runtimes said to pulls that failed, recorded by hack/record-pull-errors, and what it
//! means.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;

use kubefledged_api_types::names::failure as f;
use kubefledged_queue::{CallError, Class, Remedy, classify};
use serde_json::Value;

const RECORDED: &str = include_str!("../testdata/pull-errors.json");

/// By what was wrong, whatever the runtime.
const MEANING: &[(&str, &str, Remedy)] = &[
    ("unknown tag", f::IMAGE_NOT_FOUND, Remedy::None),
    ("unknown repository", f::IMAGE_NOT_FOUND, Remedy::None),
    ("unknown digest", f::IMAGE_NOT_FOUND, Remedy::None),
    ("connection refused", f::REGISTRY_UNAVAILABLE, Remedy::None),
    (
        "name does not resolve",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    ("upper case", f::INVALID_IMAGE_NAME, Remedy::None),
    ("bad reference", f::INVALID_IMAGE_NAME, Remedy::None),
    ("no credentials", f::UNAUTHORIZED, Remedy::NextCredential),
    ("wrong credentials", f::UNAUTHORIZED, Remedy::NextCredential),
    (
        "status 403 for the manifest",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "status 403 for a blob",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "status 403 from a proxy",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "status 404 for the manifest",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    ("status 404 for a blob", f::IMAGE_NOT_FOUND, Remedy::None),
    ("status 429 for the manifest", f::RATE_LIMITED, Remedy::None),
    ("status 429 for a blob", f::RATE_LIMITED, Remedy::None),
    ("status 429 from a proxy", f::RATE_LIMITED, Remedy::None),
    (
        "status 500 for the manifest",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 500 for a blob",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 502 for the manifest",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 502 for a blob",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 503 for the manifest",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 503 for a blob",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "status 503 from a proxy",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "token refused, no credentials",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "token refused, with credentials",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "token refused, wrong credentials",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "no image for this platform",
        f::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    ("blob cut off", f::ERR_IMAGE_PULL, Remedy::Repeat),
    ("corrupt blob", f::ERR_IMAGE_PULL, Remedy::None),
    (
        "connection reset at once",
        f::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
    (
        "connection reset in a blob",
        f::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
    ("disk of 100M full", f::DISK_PRESSURE, Remedy::None),
    ("disk of 450M full", f::DISK_PRESSURE, Remedy::None),
];

fn recorded() -> Vec<Value> {
    serde_json::from_str(RECORDED).unwrap()
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap()
}

#[test]
fn every_recorded_answer_means_what_was_wrong() {
    let mut seen = BTreeSet::new();
    for record in recorded() {
        let case = text(&record, "case");
        let (_, reason, remedy) = *MEANING
            .iter()
            .find(|(name, ..)| *name == case)
            .unwrap_or_else(|| panic!("nobody says what {case:?} means"));
        let class = classify(&CallError {
            code: text(&record, "code").to_owned(),
            message: text(&record, "message").to_owned(),
        });
        assert_eq!(class, Class { reason, remedy }, "{record}");
        seen.insert((case.to_owned(), text(&record, "runtime").to_owned()));
    }
    for (case, ..) in MEANING {
        assert!(
            seen.iter().any(|(name, _)| name == case),
            "{case} is not recorded"
        );
    }
}

#[test]
fn three_runtimes_were_recorded() {
    let records = recorded();
    let runtimes: BTreeSet<&str> = records
        .iter()
        .map(|record| text(record, "runtime"))
        .collect();
    assert_eq!(
        runtimes.into_iter().collect::<Vec<_>>(),
        [
            "containerd://1.6.20",
            "containerd://2.2.9",
            "cri-o://1.34.0"
        ]
    );
}

/// What Docker's documentation and sources say, through cri-dockerd, which adds a code only of its
/// own making: Unknown.
const DOCKER: &[(&str, &str, Remedy)] = &[
    (
        "Error response from daemon: manifest for registry.test/web:9.9 not found: manifest unknown: manifest unknown",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        // It cannot tell what does not exist from what is hidden.
        "Error response from daemon: pull access denied for registry.test/none, repository does not exist or may require 'docker login'",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Error response from daemon: Head \"https://private.test/v2/secret/manifests/1.0\": no basic auth credentials",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Error response from daemon: Head \"https://private.test/v2/secret/manifests/1.0\": unauthorized: authentication required",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Error response from daemon: toomanyrequests: You have reached your pull rate limit.",
        f::RATE_LIMITED,
        Remedy::None,
    ),
    (
        "Error response from daemon: Get \"https://down.test/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Error response from daemon: Get \"https://nohost.test/v2/\": dial tcp: lookup nohost.test on 10.0.0.1:53: no such host",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Error response from daemon: Get \"https://slow.test/v2/\": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "RegistryUnavailable: Error response from daemon: received unexpected HTTP status: 503 Service Unavailable",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Error response from daemon: received unexpected HTTP status: 500 Internal Server Error",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Error response from daemon: no matching manifest for linux/amd64 in the manifest list entries",
        f::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    (
        "Error response from daemon: image with reference registry.test/web:1 was found but its platform (linux/s390x) does not match the specified platform (linux/amd64)",
        f::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    (
        "failed to register layer: write /data: no space left on device",
        f::DISK_PRESSURE,
        Remedy::None,
    ),
    (
        "filesystem layer verification failed for digest sha256:00",
        f::ERR_IMAGE_PULL,
        Remedy::None,
    ),
    (
        "read tcp 10.0.0.2:41292->10.0.0.1:443: read: connection reset by peer",
        f::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
    (
        "Error response from daemon: invalid reference format: repository name must be lowercase",
        f::INVALID_IMAGE_NAME,
        Remedy::None,
    ),
    (
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        f::RUNTIME_UNAVAILABLE,
        Remedy::Repeat,
    ),
];

#[test]
fn what_docker_is_documented_to_say_means_what_was_wrong() {
    for (message, reason, remedy) in DOCKER {
        let class = classify(&CallError {
            code: "Unknown".to_owned(),
            message: (*message).to_owned(),
        });
        let (reason, remedy) = (*reason, *remedy);
        assert_eq!(class, Class { reason, remedy }, "{message}");
    }
}
