//! The grammar of the distribution project: a text becomes the parts of a reference, or an error that
//! names the broken part.

use super::{DOCKER_HUB, ImageRef, ImageRefError};

/// Longest path in a registry, as the distribution project counts it: without the host, with
/// `library/` where that is implied.
const MAX_REPOSITORY: usize = 255;
/// Longest host and port. The grammar sets no limit; no DNS name is longer.
const MAX_REGISTRY: usize = 255;
const MAX_TAG: usize = 128;

impl ImageRef {
    /// Parses what a user wrote. What this accepts is at most
    /// 255 + 1 + 255 + 1 + 128 + 1 + 135 bytes, ASCII, and safe to log.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        if text.is_empty() {
            return Err(ImageRefError::Empty);
        }
        if text.contains(char::is_whitespace) {
            return Err(ImageRefError::WhiteSpace);
        }
        if text.contains("://") {
            return Err(ImageRefError::Scheme);
        }
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ImageRefError::ImageId);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (host, rest) = split_host(rest);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        let registry = match host {
            None | Some("docker.io" | "index.docker.io") => DOCKER_HUB.to_owned(),
            Some(host) if is_name_with_underscore(host) => {
                if host.len() + 1 + path.len() > MAX_REPOSITORY {
                    return Err(ImageRefError::RepositoryTooLong);
                }
                host.to_owned()
            }
            Some(host) => parse_host(host)?,
        };
        parse_path(path)?;
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if repository.len() > MAX_REPOSITORY {
            return Err(ImageRefError::RepositoryTooLong);
        }
        Ok(Self {
            written: text.to_owned(),
            registry,
            repository,
            tag,
            digest,
        })
    }
}

/// The first component is a host if it is `localhost` or has a dot or a colon. The distribution
/// project takes upper case for a sign of a host too; here that is refused, because no registry is
/// called `UPPER` while people do write `Team/app`.
fn split_host(text: &str) -> (Option<&str>, &str) {
    let Some((first, rest)) = text.split_once('/') else {
        return (None, text);
    };
    let host = first == "localhost" || first.contains(['.', ':']);
    if host {
        (Some(first), rest)
    } else {
        (None, text)
    }
}

/// `my_registry.local`: no DNS name, but Docker Compose and some intranets have such hosts. The
/// distribution project takes all of such a reference for a path, so that the host obeys the rules
/// of a path component and counts in its length; every runtime then asks that host.
fn is_name_with_underscore(host: &str) -> bool {
    host.contains('_') && is_path_component(host)
}

fn parse_host(host: &str) -> Result<String, ImageRefError> {
    if host.len() > MAX_REGISTRY {
        return Err(ImageRefError::RegistryTooLong);
    }
    let port_at = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(port_at);
    let name_ok = match name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
    {
        Some(address) => is_ipv6_like(address),
        None => name.split('.').all(is_dns_label),
    };
    let port_ok = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if name_ok && port_ok {
        Ok(host.to_owned())
    } else {
        Err(ImageRefError::Registry)
    }
}

/// The distribution grammar asks no more of an address in brackets.
fn is_ipv6_like(address: &str) -> bool {
    !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn parse_path(path: &str) -> Result<(), ImageRefError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ImageRefError::UpperCase);
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err(ImageRefError::Repository)
    }
}

/// Runs of letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_ok = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    let separator_ok = |separator: &[u8]| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    };
    ends_ok && bytes.split(alphanumeric).all(separator_ok)
}

fn parse_tag(tag: &str) -> Result<String, ImageRefError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok {
        Ok(tag.to_owned())
    } else {
        Err(ImageRefError::Tag)
    }
}

/// `algorithm:hex`, of an algorithm that the kubelet knows, in its exact length and in lower case.
/// The grammar of the distribution project has room for others; the kubelet refuses them.
fn parse_digest(digest: &str) -> Result<String, ImageRefError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(ImageRefError::Digest)?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ImageRefError::Digest),
    };
    if hex.len() == length && hex.bytes().all(is_lower_hex) {
        Ok(digest.to_owned())
    } else {
        Err(ImageRefError::Digest)
    }
}

fn is_lower_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}
