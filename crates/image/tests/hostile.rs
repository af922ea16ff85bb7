//! Whatever somebody writes as an image name, or as a key in a docker config. `make fuzz` tries a
//! million of each.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

use kubefledged_image::{ImageRef, Keyring};
use proptest::prelude::*;

/// Letters, what separates the parts of a name, white space, control characters, what a shell or a
/// terminal takes for a command, letters that are no ASCII, and text from right to left.
const ANYTHING: &str = "[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{7f}\u{85}\u{a0}\u{2028}\u{202e}\u{feff}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\äſK漢😀-]{0,60}";

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

/// A name that may be right, and then some of its characters changed.
fn nearly_right() -> impl Strategy<Value = String> {
    let host = like(
        "(|localhost/|[a-z]{1,9}\\.test(:[0-9]{1,6})?/|\\[[0-9a-f:]{2,9}\\]:5/|[A-Z]{3}:1/|docker.io/|index.docker.io/)",
    );
    let path = like("[a-z0-9]{1,9}((/|\\.|_|__|--?)[a-z0-9]{1,9}){0,4}");
    let tag = like("(|:[A-Za-z0-9_][A-Za-z0-9_.-]{0,130})");
    let digest = like(
        "(|@sha256:[0-9a-f]{64}|@sha512:[0-9a-f]{128}|@[a-z]{1,5}(\\+[a-z]{1,3})?:[0-9a-fA-F]{30,40})",
    );
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), like(ANYTHING)), 0..3);
    (host, path, tag, digest, changes).prop_map(|(host, path, tag, digest, changes)| {
        let mut text: Vec<char> = format!("{host}{path}{tag}{digest}").chars().collect();
        for (at, put) in changes {
            let at = at.index(text.len() + 1);
            let end = (at + put.len() % 2).min(text.len());
            text.splice(at..end, put.chars().take(2));
        }
        text.into_iter().collect()
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![1 => like(ANYTHING), 4 => nearly_right(), 1 => any::<String>()]
}

/// What everybody who is handed a parsed name relies on.
fn is_harmless(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "./:@_-+[]".contains(c);
    !text.is_empty() && text.len() <= 1024 && text.chars().all(word) && !text.starts_with('-')
}

/// The host and the port of a key, found without the parser under test: what stands between the scheme and
/// the user on one side, and the path or the query on the other. No escape stands for a character that the
/// host of an image may have, so that none is decoded.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://");
    let rest = rest.or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    // A port without digits is none.
    host.strip_suffix(':').unwrap_or(host)
}

/// The name of an image, and a key that has its host somewhere or is about anything else.
fn name_and_key() -> impl Strategy<Value = (String, String)> {
    let before = like("(https?://)?(|[a-z]|[a-z]\\.|[a-z]@|[a-z]/|[a-z]\\?|\\.|/|@|:)");
    let after = like("(|/|:|:[0-9]|[a-z]|\\.[a-z]|@[a-z]|/[a-z0-9]|/v1/|\\?[a-z]|%2e|%40)");
    let other = prop_oneof![like(ANYTHING), nearly_right()];
    (nearly_right(), before, after, other, 0..4_u8).prop_map(
        |(name, before, after, other, pick)| {
            let host = ImageRef::parse(&name).map(|image| image.registry().to_owned());
            match host {
                Ok(host) if pick > 0 => (name, format!("{before}{host}{after}")),
                _ => (name, other),
            }
        },
    )
}

proptest! {
    #[test]
    fn a_name_that_parses_is_harmless_and_means_the_same_however_it_is_written(name in name()) {
        let Ok(image) = ImageRef::parse(&name) else { return Ok(()) };
        prop_assert!(is_harmless(&name), "{name:?}");
        prop_assert_eq!(image.to_string(), name);
        let normalized = image.normalized();
        for other in [&normalized, &image.runtime_name()] {
            prop_assert!(is_harmless(other), "{other:?}");
            let again = ImageRef::parse(other);
            let again = again.map(|again| again.normalized());
            prop_assert_eq!(again.as_ref(), Ok(&normalized), "{}", other);
        }
        prop_assert!(image.repository().len() <= 255 && !image.registry().contains('/'));
    }

    /// A refusal goes into logs, statuses and terminals: it never quotes.
    #[test]
    fn a_name_that_does_not_parse_is_not_quoted(name in like("\u{1b}[0-9]{5}[a-z]{0,9}")) {
        let error = ImageRef::parse(&name).unwrap_err().to_string();
        prop_assert!(error.is_ascii() && !error.contains(char::is_control), "{error:?}");
        prop_assert!(!error.contains(&name[1..6]));
    }

    /// Nothing but the key's own host is shown the credential, whatever the key looks like.
    #[test]
    fn a_key_matches_no_image_of_another_host((name, key) in name_and_key()) {
        let Ok(image) = ImageRef::parse(&name) else { return Ok(()) };
        let keyring: Keyring<()> = [(&key, ())].into_iter().collect();
        if keyring.matching(&image).is_empty() {
            return Ok(());
        }
        // A key with a pattern has its own tests.
        if key.contains(['*', '?', '[', '\\', '#']) {
            return Ok(());
        }
        let host = host_of(&key);
        let hub = image.registry() == "docker.io" && host == "index.docker.io";
        prop_assert!(host == image.registry() || hub, "{key:?} matches {name:?}");
    }
}
