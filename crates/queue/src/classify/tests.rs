use super::{failure as f, *};

const NAME: &str = "registry.test:5000/demo/web:9.9";

/// Messages of runtimes: code, text, reason.
const MESSAGES: &[(&str, &str, &str)] = &[
    (
        "NotFound",
        "failed to pull and unpack image \"X\": failed to resolve reference \"X\": X: not found",
        f::IMAGE_NOT_FOUND,
    ),
    (
        "Unknown",
        "unable to try pulling possible OCI artifact: build image source: reading manifest 9.9 in registry.test:5000/bench/app1: manifest unknown",
        f::IMAGE_NOT_FOUND,
    ),
    (
        "Unknown",
        "failed to resolve reference \"X\": failed to do request: Head \"http://10.77.0.1:5002/v2/a/manifests/1?ns=down.test%3A5002\": dial tcp 10.77.0.1:5002: connect: connection refused",
        f::REGISTRY_UNAVAILABLE,
    ),
    (
        "Unknown",
        "RegistryUnavailable: unable to try pulling possible OCI artifact: pinging container registry down.test:5002: Get \"http://down.test:5002/v2/\": dial tcp 10.77.0.1:5002: connect: connection refused",
        f::REGISTRY_UNAVAILABLE,
    ),
    (
        "Unknown",
        "failed to parse image reference \"X\": invalid reference format: repository name must be lowercase",
        f::INVALID_IMAGE_NAME,
    ),
    (
        "Unknown",
        "cannot parse input: \"X\": invalid reference format",
        f::INVALID_IMAGE_NAME,
    ),
    (
        "Unknown",
        "pulling from host 10.77.0.1:5001 failed with status code [manifests 1.0]: 401 Unauthorized",
        f::UNAUTHORIZED,
    ),
    (
        "Unknown",
        "failed to resolve image: pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials",
        f::UNAUTHORIZED,
    ),
    (
        "Unknown",
        "build image source: reading manifest 1.0 in private.test:5001/sec1: authentication required",
        f::UNAUTHORIZED,
    ),
    (
        "Unknown",
        "dial tcp: lookup nohost.test on 10.0.0.1:53: i/o timeout",
        f::REGISTRY_UNAVAILABLE,
    ),
    (
        "Unknown",
        "short-name \"app1:1.0\" did not resolve to an alias and no unqualified-search registries are defined",
        f::SHORT_NAME_REFUSED,
    ),
    (
        "Unknown",
        "write /var/lib/x: no space left on device",
        f::DISK_PRESSURE,
    ),
    (
        "Unknown",
        "RegistryUnavailable: build image source: pinging container registry nohost.test: dial tcp: lookup nohost.test on 10.0.0.1:53: i/o timeout",
        f::REGISTRY_UNAVAILABLE,
    ),
    (
        "NotFound",
        "failed to pull and unpack image \"X\": no match for platform in manifest sha256:0429: not found",
        f::PLATFORM_MISMATCH,
    ),
    (
        "Unknown",
        "toomanyrequests: You have reached your pull rate limit",
        f::RATE_LIMITED,
    ),
    (
        "Unavailable",
        "failed to pull and unpack image \"X\": failed to resolve reference \"X\": unexpected status: 503 Service Unavailable",
        f::REGISTRY_UNAVAILABLE,
    ),
    (
        "Unavailable",
        "tcp connect error: Connection refused (os error 111)",
        f::RUNTIME_UNAVAILABLE,
    ),
    (
        "Unknown",
        "failed to copy: sha256:4290 from 10.0.0.1:4290 is broken",
        f::ERR_IMAGE_PULL,
    ),
    ("Unknown", "something else", f::ERR_IMAGE_PULL),
];

#[test]
fn recorded_messages_of_runtimes_mean_what_they_mean() {
    for (code, message, reason) in MESSAGES {
        let error = CallError {
            code: (*code).to_owned(),
            message: (*message).to_owned(),
        };
        assert_eq!(classify(&error, NAME).reason, *reason, "{message}");
    }
}

#[test]
fn only_a_refusal_calls_for_another_credential_and_only_local_trouble_for_a_repeat() {
    let remedy = |code: &str, message: &str| {
        let error = CallError {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        classify(&error, NAME).remedy
    };
    assert_eq!(
        remedy("Unknown", "401 Unauthorized"),
        Remedy::NextCredential
    );
    assert_eq!(remedy("Unknown", "429 Too Many Requests"), Remedy::None);
    assert_eq!(
        remedy("Cancelled", "context canceled"),
        Remedy::RepeatAtOnce
    );
    assert_eq!(
        remedy("Unknown", "read: connection reset by peer"),
        Remedy::Repeat
    );
    assert_eq!(
        remedy("Unavailable", "connect: no such file"),
        Remedy::Repeat
    );
    assert_eq!(remedy("Unknown", "connection refused"), Remedy::None);
}

#[test]
fn a_message_is_passed_on_without_signatures_and_not_too_long() {
    let message =
        tidy("Get \"https://blobs.test/x?X-Amz-Signature=secret&a=1\": EOF, see http://h/?");
    assert_eq!(
        message,
        "Get \"https://blobs.test/x?...\": EOF, see http://h/?..."
    );
    let long = tidy(&"ä".repeat(MOST_MESSAGE));
    assert_eq!(long.len(), MOST_MESSAGE);
    assert_eq!(tidy(&format!("x{long}")).len(), MOST_MESSAGE - 1);
}
