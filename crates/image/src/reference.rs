//! `[host[:port]/]path[:tag][@digest]`, normalized as the distribution project does it.

use std::fmt;

/// Longest repository, host and path together.
const MOST_REPOSITORY: usize = 255;
const MOST_TAG: usize = 128;
const DOCKER_HUB: &str = "docker.io";

/// A parsed image reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    written: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// Nothing was written.
    #[error("the name is empty: write it like registry.example.com/team/app:1.0")]
    Empty,
    /// A repository has upper-case letters.
    #[error("the repository must be lower case")]
    UpperCase,
    /// Something in host or path is not allowed.
    #[error(
        "the repository has a character or separator that is not allowed: use a-z, 0-9 and single ., _, __ or - between them"
    )]
    Repository,
    /// The host does not parse.
    #[error(
        "the registry host does not parse: write it like registry.example.com:5000 or [fd00::1]:5000"
    )]
    Host,
    /// The tag does not parse.
    #[error("the tag must be 1 to 128 of A-Z, a-z, 0-9, _, . and -, and not begin with . or -")]
    Tag,
    /// The digest does not parse.
    #[error("the digest must be like sha256: and 64 hexadecimal digits")]
    Digest,
    /// More than 255 characters.
    #[error("the repository is longer than 255 characters")]
    TooLong,
    /// 64 hexadecimal digits mean an image id.
    #[error("a name of 64 hexadecimal digits is an image id: write a repository")]
    ImageId,
}

impl ImageRef {
    /// Parses what a user wrote.
    ///
    /// # Errors
    /// Says which part breaks the grammar.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        if text.is_empty() {
            return Err(ImageRefError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
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
            Some(host) => parse_host(host)?,
        };
        parse_path(path)?;
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MOST_REPOSITORY {
            return Err(ImageRefError::TooLong);
        }
        Ok(Self {
            written: text.to_owned(),
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// Host and port of the registry: `docker.io` where none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// No digest, and no tag or `:latest`: what it means may change any day.
    pub fn is_floating(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref().is_none_or(|tag| tag == "latest")
    }

    /// One text for all spellings: `docker.io/library/nginx:latest`. A digest makes the tag
    /// meaningless and drops it, as containerd does.
    pub fn normalized(&self) -> String {
        let Self {
            registry,
            repository,
            ..
        } = self;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{registry}/{repository}@{digest}"),
            (None, Some(tag)) => format!("{registry}/{repository}:{tag}"),
            (None, None) => format!("{registry}/{repository}:latest"),
        }
    }

    /// What the runtime is asked for: as written, with `:latest` where neither tag nor digest is
    /// there. Short names stay short, as the kubelet leaves them.
    pub fn runtime_name(&self) -> String {
        if self.tag.is_none() && self.digest.is_none() {
            format!("{}:latest", self.written)
        } else {
            self.written.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The first component is a host if it says so: runtimes refuse `UPPER/case` as a repository.
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

fn parse_host(host: &str) -> Result<String, ImageRefError> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(ImageRefError::Host)?;
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return Err(ImageRefError::Host);
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return Err(ImageRefError::Host),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let name_ok = name.is_none_or(|name| name.split('.').all(label));
    let port_ok =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if name_ok && port_ok {
        Ok(host.to_owned())
    } else {
        Err(ImageRefError::Host)
    }
}

fn parse_path(path: &str) -> Result<(), ImageRefError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ImageRefError::UpperCase);
    }
    path.split('/').try_for_each(parse_component)
}

/// Runs of letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn parse_component(component: &str) -> Result<(), ImageRefError> {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well =
        bytes.first().is_some_and(|b| alnum(*b)) && bytes.last().is_some_and(|b| alnum(*b));
    let separators_well = bytes.split(|b| alnum(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    });
    if ends_well && separators_well {
        Ok(())
    } else {
        Err(ImageRefError::Repository)
    }
}

fn parse_tag(tag: &str) -> Result<String, ImageRefError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= MOST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok {
        Ok(tag.to_owned())
    } else {
        Err(ImageRefError::Tag)
    }
}

fn parse_digest(digest: &str) -> Result<String, ImageRefError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(ImageRefError::Digest)?;
    let part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let length_ok = match algorithm {
        "sha256" => hex.len() == 64,
        "sha512" => hex.len() == 128,
        _ => hex.len() >= 32,
    };
    let ok = algorithm.split(['+', '.', '-', '_']).all(part)
        && length_ok
        && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if ok {
        Ok(digest.to_owned())
    } else {
        Err(ImageRefError::Digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn spellings_are_brought_to_one_form() {
        let digest = format!("sha256:{HEX}");
        for (written, normalized) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "docker.io/library/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            ("localhost/app:a", "localhost/app:a".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            (
                "registry.test:5000/demo/web:1.0",
                "registry.test:5000/demo/web:1.0".to_owned(),
            ),
            ("[fd00::1]:5000/app:1", "[fd00::1]:5000/app:1".to_owned()),
            ("Host.test/app", "Host.test/app:latest".to_owned()),
            (
                &format!("nginx@{digest}"),
                format!("docker.io/library/nginx@{digest}"),
            ),
            (
                &format!("nginx:1@{digest}"),
                format!("docker.io/library/nginx@{digest}"),
            ),
            (
                "a/b/c/d_e__f-g--h.i:T_1",
                "docker.io/a/b/c/d_e__f-g--h.i:T_1".to_owned(),
            ),
        ] {
            let parsed = ImageRef::parse(written).unwrap();
            assert_eq!(parsed.normalized(), normalized, "{written}");
        }
    }

    #[test]
    fn each_broken_part_is_named() {
        use ImageRefError as E;
        let long = format!("r.test/{}", "a".repeat(250));
        for (written, error) in [
            ("", E::Empty),
            ("UPPER/case:x", E::UpperCase),
            ("Nginx", E::UpperCase),
            ("a b", E::Repository),
            ("a..b", E::Repository),
            ("a___b", E::Repository),
            ("-a", E::Repository),
            ("a/", E::Repository),
            ("a//b", E::Repository),
            ("a:", E::Tag),
            ("a:.b", E::Tag),
            ("a:b c", E::Tag),
            ("a:b:c", E::Tag),
            ("a@sha256:12", E::Digest),
            ("a@", E::Digest),
            ("ho_st.test/a", E::Host),
            ("host.test:port/a", E::Host),
            ("[fd00::g]/a.b:/c", E::Host),
            ("héllo", E::Repository),
            (HEX, E::ImageId),
            (long.as_str(), E::TooLong),
        ] {
            assert_eq!(ImageRef::parse(written), Err(error), "{written}");
        }
    }

    #[test]
    fn the_runtime_gets_what_was_written_and_latest_where_nothing_was_said() {
        let runtime_name = |text: &str| ImageRef::parse(text).unwrap().runtime_name();
        assert_eq!(runtime_name("nginx"), "nginx:latest");
        assert_eq!(runtime_name("nginx:1"), "nginx:1");
        let pinned = format!("nginx@sha256:{HEX}");
        assert_eq!(runtime_name(&pinned), pinned);
        assert!(ImageRef::parse("nginx").unwrap().is_floating());
        assert!(!ImageRef::parse(&pinned).unwrap().is_floating());
    }
}
