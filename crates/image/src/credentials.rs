//! Which credentials the kubelet would try for an image, and in which order. Host labels match by
//! glob, ports must be equal, a path is a plain prefix; the most specific key comes first, and
//! several credentials under one key are all tried, in the order they were added.

use crate::ImageRef;

/// The key that the kubelet looks up for Docker Hub when nothing else matches.
const DOCKER_HUB_KEY: &str = "index.docker.io";

/// Credentials by registry key.
#[derive(Clone, Debug)]
pub struct Keyring<T> {
    // Reverse lexicographic by key, so that host/path comes before host.
    entries: Vec<(String, T)>,
}

impl<T> Default for Keyring<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<T> Keyring<T> {
    /// Adds a credential under the key of a docker config: `https://index.docker.io/v1/`,
    /// `registry.test:5000`, `*.example.com/team`.
    pub fn add(&mut self, key: &str, credential: T) {
        let key = clean(key);
        let at = self.entries.partition_point(|(other, _)| *other >= key);
        self.entries.insert(at, (key, credential));
    }

    /// What to try for an image, in order. Empty: anonymous.
    pub fn matching(&self, image: &ImageRef) -> Vec<&T> {
        let target = format!("{}/{}", image.registry(), image.repository());
        let found: Vec<&T> = self
            .entries
            .iter()
            .filter(|(key, _)| matches(key, &target))
            .map(|(_, credential)| credential)
            .collect();
        if !found.is_empty() || image.registry() != "docker.io" {
            return found;
        }
        let hub = self.entries.iter().filter(|(key, _)| key == DOCKER_HUB_KEY);
        hub.map(|(_, credential)| credential).collect()
    }
}

/// Host and path of a key, without scheme and API version.
fn clean(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path
        .strip_prefix("v1/")
        .or_else(|| path.strip_prefix("v2/"))
        .unwrap_or(if matches!(path, "v1" | "v2") {
            ""
        } else {
            path
        });
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        host.to_owned()
    } else {
        format!("{host}/{path}")
    }
}

fn matches(key: &str, target: &str) -> bool {
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let (key_name, key_port) = split_port(key_host);
    let (name, port) = split_port(host);
    let labels: Vec<&str> = name.split('.').collect();
    let globs: Vec<&str> = key_name.split('.').collect();
    key_port == port
        && labels.len() == globs.len()
        && globs
            .iter()
            .zip(&labels)
            .all(|(glob, label)| glob_matches(glob, label))
        && path.starts_with(key_path)
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// `*` stands for any run of characters within one label.
fn glob_matches(glob: &str, label: &str) -> bool {
    let Some((first, rest)) = glob.split_once('*') else {
        return glob == label;
    };
    let Some(left) = label.strip_prefix(first) else {
        return false;
    };
    (0..=left.len())
        .filter(|at| left.is_char_boundary(*at))
        .any(|at| glob_matches(rest, &left[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(keys: &[&str], image: &str) -> Vec<String> {
        let mut ring = Keyring::default();
        for (i, key) in keys.iter().enumerate() {
            ring.add(key, format!("{i}"));
        }
        let image = ImageRef::parse(image).unwrap();
        ring.matching(&image).into_iter().cloned().collect()
    }

    #[test]
    fn the_most_specific_key_comes_first_and_rotation_keeps_the_order() {
        let keys = ["r.test", "r.test/team", "r.test", "other.test"];
        assert_eq!(tried(&keys, "r.test/team/app:1"), ["1", "0", "2"]);
        assert_eq!(tried(&keys, "r.test/else/app:1"), ["0", "2"]);
    }

    #[test]
    fn ports_must_be_equal_and_a_path_is_a_plain_prefix() {
        assert!(tried(&["r.test"], "r.test:5000/app").is_empty());
        assert!(tried(&["r.test:5000"], "r.test/app").is_empty());
        assert_eq!(tried(&["r.test:5000/foo"], "r.test:5000/foobar:1"), ["0"]);
    }

    #[test]
    fn a_star_stands_for_part_of_one_label() {
        assert_eq!(tried(&["*.example.com"], "eu.example.com/app"), ["0"]);
        assert_eq!(tried(&["a*b.example.com"], "axxb.example.com/app"), ["0"]);
        assert!(tried(&["*.example.com"], "a.b.example.com/app").is_empty());
        assert!(tried(&["*.example.com"], "example.com/app").is_empty());
    }

    #[test]
    fn scheme_and_api_version_of_a_key_do_not_count() {
        assert_eq!(tried(&["https://r.test/v2/"], "r.test/app"), ["0"]);
        assert_eq!(tried(&["http://r.test/v1/team"], "r.test/team/app"), ["0"]);
    }

    #[test]
    fn docker_hub_falls_back_to_its_index() {
        assert_eq!(tried(&["https://index.docker.io/v1/"], "nginx"), ["0"]);
        assert_eq!(tried(&["docker.io", "index.docker.io"], "team/app"), ["0"]);
        assert!(tried(&["index.docker.io"], "r.test/app").is_empty());
    }
}
