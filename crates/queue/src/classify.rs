//! What a failed pull means: one table from the runtime's words to ours. Runtimes give hardly any
//! usable code (containerd's `NotFound` is the exception), so text decides.

use kubefledged_api_types::{names::failure, one_line};

use crate::CallError;

/// What may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing that this node could do: the controller decides when to try again.
    None,
    /// Another credential.
    NextCredential,
    /// The same call once more, after a pause: it concerned this node only.
    Repeat,
    /// The same call once more: the runtime dropped it, and nobody here had asked for that.
    RepeatAtOnce,
}

/// A failed call in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// One word of `names::failure`.
    pub reason: &'static str,
    /// What may help.
    pub remedy: Remedy,
}

/// Longest message that is passed on, in bytes.
pub const MOST_MESSAGE: usize = 1024;

/// Whatever fits first holds, in any letter case. The order is part of the table: what a registry
/// says is quoted inside what the runtime says about it, and "not found" ends half of all messages.
const TABLE: &[(&[&str], &str, Remedy)] = &[
    (
        &["no space left on device", "disk quota exceeded"],
        failure::DISK_PRESSURE,
        Remedy::None,
    ),
    (
        // cri-dockerd answers, and Docker behind it does not.
        &["cannot connect to the docker daemon"],
        failure::RUNTIME_UNAVAILABLE,
        Remedy::Repeat,
    ),
    (
        // No bare 429: digests and ports have those digits too.
        &[
            "429 too many requests",
            "too many requests",
            "toomanyrequests",
            "rate limit",
            "statuscode: 429",
        ],
        failure::RATE_LIMITED,
        Remedy::None,
    ),
    (
        &[
            "invalid reference format",
            "cannot parse input",
            "failed to parse image reference",
            "must be lowercase",
        ],
        failure::INVALID_IMAGE_NAME,
        Remedy::None,
    ),
    (
        &[
            "no match for platform",
            "no matching manifest",
            "no image found in manifest list for architecture",
            "no image found in image index for architecture",
            "no child with platform",
            "does not match the specified platform",
        ],
        failure::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    (
        &["signaturevalidationfailed", "signature validation failed"],
        failure::SIGNATURE_VALIDATION_FAILED,
        Remedy::None,
    ),
    (
        &[
            "registryunavailable",
            "connection refused",
            "no such host",
            "i/o timeout",
            "client.timeout exceeded",
            "no route to host",
            "tls handshake timeout",
            "tls: ",
            "x509: ",
            "502 bad gateway",
            "503 service unavailable",
            "504 gateway timeout",
            "500 internal server error",
            "network is unreachable",
            "server misbehaving",
            "server gave http response to https client",
        ],
        failure::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        &["connection reset by peer", "unexpected eof"],
        failure::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
    (
        &[
            "401 unauthorized",
            "403 forbidden",
            // CRI-O, where a proxy before the registry answers with a page instead of an error.
            "statuscode: 401",
            "statuscode: 403",
            "pull access denied",
            "authentication required",
            "no basic auth credentials",
            "unauthorized",
            "authorization failed",
            "insufficient_scope",
            "denied:",
        ],
        failure::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        &[
            "manifest unknown",
            "name unknown",
            ": not found",
            "did not resolve to an alias",
        ],
        failure::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        &["context canceled"],
        failure::ERR_IMAGE_PULL,
        Remedy::RepeatAtOnce,
    ),
];

/// In our words.
pub fn classify(error: &CallError) -> Class {
    let text = error.message.to_lowercase();
    let told = TABLE
        .iter()
        .find(|(words, ..)| words.iter().any(|word| text.contains(word)))
        .map(|(_, reason, remedy)| (*reason, *remedy));
    let (reason, remedy) = match (error.code.as_str(), told) {
        // Whatever was under way in the runtime, nobody waits for it any more.
        ("Cancelled", _) => (failure::ERR_IMAGE_PULL, Remedy::RepeatAtOnce),
        // The socket, not the registry: connecting to it is refused with the same words.
        ("Unavailable", Some((_, Remedy::None))) if text.contains("failed to ") => told_or(told),
        ("Unavailable", _) => (failure::RUNTIME_UNAVAILABLE, Remedy::Repeat),
        ("NotFound", None) => (failure::IMAGE_NOT_FOUND, Remedy::None),
        ("DeadlineExceeded", None) => (failure::DEADLINE_EXCEEDED, Remedy::None),
        ("Unauthenticated" | "PermissionDenied", None) => {
            (failure::UNAUTHORIZED, Remedy::NextCredential)
        }
        _ => told_or(told),
    };
    Class { reason, remedy }
}

fn told_or(told: Option<(&'static str, Remedy)>) -> (&'static str, Remedy) {
    told.unwrap_or((failure::ERR_IMAGE_PULL, Remedy::None))
}

/// A message that may be passed on: one line of at most [`MOST_MESSAGE`] bytes, and without the query of a
/// URL, where blob stores put the signature that opens the blob.
pub fn tidy(message: &str) -> String {
    let mut clean = String::with_capacity(message.len().min(MOST_MESSAGE));
    let mut rest = message;
    while let Some(at) = rest.find("://") {
        let end = rest[at..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>'))
            .map_or(rest.len(), |end| at + end);
        let (url, after) = rest.split_at(end);
        match url[at..].find('?') {
            Some(query) => {
                clean.push_str(&url[..=at + query]);
                clean.push_str("...");
            }
            None => clean.push_str(url),
        }
        rest = after;
    }
    clean.push_str(rest);
    one_line(&clean, MOST_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_messages_of_runtimes_mean_what_they_mean() {
        use failure as f;
        for (code, message, reason) in [
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
                f::IMAGE_NOT_FOUND,
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
        ] {
            let error = CallError {
                code: code.to_owned(),
                message: message.to_owned(),
            };
            assert_eq!(classify(&error).reason, reason, "{message}");
        }
    }

    #[test]
    fn only_a_refusal_calls_for_another_credential_and_only_local_trouble_for_a_repeat() {
        let remedy = |code: &str, message: &str| {
            classify(&CallError {
                code: code.to_owned(),
                message: message.to_owned(),
            })
            .remedy
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
        let told =
            tidy("Get \"https://blobs.test/x?X-Amz-Signature=secret&a=1\": EOF, see http://h/?");
        assert_eq!(
            told,
            "Get \"https://blobs.test/x?...\": EOF, see http://h/?..."
        );
        let long = tidy(&"ä".repeat(MOST_MESSAGE));
        assert_eq!(long.len(), MOST_MESSAGE);
        assert_eq!(tidy(&format!("x{long}")).len(), MOST_MESSAGE - 1);
    }
}
