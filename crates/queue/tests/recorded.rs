//! What real runtimes said to pulls that failed, recorded by hack/record-pull-errors, and what it
//! means.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;

use kubefledged_api_types::names::failure as f;
use kubefledged_image::ImageRef;
use kubefledged_queue::{CallError, Class, Remedy, classify};
use proptest::prelude::*;
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
    ("status 404 for a blob", f::BLOB_NOT_FOUND, Remedy::None),
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

/// Also of the words of a kind of registry: `dockerhub: denied`.
fn meaning(case: &str) -> Option<(&'static str, Remedy)> {
    match case.split_once(": ") {
        Some((_, "denied")) => Some((f::UNAUTHORIZED, Remedy::NextCredential)),
        Some((_, "missing")) => Some((f::IMAGE_NOT_FOUND, Remedy::None)),
        Some((_, "throttled")) => Some((f::RATE_LIMITED, Remedy::None)),
        _ => MEANING
            .iter()
            .find(|(name, ..)| *name == case)
            .map(|(_, reason, remedy)| (*reason, *remedy)),
    }
}

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
        let (reason, remedy) =
            meaning(case).unwrap_or_else(|| panic!("nobody says what {case:?} means"));
        let error = CallError {
            code: text(&record, "code").to_owned(),
            message: text(&record, "message").to_owned(),
        };
        let class = classify(&error, name(&error.message));
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

/// What hack/record-pull-errors asked for.
const NAMES: [&str; 9] = [
    "registry.test:5000/demo/web@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "registry.test:5000/demo/web:9.9",
    "registry.test:5000/demo/none:1.0",
    "registry.test:5000/bench/big:1.0",
    "private.test:5001/demo/secret:1.0",
    "down.test:5002/a:1",
    "nohost.test/a:1",
    "registry.test:5000/UPPER/case:1",
    "faulty.test:5003/demo/web:1.0",
];

/// The name that a recorded message is about.
fn name(message: &str) -> &'static str {
    let registry = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    let whole = NAMES.iter().find(|name| message.contains(**name));
    let near = NAMES.iter().find(|name| message.contains(&registry(name)));
    whole
        .or(near)
        .copied()
        .unwrap_or("faulty.test:5003/demo/web:1.0")
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

/// The same message about another image.
fn respelled(message: &str, old: &ImageRef, new: &ImageRef) -> String {
    let part = |image: &ImageRef| {
        let tag = image
            .digest()
            .or(image.tag())
            .unwrap_or("latest")
            .to_owned();
        (format!("{}/{}", image.registry(), image.repository()), tag)
    };
    let ((old_name, old_tag), (new_name, new_tag)) = (part(old), part(new));
    let (old_path, new_path) = (old.repository(), new.repository());
    let escaped = |path: &str| path.replace('/', "%2F");
    message
        .replace(&old.to_string(), &new.runtime_name())
        .replace(
            &format!("manifest {old_tag} in"),
            &format!("manifest {new_tag} in"),
        )
        .replace(
            &format!("[manifests {old_tag}]"),
            &format!("[manifests {new_tag}]"),
        )
        .replace(
            &format!("/manifests/{old_tag}"),
            &format!("/manifests/{new_tag}"),
        )
        .replace(&old_name, &new_name)
        .replace(&format!("/v2/{old_path}/"), &format!("/v2/{new_path}/"))
        .replace(&escaped(old_path), &escaped(new_path))
        .replace(old.registry(), new.registry())
}

/// A word of the table as a part of a name, or any.
fn word() -> BoxedStrategy<String> {
    let evil = prop::sample::select(vec![
        "toomanyrequests",
        "toomanyrequests-1",
        "unauthorized",
        "denied",
        "not",
        "found",
        "not-found",
        "unknown",
        "manifest",
        "manifest-unknown",
        "eof",
        "tls",
        "x509",
        "429",
        "503",
        "401",
        "404",
        "rate-limit",
        "for",
        "locked",
        "lease",
        "registryunavailable",
        "no-such-host",
        "status",
        "refused",
        "canceled",
        "blobs",
        "manifests",
        "latest",
        "context",
        "ref",
        "image",
        "http",
        "failed",
    ]);
    let any = proptest::string::string_regex("[a-z0-9]{1,9}").unwrap();
    prop_oneof![3 => evil.prop_map(str::to_owned), 1 => any].boxed()
}

