//! What a failed pull means: one table from the runtime's words to ours. Runtimes give hardly any
//! usable code (containerd's NotFound is the exception), so text decides.

use kubefledged_api_types::names::failure;

use crate::CallError;

/// What may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing that this node could do: the controller decides when to try again.
    None,
    /// Another credential.
    NextCredential,
    /// The same call once more: it concerned this node only.
    Repeat,
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

const TABLE: &[(&[&str], &str, Remedy)] = &[
    (
        &["no space left on device", "disk quota exceeded"],
        failure::DISK_PRESSURE,
        Remedy::None,
    ),
    (
        &["429", "toomanyrequests", "too many requests", "rate limit"],
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
            "401 unauthorized",
            "403 forbidden",
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
            "no match for platform",
            "no image found in manifest list for architecture",
            "no child with platform",
        ],
        failure::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    (
        &["signaturevalidationfailed"],
        failure::SIGNATURE_VALIDATION_FAILED,
        Remedy::None,
    ),
    (
        &[
            "registryunavailable",
            "connection refused",
            "no such host",
            "i/o timeout",
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
        ],
        failure::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        &[
            "manifest unknown",
            "name unknown",
            "not found",
            "did not resolve to an alias",
        ],
        failure::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        &[
            "context canceled",
            "connection reset by peer",
            "unexpected eof",
        ],
        failure::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
];

/// In our words.
pub fn classify(error: &CallError) -> Class {
    match error.code.as_str() {
        "NotFound" => {
            return Class {
                reason: failure::IMAGE_NOT_FOUND,
                remedy: Remedy::None,
            };
        }
        "Cancelled" => {
            return Class {
                reason: failure::CANCELLED,
                remedy: Remedy::Repeat,
            };
        }
        // The runtime's socket does not answer.
        "Unavailable" => {
            return Class {
                reason: failure::RUNTIME_UNAVAILABLE,
                remedy: Remedy::Repeat,
            };
        }
        _ => {}
    }
    let text = error.message.to_lowercase();
    TABLE
        .iter()
        .find(|(words, ..)| words.iter().any(|word| text.contains(word)))
        .map_or(
            Class {
                reason: failure::ERR_IMAGE_PULL,
                remedy: Remedy::None,
            },
            |(_, reason, remedy)| Class {
                reason,
                remedy: *remedy,
            },
        )
}

/// At most [`MOST_MESSAGE`] bytes of a message.
pub fn cut(message: &str) -> String {
    let mut end = message.len().min(MOST_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
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
        assert_eq!(remedy("Cancelled", "context canceled"), Remedy::Repeat);
        assert_eq!(
            remedy("Unavailable", "connect: no such file"),
            Remedy::Repeat
        );
        assert_eq!(remedy("Unknown", "connection refused"), Remedy::None);
    }
}
