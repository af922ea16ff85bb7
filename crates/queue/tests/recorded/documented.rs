//! Messages that were not recorded: from the documentation and the sources of runtimes and registries.

use kubefledged_api_types::names::failure as f;
use kubefledged_queue::{CallError, Remedy, classify};

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
        assert_eq!((class.reason, class.remedy), (reason, remedy), "{message}");
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
            let class = classify(&error, name);
            assert_eq!((class.reason, class.remedy), (reason, remedy), "{message}");
        }
    }
}
