//! `[host[:port]/]path[:tag][@digest]`, normalized as the distribution project does it
//! (<https://github.com/distribution/reference>).

use std::fmt;

/// Longest path in a registry, as the distribution project counts it: without the host, with
/// `library/` where that is implied.
const MAX_REPOSITORY: usize = 255;
/// Longest host and port. The grammar sets no limit; no DNS name is longer.
const MAX_REGISTRY: usize = 255;
const MAX_TAG: usize = 128;
const DOCKER_HUB: &str = "docker.io";

/// A parsed image reference: the text as it was written, and its parts after normalization.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    written: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference, and what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// Nothing was written.
    #[error("the name is empty: write it like registry.example.com/team/app:1.0")]
    Empty,
    /// Blanks, tabs or line ends, often from a copy.
    #[error("the name has white space in it: remove it")]
    WhiteSpace,
    /// A scheme such as `https://` or `docker://`.
    #[error("the name begins with a scheme: remove everything up to and with ://")]
    Scheme,
    /// The repository has upper-case letters. A host may: then it has a dot or a port.
    #[error("the repository must be lower case")]
    UpperCase,
    /// The repository has a character or a separator that the grammar does not know.
    #[error(
        "the repository must be a-z and 0-9, with single ., _, __ or any number of - between \
         them, and / between components"
    )]
    Repository,
    /// The repository is longer than 255 characters.
    #[error("the repository is longer than 255 characters: shorten it")]
    RepositoryTooLong,
    /// The part before the first slash can only be a host and does not parse as one.
    #[error("the registry host must be like registry.example.com:5000 or [fd00::1]:5000")]
    Registry,
    /// Host and port are longer than 255 characters.
    #[error("the registry host is longer than 255 characters: shorten it")]
    RegistryTooLong,
    /// The tag does not parse.
    #[error(
        "the tag must be 1 to 128 of A-Z, a-z, 0-9, _, . and -, and must not begin with . or -"
    )]
    Tag,
    /// The digest does not parse, is of an algorithm that no kubelet knows, or has not its length.
    #[error(
        "the digest must be sha256: and 64, sha384: and 96 or sha512: and 128 digits of 0-9 and a-f"
    )]
    Digest,
    /// 64 hexadecimal digits alone are an image id, which no registry can be asked for.
    #[error("64 hexadecimal digits are an image id: write a repository with a tag or digest")]
    ImageId,
}

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

    /// Host and port of the registry: `docker.io` where none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// One text for all spellings of a registry, for what is counted or limited per registry: in
    /// lower case, and without the port that HTTPS has anyway. `Registry.Corp`, `registry.corp:443`
    /// and `registry.corp` are one. It is no name to ask a runtime for: a credential's port counts.
    pub fn registry_key(&self) -> String {
        let lower = self.registry.to_ascii_lowercase();
        let (name, port) = match lower.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port.trim_start_matches('0')),
            _ => (lower.as_str(), ""),
        };
        match (name, port) {
            // Where Docker Hub really answers.
            ("registry-1.docker.io" | "index.docker.io" | DOCKER_HUB, "" | "443") => {
                DOCKER_HUB.to_owned()
            }
            (name, "" | "443") => name.to_owned(),
            (name, port) => format!("{name}:{port}"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parsed(text: &str) -> ImageRef {
        ImageRef::parse(text).unwrap()
    }

    fn accepts(text: &str) -> bool {
        ImageRef::parse(text).is_ok()
    }

    #[test]
    fn spellings_are_brought_to_one_form() {
        for (written, normalized) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("library/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/team/app:1", "docker.io/team/app:1"),
            ("team/app", "docker.io/team/app:latest"),
            ("team/a/b", "docker.io/team/a/b:latest"),
            ("docker.io:443/nginx", "docker.io:443/nginx:latest"),
            ("localhost/app:a", "localhost/app:a"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            (
                "registry.test:5000/demo/web:1.0",
                "registry.test:5000/demo/web:1.0",
            ),
            ("registry.test/nginx", "registry.test/nginx:latest"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
            ("[fd00::1]:5000/app:1", "[fd00::1]:5000/app:1"),
            ("[fd00::1]/app", "[fd00::1]/app:latest"),
            ("HOST:5000/app", "HOST:5000/app:latest"),
            ("Registry.Test/app", "Registry.Test/app:latest"),
        ] {
            assert_eq!(parsed(written).normalized(), normalized, "{written}");
        }
    }

    #[test]
    fn a_digest_makes_the_tag_meaningless_and_drops_it() {
        let normalized = format!("docker.io/library/nginx@sha256:{HEX}");
        for written in [
            format!("nginx@sha256:{HEX}"),
            format!("nginx:1@sha256:{HEX}"),
        ] {
            assert_eq!(parsed(&written).normalized(), normalized, "{written}");
        }
    }

    #[test]
    fn every_part_can_be_asked_for() {
        let digest = format!("sha256:{HEX}");
        let image = parsed(&format!("registry.test:5000/a/b:1@{digest}"));
        assert_eq!(image.registry(), "registry.test:5000");
        assert_eq!(image.repository(), "a/b");
        assert_eq!(image.tag(), Some("1"));
        assert_eq!(image.digest(), Some(digest.as_str()));
        let bare = parsed("nginx");
        assert_eq!(bare.registry(), "docker.io");
        assert_eq!(bare.repository(), "library/nginx");
        assert_eq!((bare.tag(), bare.digest()), (None, None));
    }

    #[test]
    fn each_broken_part_is_named() {
        use ImageRefError as E;
        for (written, error) in [
            ("", E::Empty),
            (" nginx", E::WhiteSpace),
            ("nginx\n", E::WhiteSpace),
            ("a b", E::WhiteSpace),
            ("https://registry.test/app", E::Scheme),
            ("Nginx", E::UpperCase),
            ("Team/app", E::UpperCase),
            ("Upper:tag", E::UpperCase),
            ("registry.test/UPPER/case:x", E::UpperCase),
            ("lower/UPPER", E::UpperCase),
            (":tag", E::Repository),
            ("@sha256:0", E::Digest),
            ("a..b", E::Repository),
            ("a._b", E::Repository),
            ("a___b", E::Repository),
            ("-a", E::Repository),
            ("a-", E::Repository),
            ("a/", E::Repository),
            ("/a", E::Repository),
            ("a//b", E::Repository),
            ("a/-foo/b", E::Repository),
            ("h\u{e9}llo", E::Repository),
            ("a$b", E::Repository),
            ("registry.test:5000/", E::Repository),
            ("a:", E::Tag),
            ("a:.b", E::Tag),
            ("a:-b", E::Tag),
            ("a:b:c", E::Tag),
            ("a:b\u{e9}", E::Tag),
            ("a@", E::Digest),
            ("a@sha256", E::Digest),
            ("a@sha256:12", E::Digest),
            ("a@sha256:0123456789abcdef0123456789abcdef", E::Digest),
            ("a@-x:0123456789abcdef0123456789abcdef", E::Digest),
            ("a@x+:0123456789abcdef0123456789abcdef", E::Digest),
            ("a@x:0123456789abcdef0123456789abcde", E::Digest),
            ("ho_st.test:1/a", E::Registry),
            (".test/a", E::Registry),
            ("host.test./a", E::Registry),
            ("-host.test/a", E::Registry),
            ("host-.test/a", E::Registry),
            ("host.test:/a", E::Registry),
            ("host.test:port/a", E::Registry),
            ("host.test:1:2/a", E::Registry),
            (":5000/a", E::Registry),
            ("[fd00::g]/a", E::Registry),
            ("[fd00::1/a", E::Registry),
            ("fd00::1]:5000/a", E::Registry),
            ("[]:5000/a", E::Registry),
            ("[fd00::1]5000/a", E::Registry),
            ("[fd00::1]:/a", E::Registry),
            ("fd00::1/a", E::Registry),
            (HEX, E::ImageId),
        ] {
            assert_eq!(ImageRef::parse(written), Err(error), "{written:?}");
        }
    }

    #[test]
    fn path_components_take_dots_underscores_and_any_number_of_dashes() {
        assert!(accepts("a/b/c/d_e__f-g--h.i---j:T_1"));
        assert!(accepts("registry.test/xn--n3h/app"));
    }

    #[test]
    fn sixty_four_digits_are_refused_only_where_they_could_be_an_id() {
        assert!(accepts(&format!("docker.io/{HEX}")));
        assert!(accepts(&format!("{HEX}:1")));
        assert!(accepts(&HEX[1..]));
    }

    #[test]
    fn a_known_digest_algorithm_has_its_exact_length_in_lower_case() {
        assert!(accepts(&format!("a@sha256:{HEX}")));
        assert!(accepts(&format!("a@sha512:{HEX}{HEX}")));
        assert!(!accepts(&format!("a@sha256:{HEX}0")));
        assert!(!accepts(&format!("a@sha512:{HEX}")));
        assert!(!accepts(&format!("a@sha256:{}", HEX.to_uppercase())));
    }

    #[test]
    fn a_digest_of_another_algorithm_is_refused_as_by_the_kubelet() {
        for digest in [
            format!("blake3:{HEX}"),
            format!("tarsum.v1+sha256:{HEX}"),
            format!("SHA256:{HEX}"),
            format!("md5:{}", &HEX[..32]),
        ] {
            let error = ImageRef::parse(&format!("a@{digest}"));
            assert_eq!(error, Err(ImageRefError::Digest), "{digest}");
        }
    }

    #[test]
    fn a_host_may_have_underscores_where_a_path_component_may() {
        let image = parsed("my_registry.local/team/app:1");
        assert_eq!(image.registry(), "my_registry.local");
        assert_eq!(image.repository(), "team/app");
        assert_eq!(image.normalized(), "my_registry.local/team/app:1");
        assert!(accepts("my__registry.local/app"));
        for refused in [
            "my_registry.local:5000/app",
            "my___registry.local/app",
            "My_registry.local/app",
            "_registry.local/app",
        ] {
            assert!(!accepts(refused), "{refused}");
        }
        let with_path = |length: usize| accepts(&format!("a_b.c/{}", "x".repeat(length)));
        assert!(with_path(255 - "a_b.c/".len()));
        assert!(!with_path(256 - "a_b.c/".len()));
    }

    #[test]
    fn spellings_of_one_registry_share_one_key() {
        for (image, key) in [
            ("nginx", "docker.io"),
            ("docker.io:443/nginx", "docker.io"),
            ("Registry.Corp/app", "registry.corp"),
            ("registry.corp:443/app", "registry.corp"),
            ("registry.corp:80/app", "registry.corp:80"),
            ("registry.corp:0443/app", "registry.corp"),
            ("registry.corp:5000/app", "registry.corp:5000"),
            ("[FD00::1]:443/app", "[fd00::1]"),
            ("[fd00::443]/app", "[fd00::443]"),
            ("registry-1.docker.io/team/app", "docker.io"),
        ] {
            assert_eq!(parsed(image).registry_key(), key, "{image}");
        }
    }

    #[test]
    fn the_longest_of_each_part_is_accepted_and_one_more_is_not() {
        use ImageRefError as E;
        let repository = |length| ImageRef::parse(&format!("r.test/{}", "a".repeat(length)));
        assert!(repository(255).is_ok());
        assert_eq!(repository(256), Err(E::RepositoryTooLong));
        let implied = |length| ImageRef::parse(&"a".repeat(length));
        assert!(implied(255 - "library/".len()).is_ok());
        assert_eq!(implied(256 - "library/".len()), Err(E::RepositoryTooLong));
        let tag = |length| ImageRef::parse(&format!("a:{}", "t".repeat(length)));
        assert!(tag(128).is_ok());
        assert_eq!(tag(129), Err(E::Tag));
        let host = |length: usize| ImageRef::parse(&format!("{}.b/a", "h".repeat(length - 2)));
        assert!(host(255).is_ok());
        assert_eq!(host(256), Err(E::RegistryTooLong));
    }

    #[test]
    fn the_runtime_gets_what_was_written_and_latest_where_nothing_was_said() {
        let pinned = format!("nginx:1@sha256:{HEX}");
        for (written, name) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("docker.io/nginx", "docker.io/nginx:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            (pinned.as_str(), pinned.as_str()),
        ] {
            assert_eq!(parsed(written).runtime_name(), name);
        }
    }

    #[test]
    fn floating_is_what_may_mean_something_else_tomorrow() {
        assert!(parsed("nginx").is_floating());
        assert!(parsed("nginx:latest").is_floating());
        assert!(!parsed("nginx:1").is_floating());
        assert!(!parsed(&format!("nginx@sha256:{HEX}")).is_floating());
        assert!(!parsed(&format!("nginx:latest@sha256:{HEX}")).is_floating());
    }

    #[test]
    fn a_reference_prints_as_it_was_written() {
        assert_eq!(parsed("nginx").to_string(), "nginx");
    }

    #[test]
    fn what_is_normalized_parses_to_itself() {
        for written in ["nginx", "team/app:2", "[fd00::1]:5000/app", "HOST:1/app"] {
            let once = parsed(written).normalized();
            assert_eq!(parsed(&once).normalized(), once);
        }
    }
}
