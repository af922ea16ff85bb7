//! Whatever a Secret holds. `make fuzz` tries a million.

use base64::engine::general_purpose::STANDARD;
use kubefledged_image::ImageRef;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// No error may hold it.
const SECRET: &str = "hunter2";
const ANYTHING: &str = "(hunter2)?[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{202e}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\ä漢😀-]{0,20}";

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => like(ANYTHING).prop_map(Value::from),
        3 => like(ANYTHING).prop_map(|text| Value::from(STANDARD.encode(text))),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    let key = prop_oneof![
        6 => like("(auths|auth|username|password|email|r\\.test)"),
        1 => like(ANYTHING),
    ];
    leaf.prop_recursive(4, 16, 4, move |inner| {
        prop_oneof![
            5 => proptest::collection::btree_map(key.clone(), inner.clone(), 0..4).prop_map(|map| json!(map)),
            1 => proptest::collection::vec(inner, 0..3).prop_map(Value::from),
        ]
    })
}

/// A config that is one, as bytes, or those bytes with some of them lost or others put in.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let entry = proptest::collection::btree_map(like("(auth|username|password)"), value(), 0..4);
    let auths = proptest::collection::btree_map(like(ANYTHING), entry, 0..3).boxed();
    let config = prop_oneof![
        2 => auths.clone().prop_map(|auths| json!({ "auths": auths }).to_string().into_bytes()),
        1 => auths.prop_map(|auths| json!(auths).to_string().into_bytes()),
        1 => value().prop_map(|value| value.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..50),
    ];
    (
        config,
        any::<prop::sample::Index>(),
        proptest::option::weighted(0.3, any::<u8>()),
    )
        .prop_map(|(mut config, at, put)| {
            if let Some(put) = put {
                let at = at.index(config.len() + 1);
                if put < 128 {
                    config.truncate(at);
                } else {
                    config.insert(at, put);
                }
            }
            config
        })
}

fn secret(kind: u8, content: &[u8]) -> PullSecret {
    let (type_, key) = match kind {
        0 => ("kubernetes.io/dockercfg", ".dockercfg"),
        1 => ("Opaque", ".dockerconfigjson"),
        _ => ("kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
    };
    let data = json!({"type": type_, "data": {key: STANDARD.encode(content)}});
    serde_json::from_value(data).unwrap()
}

fn type_() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!("kubernetes.io/dockerconfigjson")),
        Just(json!("kubernetes.io/dockercfg")),
        value(),
    ]
}

proptest! {
    #[test]
    fn a_secret_is_used_or_refused_without_a_word_of_it(kind in 0_u8..4, content in content()) {
        let mut keyring = Keyring::default();
        if let Err(error) = secret(kind, &content).add_to(&mut keyring) {
            prop_assert!(!error.contains(SECRET));
            let image = ImageRef::parse("r.test/a:1").unwrap();
            prop_assert!(keyring.matching(&image).is_empty(), "all of its entries or none");
        }
    }

    /// What Docker would write down is what the registry is shown, whatever a password is made of.
    #[test]
    fn a_login_arrives_as_it_was_written(user in like("[^:]{0,20}"), password in any::<String>(), split: bool) {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let entry = if split {
            json!({"username": user, "password": password})
        } else {
            json!({ "auth": auth })
        };
        let config = json!({"auths": {"https://r.test/v1/": entry}}).to_string();
        let mut keyring = Keyring::default();
        secret(2, config.as_bytes()).add_to(&mut keyring).unwrap();
        let found = keyring.matching(&ImageRef::parse("r.test/team/a:1").unwrap());
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!((&found[0].username, &found[0].password), (&user, &password));
    }

    /// The API server's answer itself, with anything in the place of its type and its data.
    #[test]
    fn an_answer_without_the_key_of_its_type_adds_no_login(type_ in type_(), data in value()) {
        let answer = json!({"type": type_, "data": data});
        if let Ok(secret) = serde_json::from_value::<PullSecret>(answer) {
            let mut keyring = Keyring::default();
            let error = secret.add_to(&mut keyring).unwrap_err();
            prop_assert!(!error.contains(SECRET));
            let image = ImageRef::parse("r.test/a:1").unwrap();
            prop_assert!(keyring.matching(&image).is_empty());
        }
    }
}
