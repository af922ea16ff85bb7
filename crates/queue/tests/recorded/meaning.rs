//! What is wrong in each recorded case, and what that means for a pull.

use kubefledged_api_types::names::failure as f;
use kubefledged_queue::Remedy;

/// By what was wrong, whatever the runtime.
pub const MEANING: &[(&str, &str, Remedy)] = &[
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
pub fn meaning(case: &str) -> Option<(&'static str, Remedy)> {
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
