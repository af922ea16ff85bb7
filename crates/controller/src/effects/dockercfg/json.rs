//! A docker config as Go's `encoding/json` reads it: names of fields in any letter case, null for
//! nothing, of a field that is written twice the last one, and text that is no UTF-8 mended.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use zeroize::Zeroizing;

/// Entries by registry. Null is an entry without a login.
pub type Auths = BTreeMap<String, Option<Entry>>;

/// What `.dockerconfigjson` holds.
#[derive(Default)]
pub struct DockerConfig {
    /// Empty where there is none.
    pub auths: Auths,
}

/// What is known of one registry.
#[derive(Default)]
pub struct Entry {
    pub username: Zeroizing<String>,
    pub password: Zeroizing<String>,
    pub auth: Zeroizing<String>,
}

impl<'de> Deserialize<'de> for DockerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = DockerConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a docker config")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DockerConfig, A::Error> {
                let mut config = DockerConfig::default();
                while let Some(name) = map.next_key::<String>()? {
                    match folded(&name).as_str() {
                        // Written twice, the second is put into the first.
                        "auths" => match map.next_value::<Option<Auths>>()? {
                            Some(more) => config.auths.extend(more),
                            None => config.auths.clear(),
                        },
                        "httpheaders" => {
                            map.next_value::<Option<BTreeMap<String, Option<String>>>>()?;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(config)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an entry of a docker config")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut entry = Entry::default();
                let mut email = Zeroizing::default();
                while let Some(name) = map.next_key::<String>()? {
                    let field = match folded(&name).as_str() {
                        "username" => &mut entry.username,
                        "password" => &mut entry.password,
                        "auth" => &mut entry.auth,
                        // Not used, and a text all the same.
                        "email" => &mut email,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    // Null leaves a field as it was.
                    if let Some(text) = map.next_value::<Option<Zeroizing<String>>>()? {
                        *field = text;
                    }
                }
                Ok(entry)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// In lower case, with the two letters outside ASCII that Go folds into it: a long s, and the
/// kelvin sign.
fn folded(name: &str) -> String {
    let letters = name.chars().map(|letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    });
    letters.collect()
}

/// The text with a replacement character for each byte that is no UTF-8, and for each escaped half
/// of a surrogate pair without the other one: serde refuses both.
pub fn mended(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len()));
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for _ in chunk.invalid() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let mut whole = Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text.as_str();
    // A backslash means something in strings only; elsewhere it is an error however it goes on.
    while let Some(at) = rest.find('\\') {
        whole.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match (
            surrogate(rest),
            surrogate(rest.get(6..).unwrap_or_default()),
        ) {
            (Some(Half::High), Some(Half::Low)) => 12,
            (Some(_), _) => {
                whole.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        whole.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    whole.push_str(rest);
    whole
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    High,
    Low,
}

/// Whether a text begins with an escaped half of a surrogate pair.
fn surrogate(text: &str) -> Option<Half> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Half::High),
        0xdc00..=0xdfff => Some(Half::Low),
        _ => None,
    }
}