fn reference() -> impl Strategy<Value = ImageRef> {
    let host = prop_oneof![
        Just(String::new()),
        word().prop_map(|word| format!("{word}.test/")),
        (word(), 1_u16..999).prop_map(|(word, port)| format!("{word}:{port}/")),
        word().prop_map(|word| format!("429.{word}/")),
    ];
    let end = prop_oneof![
        Just(String::new()),
        word().prop_map(|word| format!(":{word}")),
        word().prop_map(|word| format!(":{}", word.to_uppercase())),
        proptest::string::string_regex("@sha256:[0-9a-f]{64}").unwrap(),
    ];
    let path = proptest::collection::vec(word(), 1..4).prop_map(|words| words.join("/"));
    (host, path, end).prop_filter_map("is a reference", |(host, path, end)| {
        ImageRef::parse(&format!("{host}{path}{end}")).ok()
    })
}

proptest! {
    /// Whoever may write an image cache chooses names; the budget of a registry hangs on the class.
    #[test]
    fn no_reference_changes_the_class_of_a_recorded_error(new in reference()) {
        for record in recorded() {
            let message = text(&record, "message");
            let Ok(old) = ImageRef::parse(name(message)) else { continue };
            let error = |message: &str| CallError {
                code: text(&record, "code").to_owned(),
                message: message.to_owned(),
            };
            let expected = classify(&error(message), &old.to_string());
            let other = respelled(message, &old, &new);
            prop_assert_eq!(classify(&error(&other), &new.runtime_name()), expected, "{}", other);
        }
    }
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
        let error = CallError {
            code: "Unknown".to_owned(),
            message: (*message).to_owned(),
        };
        let class = classify(&error, "registry.test/web:1");
        let (reason, remedy) = (*reason, *remedy);
        assert_eq!(class, Class { reason, remedy }, "{message}");
    }
}

