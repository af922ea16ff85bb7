//! Selects the credentials that the kubelet would try for an image, in the kubelet's order.
//!
//! The rules are those of the kubelet's keyring (`pkg/credentialprovider/keyring.go` of
//! Kubernetes), so that a Secret which works for a pod works here. Three things differ, all in
//! corners: keys that differ only in a part that no registry sees (user, query, fragment) are one;
//! an IPv6 host without a port matches itself; and a bare `localhost/` image does not fall back to
//! the credentials of Docker Hub, which it has no business to see.

use std::fmt;

use crate::{ImageRef, glob};

const DOCKER_HUB: &str = "docker.io";
/// The key that the kubelet uses for Docker Hub if no other key matches.
const DOCKER_HUB_KEY: &str = "index.docker.io";

/// Credentials by registry key. The type of a credential is up to the caller.
#[derive(Clone)]
pub struct Keyring<T> {
    /// Sorted by key in reverse lexicographic order, so that `host/path` comes before `host`.
    entries: Vec<(String, T)>,
}

impl<T> Keyring<T> {
    /// Adds a credential under a key of a docker config: `registry.test:5000`,
    /// `https://index.docker.io/v1/`, `*.example.com/team`. If a key has several credentials, all are
    /// tried in the order in which they were added, so that passwords can be rotated.
    pub fn add(&mut self, key: &str, credential: T) {
        let key = host_and_path(key);
        let at = self.entries.partition_point(|(other, _)| *other >= key);
        self.entries.insert(at, (key, credential));
    }

    /// Returns the credentials to try for an image, in order. Empty means to pull without credentials.
    pub fn matching(&self, image: &ImageRef) -> Vec<&T> {
        let found = self.select(|key| matches(key, image));
        if found.is_empty() && image.registry() == DOCKER_HUB {
            return self.select(|key| key == DOCKER_HUB_KEY);
        }
        found
    }

    fn select(&self, wanted: impl Fn(&str) -> bool) -> Vec<&T> {
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

/// Shows only keys, because a credential must not get into a log.
impl<T> fmt::Debug for Keyring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries } = self;
        f.debug_list()
            .entries(entries.iter().map(|(key, _)| key))
            .finish()
    }
}

/// Returns the part of a key that is compared: without scheme, user, query and API version.
fn host_and_path(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.split(['?', '#']).next().unwrap_or(key);
    let (authority, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    // Only with the slash at the end: /v1 alone is a path like any other.
    let path = if path.starts_with("/v1/") || path.starts_with("/v2/") {
        &path[3..]
    } else {
        path
    };
    format!("{host}{}", if path == "/" { "" } else { path })
}

/// Returns whether a key matches an image: each label of the host by glob pattern, equal ports, and the
/// key's path as a plain prefix. `/team` matches `/teamwork` too, `/team/` does not.
fn matches(key: &str, image: &ImageRef) -> bool {
    let (key_host, key_path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let (key_name, key_port) = split_port(key_host);
    let (name, port) = split_port(image.registry());
    key_port == port
        && key_path
            .strip_prefix('/')
            .is_none_or(|path| image.repository().starts_with(path))
        && host_matches(key_name, name)
}

fn host_matches(pattern: &str, host: &str) -> bool {
    // The brackets of an IPv6 address are not a character class.
    if pattern == host {
        return true;
    }
    let patterns = pattern.split('.');
    let labels = host.split('.');
    patterns.clone().count() == labels.clone().count()
        && patterns
            .zip(labels)
            .all(|(pattern, label)| glob::matches(pattern, label))
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
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
    fn debug_shows_keys_and_no_credential() {
        let keyring: Keyring<&str> = [("r.test", "hunter2")].into_iter().collect();
        assert_eq!(format!("{keyring:?}"), r#"["r.test"]"#);
    }
}
