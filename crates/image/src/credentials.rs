//! Which credentials the kubelet would try for an image, and in which order.
//!
//! The rules are those of the kubelet's keyring (`pkg/credentialprovider/keyring.go` of
//! Kubernetes), so that a Secret which works for a pod works here, and a key that the kubelet
//! ignores sends no login anywhere. Two things differ, both on purpose: an IPv6 host without a port
//! matches itself (the kubelet takes its brackets for a set of characters), and a bare
//! `localhost/` image does not fall back to the credentials of Docker Hub, which it has no business
//! to see. `make test-vectors` compares both with the kubelet's own code.

use std::fmt;

use crate::{ImageRef, address::Address, glob};

const DOCKER_HUB: &str = "docker.io";
/// The key that the kubelet looks up for Docker Hub when nothing else matches.
const DOCKER_HUB_KEY: &[u8] = b"index.docker.io";

/// Credentials by registry key. What a credential is, the keyring does not know.
#[derive(Clone)]
pub struct Keyring<T> {
    /// Reverse lexicographic by key, so that `host/path` comes before `host`.
    entries: Vec<(Key, T)>,
}

/// A key of a docker config.
#[derive(Clone)]
struct Key {
    /// Host and path without scheme, user, query and API version, decoded.
    text: Vec<u8>,
    pattern: Pattern,
}

impl Key {
    /// None: the kubelet ignores it.
    fn parse(key: &str) -> Option<Self> {
        let rest = key
            .strip_prefix("https://")
            .or_else(|| key.strip_prefix("http://"))
            .unwrap_or(key);
        let Address { host, path } = Address::parse(rest.as_bytes())?;
        // As written, with the slash at the end: /v1 alone is a path like any other.
        let versioned = path.starts_with(b"/v1/") || path.starts_with(b"/v2/");
        let path = if versioned { &path[3..] } else { &path };
        let path = if path == b"/" { b"" } else { path };
        let text = [&host, path].concat();
        // The kubelet reads its own key once more when it compares: an escape in an escape is
        // decoded twice.
        let pattern = Pattern(Address::parse(&text)?);
        Some(Self { text, pattern })
    }
}

impl<T> Keyring<T> {
    /// Adds a credential under a key as it stands in a docker config: `registry.test:5000`,
    /// `https://index.docker.io/v1/`, `*.example.com/team`. Several credentials under one key are
    /// all tried, in the order they were added: that is how a password is rotated. A key that is no
    /// address is passed over, as in the kubelet; the answer says whether it was added.
    pub fn add(&mut self, key: &str, credential: T) -> bool {
        let Some(key) = Key::parse(key) else {
            return false;
        };
        let at = self
            .entries
            .partition_point(|(other, _)| other.text >= key.text);
        self.entries.insert(at, (key, credential));
        true
    }

    /// Whether there is nothing to try for any image.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What to try for an image, in order. Empty means: pull without credentials.
    pub fn matching(&self, image: &ImageRef) -> Vec<&T> {
        let Some(address) = address(image) else {
            return Vec::new();
        };
        let found = self.select(|key| key.pattern.fits(&address));
        if found.is_empty() && image.registry() == DOCKER_HUB {
            return self.select(|key| key.text == DOCKER_HUB_KEY);
        }
        found
    }

    fn select(&self, wanted: impl Fn(&Key) -> bool) -> Vec<&T> {
        let entries = self.entries.iter().filter(|(key, _)| wanted(key));
        entries.map(|(_, credential)| credential).collect()
    }
}

impl<T> Default for Keyring<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<K: AsRef<str>, T> FromIterator<(K, T)> for Keyring<T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(entries: I) -> Self {
        let mut keyring = Self::default();
        for (key, credential) in entries {
            keyring.add(key.as_ref(), credential);
        }
        keyring
    }
}

/// Keys only: whatever a credential is, it is nothing for a log.
impl<T> fmt::Debug for Keyring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries } = self;
        f.debug_list()
            .entries(
                entries
                    .iter()
                    .map(|(key, _)| String::from_utf8_lossy(&key.text)),
            )
            .finish()
    }
}

/// Which images a credential provider is asked for: an entry of `matchImages`. It is an address
/// without a scheme, and nothing of it is special: `https://r.test` is a host called `https`, and
/// `/v2/` is a path.
#[derive(Clone, Debug)]
pub struct Pattern(Address);

impl Pattern {
    /// None: it is no address, and the kubelet refuses it.
    pub fn parse(text: &str) -> Option<Self> {
        Address::parse(text.as_bytes()).map(Self)
    }

    /// Whether the provider is asked for this image.
    pub fn matches(&self, image: &ImageRef) -> bool {
        address(image).is_some_and(|address| self.fits(&address))
    }