/// Texts of the sources of containerd 2.4, CRI-O 1.34 (with the default words of docker/distribution)
/// and of registries that are not in testdata: code, message, meaning.
const SOURCES: &[(&str, &str, &str, Remedy)] = &[
    (
        "Unknown",
        "unable to try pulling possible OCI artifact: build image source: reading manifest 1 in docker.io/team/app: requested access to the resource is denied",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Unknown",
        "build image source: reading manifest 1 in docker.io/team/app: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required\n",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Unknown",
        "build image source: reading manifest 1 in r.test/team/app: repository name not known to registry",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        "Unknown",
        "parsing image configuration: fetching blob: blob unknown to registry",
        f::BLOB_NOT_FOUND,
        Remedy::None,
    ),
    (
        "Unknown",
        "build image source: reading manifest 1 in r.test/p/a: unknown: artifact p/a:1 not found",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        "Unknown",
        "build image source: (Mirrors also failed: [m.test/team/app:1: pinging container registry m.test: Get \"https://m.test/v2/\": dial tcp 10.0.0.1:443: connect: connection refused]): r.test/team/app:1: reading manifest 1 in r.test/team/app: authentication required",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Unknown",
        "failed to pull and unpack image \"r.test/a:1\": failed to resolve image: unexpected status from HEAD request to https://r.test/v2/a/manifests/1: 503 Service Temporarily Unavailable",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Unknown",
        "build image source: pinging container registry r.test: received unexpected HTTP status: 504 Gateway Time-out",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Unknown",
        "failed to pull and unpack image \"r.test/a:1\": failed to copy: httpReadSeeker: failed open: failed to do request: Get \"https://r.test/v2/a/blobs/sha256:00\": net/http: timeout awaiting response headers",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Unknown",
        "failed to pull and unpack image \"r.test/a:1\": failed to resolve image: failed to do request: Head \"https://r.test/v2/a/manifests/1\": Proxy Authentication Required",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Unknown",
        "failed to do request: Head \"https://r.test/v2/a/manifests/1\": Forbidden",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"r.test/a:1\": failed to extract layer sha256:00: missing parent \"k8s.io/12/sha256:00\" bucket: not found",
        f::IMAGE_STORE_BROKEN,
        Remedy::Repeat,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"r.test/a:1\": failed to prepare extraction snapshot \"extract-1 sha256:00\": parent snapshot sha256:00 does not exist: not found",
        f::IMAGE_STORE_BROKEN,
        Remedy::Repeat,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"r.test/a:1\": content digest sha256:00: not found",
        f::IMAGE_STORE_BROKEN,
        Remedy::Repeat,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"r.test/a:1\": lease does not exist: not found",
        f::IMAGE_STORE_BROKEN,
        Remedy::Repeat,
    ),
    (
        "Unknown",
        "failed to pull and unpack image \"r.test/a:1\": image verifier signatures blocked pull of r.test/a:1 with digest sha256:00 for reason: no signature",
        f::SIGNATURE_VALIDATION_FAILED,
        Remedy::None,
    ),
    (
        "Unavailable",
        "failed to pull and unpack image \"r.test/a:1\": failed to copy: failed to open writer: ref layer-sha256:00 locked for 14.1s (since 2026-11-28): unavailable",
        f::ERR_IMAGE_PULL,
        Remedy::RepeatAtOnce,
    ),
    (
        "Unknown",
        "failed to pull and unpack image \"r.test/a:1\": failed to resolve image: failed to authorize: failed to fetch anonymous token: authorization server did not include a token in the response",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"r.test/team/unauthorized:1\": failed to resolve image: r.test/team/unauthorized:1: not found",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        "Cancelled",
        "failed to pull and unpack image \"r.test/a:1\": context canceled",
        f::NO_PROGRESS,
        Remedy::RepeatAtOnce,
    ),
    (
        "Unknown",
        "writing blob: storing blob to file \"/var/tmp/storage/1\": happened during read: context canceled",
        f::NO_PROGRESS,
        Remedy::RepeatAtOnce,
    ),
    (
        "Unknown",
        "short-name \"app1:1.0\" did not resolve to an alias and no unqualified-search registries are defined in \"/etc/containers/registries.conf\"",
        f::SHORT_NAME_REFUSED,
        Remedy::None,
    ),
    (
        "Unknown",
        "short name mode is enforcing, but image name app:1 returns ambiguous list",
        f::SHORT_NAME_REFUSED,
        Remedy::None,
    ),
    (
        "Unknown",
        "failed to resolve image: media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported since containerd v2.1, please rebuild the image as \"application/vnd.oci.image.manifest.v1+json\"",
        f::UNSUPPORTED_MANIFEST,
        Remedy::None,
    ),
    (
        "Unknown",
        "Error response from daemon: manifest for unauthorized:latest not found: manifest unknown: manifest unknown",
        f::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        "Unknown",
        "build image source: reading manifest latest in r.test/a: denied: Permission \"artifactregistry.repositories.downloadArtifacts\" denied on resource \"projects/p\" (or it may not exist)",
        f::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        "Unknown",
        "build image source: reading manifest 1 in r.test/a: toomanyrequests: Rate exceeded",
        f::RATE_LIMITED,
        Remedy::None,
    ),
    (
        "Unknown",
        "unexpected status from HEAD request to https://r.test/v2/a/manifests/1: 407 Proxy Authentication Required",
        f::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        "Unknown",
        "something that nobody has seen before",
        f::ERR_IMAGE_PULL,
        Remedy::None,
    ),
];

#[test]
fn what_sources_say_means_what_was_wrong() {
    for (code, message, reason, remedy) in SOURCES {
        let error = CallError {
            code: (*code).to_owned(),
            message: (*message).to_owned(),
        };
        let (reason, remedy) = (*reason, *remedy);
        for name in [
            "r.test/a:1",
            "docker.io/team/app:1",
            "r.test/team/unauthorized:1",
        ] {
            assert_eq!(
                classify(&error, name),
                Class { reason, remedy },
                "{message}"
            );
        }
    }
}
