//! What a pull secret holds, read as the kubelet reads it. No error quotes content.

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig},
    },
};
use kubefledged_image::credentials::Keyring;
use kubefledged_proto::puller::Credential;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Docker writes padding; people's scripts do not always.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The part of a Secret that is read. Lean, and parsed here: the client would log the text of an
/// answer that it cannot parse.
#[derive(Deserialize)]
pub struct PullSecret {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(default)]
    data: BTreeMap<String, Zeroizing<String>>,
}

type Auths = BTreeMap<String, Entry>;

#[derive(Deserialize)]
struct DockerConfig {
    auths: Auths,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: Zeroizing<String>,
    password: Zeroizing<String>,
    auth: Zeroizing<String>,
}

impl PullSecret {
    /// Adds the entries of a Secret of one of the two docker types, all of them or none.
    pub fn add_to(&self, keyring: &mut Keyring<Credential>) -> Result<(), &'static str> {
        let mut logins = Vec::new();
        // The order within one key is kept, across keys it is the keyring's.
        for (registry, entry) in self.auths()? {
            logins.push((registry, entry.login()?));
        }
        for (registry, login) in logins {
            keyring.add(&registry, login);
        }
        Ok(())
    }

    fn auths(&self) -> Result<Auths, &'static str> {
        match self.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => {
                let json = self.key(".dockerconfigjson", "key .dockerconfigjson is missing")?;
                let config: DockerConfig = serde_json::from_slice(&json)
                    .map_err(|_| "key .dockerconfigjson is no docker config with auths")?;
                Ok(config.auths)
            }
            Some("kubernetes.io/dockercfg") => {
                let json = self.key(".dockercfg", "key .dockercfg is missing")?;
                serde_json::from_slice(&json).map_err(|_| "key .dockercfg is no docker config")
            }
            _ => {
                Err("it must be of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg")
            }
        }
    }

    fn key(&self, name: &str, missing: &'static str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        let text = self.data.get(name).ok_or(missing)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes
            .map(Zeroizing::new)
            .map_err(|_| "its data is no base64")
    }
}

impl Entry {
    /// `auth` wins over username and password, as in the kubelet.
    fn login(&self) -> Result<Credential, &'static str> {
        let Self {
            username,
            password,
            auth,
        } = self;
        if auth.is_empty() {
            return Ok(Credential::login(username, password));
        }
        let decoded = BASE64
            .decode(auth.trim())
            .map_err(|_| "an auth is no base64")?;
        let decoded = Zeroizing::new(decoded);
        let text = std::str::from_utf8(&decoded).map_err(|_| "an auth is no text")?;
        let (username, password) = text.split_once(':').ok_or("an auth has no colon")?;
        Ok(Credential::login(username, password.trim_end_matches('\0')))
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use kubefledged_image::ImageRef;

    use super::*;

    fn secret(type_: &str, key: &str, content: &str) -> PullSecret {
        serde_json::from_value(serde_json::json!({
            "type": type_, "data": {key: STANDARD.encode(content)},
        }))
        .unwrap()
    }

    fn config(content: &str) -> PullSecret {
        secret(
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            content,
        )
    }

    fn users(secret: &PullSecret, image: &str) -> Result<Vec<String>, &'static str> {
        let mut keyring = Keyring::default();
        secret.add_to(&mut keyring)?;
        let image = ImageRef::parse(image).unwrap();
        let matching = keyring.matching(&image).into_iter();
        Ok(matching
            .map(|c| format!("{}:{}", c.username, c.password))
            .collect())
    }

    #[test]
    fn both_docker_types_are_read_and_auth_wins() {
        let auth = STANDARD.encode("u:p:q");
        let json = config(&format!(
            r#"{{"auths":{{"r.test:5001":{{"auth":"{auth}","username":"x"}},"other.test":{{"username":"y","password":"z","email":"e"}}}}}}"#
        ));
        assert_eq!(users(&json, "r.test:5001/a:1").unwrap(), ["u:p:q"]);
        assert_eq!(users(&json, "other.test/a:1").unwrap(), ["y:z"]);
        assert!(users(&json, "third.test/a:1").unwrap().is_empty());
        let old = secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            r#"{"r.test":{"username":"a","password":"b"}}"#,
        );
        assert_eq!(users(&old, "r.test/a:1").unwrap(), ["a:b"]);
    }

    #[test]
    fn an_auth_may_come_without_padding() {
        let auth = STANDARD_NO_PAD.encode("us:p");
        assert!(!auth.len().is_multiple_of(4), "{auth}");
        let json = config(&format!(r#"{{"auths":{{"r.test":{{"auth":"{auth}"}}}}}}"#));
        assert_eq!(users(&json, "r.test/a:1").unwrap(), ["us:p"]);
    }

    #[test]
    fn a_secret_that_cannot_be_used_says_why_and_never_what_it_holds() {
        let auth = |auth: &str| config(&format!(r#"{{"auths":{{"r.test":{{"auth":"{auth}"}}}}}}"#));
        for (secret, why) in [
            (
                config("s3cret"),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (
                config(r#"{"r.test":{"password":"s3cret"}}"#),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (
                config(r#"{"auths":{"r.test":"s3cret"}}"#),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (auth("s3cret!"), "an auth is no base64"),
            (auth(&STANDARD.encode("s3cret")), "an auth has no colon"),
            (auth(&STANDARD.encode(b"s3cret\xff:")), "an auth is no text"),
            (
                secret("Opaque", "x", "s3cret"),
                "it must be of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg",
            ),
            (
                secret("kubernetes.io/dockercfg", ".dockerconfigjson", "{}"),
                "key .dockercfg is missing",
            ),
        ] {
            assert_eq!(users(&secret, "r.test/a"), Err(why));
        }
    }

    #[test]
    fn one_bad_entry_spoils_its_whole_secret_as_in_the_kubelet() {
        let json =
            config(r#"{"auths":{"r.test":{"username":"a","password":"b"},"x.test":{"auth":"!"}}}"#);
        let mut keyring = Keyring::default();
        assert!(json.add_to(&mut keyring).is_err());
        assert!(
            keyring
                .matching(&ImageRef::parse("r.test/a").unwrap())
                .is_empty()
        );
    }
}