    /// Each label of the host with `*` for any part of it, equal ports, and the path as a plain
    /// prefix: `/team` matches `/teamwork` too, `/team/` does not.
    fn fits(&self, image: &Address) -> bool {
        let Self(pattern) = self;
        if !image.path.starts_with(&pattern.path) {
            return false;
        }
        if pattern.host == image.host {
            return true;
        }
        let (patterns, pattern_port) = pattern.labels_and_port();
        let (labels, port) = image.labels_and_port();
        pattern_port == port
            && patterns.len() == labels.len()
            && patterns
                .into_iter()
                .zip(labels)
                .all(|(pattern, label)| label_matches(pattern, label))
    }
}

/// None: no address that Go understands, `[::::]/app`.
fn address(image: &ImageRef) -> Option<Address> {
    Address::parse(format!("{}/{}", image.registry(), image.repository()).as_bytes())
}

/// Of Go's patterns only `*` can stand in a host: what else would be special is refused in one.
fn label_matches(pattern: &[u8], label: &[u8]) -> bool {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    text(pattern)
        .zip(text(label))
        .is_some_and(|(pattern, label)| glob::matches(pattern, label))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUB: &str = "https://index.docker.io/v1/";

    /// The keys, as they were written, in the order in which they are tried.
    fn tried<'a>(keys: &[&'a str], image: &str) -> Vec<&'a str> {
        let keyring: Keyring<&str> = keys.iter().map(|key| (key, *key)).collect();
        let image = ImageRef::parse(image).unwrap();
        keyring.matching(&image).into_iter().copied().collect()
    }

    #[test]
    fn the_most_specific_key_comes_first() {
        let keys = ["r.test", "r.test/team/app", "other.test", "r.test/team"];
        assert_eq!(
            tried(&keys, "r.test/team/app:1"),
            ["r.test/team/app", "r.test/team", "r.test"]
        );
        assert_eq!(tried(&keys, "r.test/else/app:1"), ["r.test"]);
    }

    #[test]
    fn a_name_comes_before_the_glob_that_matches_it_too() {
        let keys = ["*.example.com", "eu.example.com"];
        assert_eq!(
            tried(&keys, "eu.example.com/app"),
            ["eu.example.com", "*.example.com"]
        );
    }

    #[test]
    fn credentials_of_one_key_are_tried_in_the_order_they_were_added() {
        let mut keyring = Keyring::default();
        keyring.add("r.test", "old");
        keyring.add("a.test", "other");
        keyring.add("https://r.test/v2/", "new");
        let image = ImageRef::parse("r.test/app").unwrap();
        assert_eq!(keyring.matching(&image), [&"old", &"new"]);
    }

    #[test]
    fn ports_must_be_equal() {
        assert!(tried(&["r.test"], "r.test:5000/app").is_empty());
        assert!(tried(&["r.test:5000"], "r.test/app").is_empty());
        assert!(tried(&["r.test:443"], "r.test/app").is_empty());
        assert!(tried(&["r.test:*"], "r.test:5000/app").is_empty());
        assert_eq!(tried(&["r.test:5000"], "r.test:5000/app"), ["r.test:5000"]);
    }

    #[test]
    fn a_path_is_a_plain_prefix_without_globs() {
        assert_eq!(tried(&["r.test/foo"], "r.test/foobar:1"), ["r.test/foo"]);
        assert_eq!(tried(&["r.test/foo/"], "r.test/foo/bar:1"), ["r.test/foo/"]);
        assert!(tried(&["r.test/foo/"], "r.test/foobar/app:1").is_empty());
        assert!(tried(&["r.test/foo"], "r.test/fo").is_empty());
        assert!(tried(&["r.test/*/app"], "r.test/foo/app").is_empty());
    }

    #[test]
    fn the_tag_is_no_part_of_the_path() {
        assert!(tried(&["r.test/app:1"], "r.test/app:1").is_empty());
    }

    #[test]
    fn a_star_stands_for_a_part_of_one_label() {
        assert_eq!(
            tried(&["*.example.com"], "eu.example.com/app"),
            ["*.example.com"]
        );
        assert_eq!(
            tried(&["a*b.example.com"], "axxb.example.com/app"),
            ["a*b.example.com"]
        );
        assert_eq!(tried(&["*.*.com:1"], "eu.example.com:1/app"), ["*.*.com:1"]);
        assert!(tried(&["*.example.com"], "a.b.example.com/app").is_empty());
        assert!(tried(&["*.example.com"], "example.com/app").is_empty());
        assert!(tried(&["*"], "example.com/app").is_empty());
    }

    #[test]
    fn the_scheme_of_a_key_does_not_count() {
        for key in [
            "r.test",
            "http://r.test",
            "https://r.test",
            "https://r.test/",
        ] {
            assert_eq!(tried(&[key], "r.test/app"), [key]);
        }
        assert!(tried(&["oci://r.test"], "r.test/app").is_empty());
    }

    #[test]
    fn the_api_version_of_a_key_does_not_count() {
        for key in ["https://r.test/v1/", "r.test/v2/", "http://r.test/v1/team"] {
            assert_eq!(tried(&[key], "r.test/team/app"), [key]);
        }
        assert!(tried(&["r.test/v1"], "r.test/team/app").is_empty());
        assert!(tried(&["r.test/v3/"], "r.test/team/app").is_empty());
    }

    #[test]
    fn user_query_and_fragment_of_a_key_do_not_count() {
        assert_eq!(tried(&["https://me@r.test/a?b#c"], "r.test/app").len(), 1);
    }

    #[test]
    fn docker_hub_falls_back_to_its_index_when_nothing_matches() {
        for image in [
            "nginx",
            "team/app",
            "docker.io/team/app",
            "index.docker.io/nginx",
        ] {
            assert_eq!(tried(&[HUB], image), [HUB]);
            assert_eq!(tried(&["docker.io", HUB], image), ["docker.io"]);
        }
        assert!(tried(&["*.docker.io"], "nginx").is_empty());
    }

    #[test]
    fn no_other_registry_sees_the_credentials_of_docker_hub() {
        for image in [
            "r.test/app",
            "localhost/app",
            "HOST:1/app",
            "docker.io:443/app",
        ] {
            assert!(tried(&[HUB, "index.docker.io", "docker.io"], image).is_empty());
        }
    }

    #[test]
    fn a_key_that_the_kubelet_ignores_sends_no_login_anywhere() {
        for key in [
            "r.t[e]st",
            "r.tes?",
            r"r.tes\t",
            "r.te%73t",
            "r.test:x",
            "r.test/%zz",
            "[r.test",
            "r .test",
        ] {
            assert!(tried(&[key], "r.test/app").is_empty(), "{key}");
            assert!(
                !Keyring::default().add(key, ()) || key.contains('?'),
                "{key}"
            );
        }
    }

    #[test]
    fn percent_escapes_in_the_path_of_a_key_are_decoded() {
        assert_eq!(tried(&["r.test/%74eam"], "r.test/team/app").len(), 1);
        assert_eq!(tried(&["r.test/%2574eam"], "r.test/team/app").len(), 1);
        assert!(tried(&["r.test/%74eam"], "r.test/other/app").is_empty());
    }

    #[test]
    fn a_host_with_an_underscore_matches_its_key() {
        assert_eq!(
            tried(&["my_registry.local"], "my_registry.local/team/app:1").len(),
            1
        );
    }

    #[test]
    fn an_image_pattern_of_a_provider_is_an_address_and_no_docker_key() {
        let matches = |pattern: &str, image: &str| {
            let image = ImageRef::parse(image).unwrap();
            Pattern::parse(pattern).is_some_and(|pattern| pattern.matches(&image))
        };
        assert!(matches("*.test", "r.test/a"));
        assert!(matches("r.test/", "r.test/a"));
        assert!(!matches("https://r.test", "r.test/a"));
        assert!(!matches("r.test/v2/", "r.test/a"));
        assert!(matches("r.test/v2/", "r.test/v2/a"));
        assert!(!matches("index.docker.io", "nginx"));
        assert!(matches("docker.io", "nginx"));
        assert!(Pattern::parse("r.t[e]st").is_none());
    }

    #[test]
    fn ipv6_hosts_match_themselves_with_and_without_a_port() {
        assert_eq!(
            tried(&["[fd00::1]:5000"], "[fd00::1]:5000/app"),
            ["[fd00::1]:5000"]
        );
        assert_eq!(tried(&["[fd00::1]"], "[fd00::1]/app"), ["[fd00::1]"]);
        assert!(tried(&["[fd00::1]"], "[fd00::2]/app").is_empty());
    }

    #[test]
    fn without_keys_or_with_senseless_ones_nothing_is_tried() {
        assert!(tried(&[], "nginx").is_empty());
        assert!(tried(&["", "/", "https://", "[", ":"], "r.test/app").is_empty());
    }

    #[test]
    fn a_key_of_many_stars_takes_no_exponential_time() {
        let key = format!("{}b", "a*".repeat(100));
        let image = format!("{}.test/app", "a".repeat(240));
        assert!(tried(&[&format!("{key}.test")], &image).is_empty());
    }

    #[test]
    fn debug_shows_keys_and_no_credential() {
        let keyring: Keyring<&str> = [("r.test", "hunter2")].into_iter().collect();
        assert_eq!(format!("{keyring:?}"), r#"["r.test"]"#);
    }
}
