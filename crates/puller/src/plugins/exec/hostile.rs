//! Whatever a credential provider answers. `make fuzz` tries a million.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
/// No error may hold it.
const SECRET: &str = "hunter2";
const ANYTHING: &str = "(hunter2)?[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{202e}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\ä漢😀-]{0,20}";

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => like(ANYTHING).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!({"password": SECRET})),
    ]
}

/// Mostly the right value.
fn mostly(right: &'static str) -> impl Strategy<Value = Value> {
    prop_oneof![9 => Just(Value::from(right)), 1 => text()]
}

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let login = (text(), text())
        .prop_map(|(username, password)| json!({"username": username, "password": password}));
    let login = prop_oneof![5 => login, 1 => text()];
    let auth =
        proptest::collection::btree_map(like(ANYTHING), login, 0..3).prop_map(|auth| json!(auth));
    let duration = prop_oneof![
        Just(Value::Null),
        like("[0-9]{1,20}(\\.[0-9]{1,20})?(ns|ms|s|m|h)").prop_map(Value::from),
        text()
    ];
    let kind = prop_oneof![mostly("Image"), mostly("Registry"), mostly("Global")];
    let right = (
        mostly(V1),
        mostly("CredentialProviderResponse"),
        kind,
        duration,
        prop_oneof![9 => auth, 1 => text()],
    );
    let right = right.prop_map(|(version, kind, key, duration, auth)| {
        let answer = json!({"apiVersion": version, "kind": kind, "cacheKeyType": key, "cacheDuration": duration, "auth": auth});
        answer.to_string().into_bytes()
    });
    let right = right.boxed();
    let cut = (right.clone(), any::<prop::sample::Index>()).prop_map(|(mut answer, at)| {
        answer.truncate(at.index(answer.len()));
        answer
    });
    prop_oneof![8 => right, 1 => cut, 1 => proptest::collection::vec(any::<u8>(), 0..40)]
}

/// It goes into the status of the ImageCache, into logs and onto terminals.
fn can_be_shown(text: &str) -> bool {
    text.len() <= 1024 && !text.contains(char::is_control)
}

proptest! {
    #[test]
    fn an_answer_is_understood_or_refused_in_a_sentence_without_a_secret(answer in answer()) {
        match understand(&answer, V1) {
            Ok(Answer { cache_duration, .. }) => {
                let now = std::time::Instant::now();
                let until = now.checked_add(cache_duration.unwrap_or_default());
                prop_assert!(until.is_some());
            }
            Err(error) => {
                let error = format!("{error:#}");
                prop_assert!(!error.contains(SECRET), "{error:?}");
                prop_assert!(can_be_shown(&error), "{error:?}");
            }
        }
    }

    #[test]
    fn what_a_provider_complains_of_can_be_shown(complaint in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let quoted = tail(&complaint);
        prop_assert!(quoted.chars().count() <= QUOTED && !quoted.contains(char::is_control), "{quoted:?}");
    }
}
