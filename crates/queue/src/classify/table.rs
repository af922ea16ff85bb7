//! The table from what runtimes and registries say to what it means.

use kubefledged_api_types::names::failure;

use super::{
    Remedy,
    text::{BLOB_URL, Text},
};

/// What containerd 1.6 says of an artifact.
pub const REFUSED_ARTIFACT: &str = "mismatched image rootfs and manifest layers";

/// How a segment of a message must be.
#[derive(Clone, Copy)]
enum Says {
    Is(&'static str),
    Begins(&'static str),
    Ends(&'static str),
    /// Words that no name stands between.
    Has(&'static str),
    /// A name stands between.
    Both(&'static str, &'static str),
    /// The HTTP status, wherever the text has it.
    Status(u16, u16),
    /// What a proxy answers when it is asked for a connection: Go reports its phrase without its
    /// number.
    Proxy,
}
use Says::{Begins, Both, Ends, Has, Is, Proxy, Status};

/// Phrases of HTTP statuses with which proxies refuse a connection.
const REFUSALS: [&str; 6] = [
    "proxy authentication required",
    "forbidden",
    "bad gateway",
    "service unavailable",
    "gateway timeout",
    "gateway time-out",
];

type Row = (&'static [Says], &'static str, Remedy);

/// What fits first holds. The order is part of the table: what a registry says stands inside what
/// the runtime says about it, and "not found" ends half of all messages.
const TABLE: &[Row] = &[
    (
        &[Has("no space left on device"), Has("disk quota exceeded")],
        failure::DISK_PRESSURE,
        Remedy::None,
    ),
    (
        // cri-dockerd answers, and Docker behind it does not.
        &[Has("cannot connect to the docker daemon")],
        failure::RUNTIME_UNAVAILABLE,
        Remedy::Repeat,
    ),
    (
        // containerd's own store, under the code NotFound: no registry was asked.
        &[
            Both("missing parent ", " bucket"),
            Both("parent snapshot ", " does not exist"),
            Begins("content digest sha"),
            Is("lease does not exist"),
            Both("lease ", " does not exist"),
        ],
        failure::IMAGE_STORE_BROKEN,
        Remedy::Repeat,
    ),
    (
        // Another pull of containerd fetches the same layer.
        &[Both("ref ", " locked for ")],
        failure::ERR_IMAGE_PULL,
        Remedy::RepeatAtOnce,
    ),
    (
        &[
            Begins("invalid reference format"),
            Is("cannot parse input"),
            Begins("failed to parse image reference"),
            Both("repository name", "must be lowercase"),
            Begins("repository name must have at least one component"),
        ],
        failure::INVALID_IMAGE_NAME,
        Remedy::None,
    ),
    (
        &[
            Has("no match for platform"),
            Begins("no matching manifest"),
            Begins("no image found in manifest list for architecture"),
            Begins("no image found in image index for architecture"),
            Begins("no child with platform"),
            Has("does not match the specified platform"),
        ],
        failure::PLATFORM_MISMATCH,
        Remedy::None,
    ),
    (
        &[
            Is("signaturevalidationfailed"),
            Begins("signature validation failed"),
            Begins("source image rejected"),
            Both("image verifier ", " blocked pull of "),
        ],
        failure::SIGNATURE_VALIDATION_FAILED,
        Remedy::None,
    ),
    (
        &[
            Has("did not resolve to an alias"),
            Begins("short name mode is enforcing"),
            Begins("short-name resolution enforced"),
        ],
        failure::SHORT_NAME_REFUSED,
        Remedy::None,
    ),
    (
        // Manifests of schema 1, and of kinds that the runtime does not know.
        &[
            Has("is no longer supported since containerd"),
            Begins("unsupported manifest media type"),
            Begins("unsupported media type"),
            Begins("unsupported schema version"),
            Has("schema 1 support"),
            Begins(REFUSED_ARTIFACT),
        ],
        failure::UNSUPPORTED_MANIFEST,
        Remedy::None,
    ),
    (
        &[
            Status(429, 429),
            Is("toomanyrequests"),
            Is("too many requests"),
            Has("pull rate limit"),
            Has("rate limit exceeded"),
            // Google Artifact Registry, whose code CRI-O passes on as "unknown".
            Has("quota exceeded for quota metric"),
        ],
        failure::RATE_LIMITED,
        Remedy::None,
    ),
    (
        &[
            Status(500, 599),
            Status(407, 408),
            Proxy,
            Is("registryunavailable"),
            Is("service unavailable"),
            Ends("connection refused"),
            Ends("no such host"),
            Ends("i/o timeout"),
            Has("client.timeout exceeded"),
            Begins("timeout awaiting response headers"),
            Is("no route to host"),
            Is("network is unreachable"),
            Begins("tls handshake timeout"),
            Is("tls"),
            Is("x509"),
            Is("proxyconnect tcp"),
            Ends("server misbehaving"),
            Ends("temporary failure in name resolution"),
            Has("server gave http response to https client"),
        ],
        failure::REGISTRY_UNAVAILABLE,
        Remedy::None,
    ),
    (
        &[
            Ends("connection reset by peer"),
            Is("unexpected eof"),
            Is("eof"),
            Ends("broken pipe"),
            Has("server sent goaway"),
            Has("client connection lost"),
            Ends("use of closed network connection"),
        ],
        failure::ERR_IMAGE_PULL,
        Remedy::Repeat,
    ),
    (
        &[
            Status(401, 401),
            Status(403, 403),
            // Names of errors of a registry, which containerd and CRI-O put before its words.
            Is("unauthorized"),
            Is("denied"),
            // Their default words, which CRI-O passes on without the names.
            Begins("authentication required"),
            Begins("requested access to the resource is denied"),
            // What others say.
            Begins("authentication is required"),
            Begins("pull access denied"),
            Begins("invalid username/password"),
            Begins("incorrect username or password"),
            Begins("authorization failed"),
            Begins("your authorization token has expired"),
            Begins("authorization server did not include a token in the response"),
            Is("insufficient_scope"),
            Ends("no basic auth credentials"),
        ],
        failure::UNAUTHORIZED,
        Remedy::NextCredential,
    ),
    (
        &[
            Status(404, 404),
            Is("manifest unknown"),
            Is("name unknown"),
            Is("blob unknown"),
            Begins("manifest unknown"),
            Begins("repository name not known to registry"),
            Begins("blob unknown to registry"),
            Both("artifact ", "not found"),
            Both("manifest for ", "not found"),
            Both("could not fetch content descriptor ", "from remote"),
            Is("not found"),
        ],
        failure::IMAGE_NOT_FOUND,
        Remedy::None,
    ),
    (
        // Nobody here asked for that. CRI-O cancels a second caller's pull with the first one's; and
        // both runtimes give up themselves where nothing arrives.
        &[Ends("context canceled")],
        failure::NO_PROGRESS,
        Remedy::RepeatAtOnce,
    ),
];

/// What it means; nothing where no row fits.
pub fn look_up(text: &Text) -> Option<(&'static str, Remedy)> {
    let (_, reason, remedy) = TABLE
        .iter()
        .find(|(says, ..)| says.iter().any(|says| fits(*says, text)))?;
    // The manifest is there and something that it names is not.
    let of_a_blob = *reason == failure::IMAGE_NOT_FOUND
        && text.any(|segment| {
            segment.contains(BLOB_URL)
                || segment == "fetching blob"
                || segment.starts_with("could not fetch content descriptor ")
                || segment.starts_with("blob unknown")
        });
    let reason = if of_a_blob {
        failure::BLOB_NOT_FOUND
    } else {
        reason
    };
    Some((reason, *remedy))
}

fn fits(says: Says, text: &Text) -> bool {
    match says {
        Is(words) => text.any(|segment| segment == words),
        Begins(words) => text.any(|segment| segment.starts_with(words)),
        Ends(words) => text.any(|segment| segment.ends_with(words)),
        Has(words) => text.any(|segment| segment.contains(words)),
        Both(first, then) => text.any(|segment| {
            let rest = segment.strip_prefix(first);
            rest.is_some_and(|rest| rest.contains(then))
        }),
        Status(low, high) => text
            .status()
            .is_some_and(|status| (low..=high).contains(&status)),
        Proxy => text.follows(
            |before| before == "head \"\"" || before == "get \"\"" || before == "post \"\"",
            |phrase| REFUSALS.contains(&phrase),
        ),
    }
}
