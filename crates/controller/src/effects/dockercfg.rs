//! What a pull secret holds, read as the kubelet reads it. No error quotes content.

mod json;

use std::collections::{BTreeMap, BTreeSet};

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

use json::{Auths, DockerConfig, Entry};

/// Docker writes padding; people's scripts do not always. Bits that belong to no byte are nobody's
/// concern, as in Go.
const fn base64(padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(padding)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&alphabet::STANDARD, config)
}

const PADDED: GeneralPurpose = base64(DecodePaddingMode::RequireCanonical);
const UNPADDED: GeneralPurpose = base64(DecodePaddingMode::RequireNone);
const EITHER: GeneralPurpose = base64(DecodePaddingMode::Indifferent);

/// Longest login, and most bytes of logins for one image. Tokens of clouds have some 4 KiB.
pub const MOST_LOGIN: usize = 64 << 10;

/// The part of a Secret that is read. Lean, and parsed here: the client would log the text of an
/// answer that it cannot parse.
#[derive(Deserialize)]
pub struct PullSecret {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(default)]
    data: Option<BTreeMap<String, Zeroizing<String>>>,
}

impl PullSecret {
    /// Adds the entries of a Secret of one of the two docker types. The answer says why entries were
    /// passed over, each reason once: the others count.
    ///
    /// # Errors
    /// It cannot be read; none of its entries counts, as in the kubelet.
    pub fn add_to(
        &self,
        keyring: &mut Keyring<Credential>,
    ) -> Result<BTreeSet<&'static str>, &'static str> {
        let mut logins = Vec::new();
        // The order within one key is kept, across keys it is the keyring's.
        for (registry, entry) in self.auths()? {
            logins.push((registry, entry.unwrap_or_default().login()?));
        }
        let mut passed_over = BTreeSet::new();
        for (registry, login) in logins {
            let added = login.map(|login| keyring.add(&registry, login));
            match added {
                Ok(true) => {}
                Ok(false) => drop(passed_over.insert("a key is no address of a registry")),
                Err(why) => drop(passed_over.insert(why)),
            }
        }
        Ok(passed_over)
    }

    fn auths(&self) -> Result<Auths, &'static str> {
        match self.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => {
                let json = self.key(".dockerconfigjson", "key .dockerconfigjson is missing")?;
                if json.is_empty() {
                    return Ok(Auths::default());
                }
                let config: Option<DockerConfig> = serde_json::from_str(&json)
                    .map_err(|_| "key .dockerconfigjson is no docker config with auths")?;
                Ok(config.unwrap_or_default().auths)
            }
            Some("kubernetes.io/dockercfg") => {
                let json = self.key(".dockercfg", "key .dockercfg is missing")?;
                if json.is_empty() {
                    return Ok(Auths::default());
                }
                let auths: Option<Auths> = serde_json::from_str(&json)
                    .map_err(|_| "key .dockercfg is no docker config")?;
                Ok(auths.unwrap_or_default())
            }
            _ => {
                Err("it must be of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg")
            }
        }
    }

    fn key(&self, name: &str, missing: &'static str) -> Result<Zeroizing<String>, &'static str> {
        let text = self.data.as_ref().and_then(|data| data.get(name));
        let bytes = EITHER.decode(text.ok_or(missing)?.as_bytes());
        let bytes = bytes.map(Zeroizing::new);
        Ok(json::mended(&bytes.map_err(|_| "its data is no base64")?))
    }
}

/// What the registry is shown, or why no runtime could show it.
type Login = Result<Credential, &'static str>;

impl Entry {
    /// `auth` wins over username and password, as in the kubelet.
    fn login(&self) -> Result<Login, &'static str> {
        let Self {
            username,
            password,
            auth,
        } = self;
        if auth.is_empty() {
            return Ok(bounded(username, password));
        }
        let decoded = decoded(auth).ok_or("an auth is no base64")?;
        let colon = decoded.iter().position(|byte| *byte == b':');
        let (username, password) = decoded.split_at(colon.ok_or("an auth has no colon")?);
        let text = |bytes| std::str::from_utf8(bytes).ok();
        Ok(match text(username).zip(text(&password[1..])) {
            Some((username, password)) => bounded(username, password),
            // The kubelet reads it; what it sends to the runtime after that must be text.
            None => Err("an auth is no UTF-8 text, and a runtime takes no other"),
        })
    }
}

fn bounded(username: &str, password: &str) -> Login {
    if username.len() + password.len() > MOST_LOGIN {
        return Err("a login is longer than 64 KiB");
    }
    Ok(Credential::login(username, password))
}

/// Line ends within are skipped, as `base64` without `-w0` writes them.
fn decoded(auth: &str) -> Option<Zeroizing<Vec<u8>>> {
    let padded = auth.trim().ends_with('=');
    let mut text = Zeroizing::new(String::with_capacity(auth.len()));
    text.extend(auth.chars().filter(|letter| !matches!(letter, '\r' | '\n')));
    let engine = if padded { PADDED } else { UNPADDED };
    engine.decode(text.as_bytes()).ok().map(Zeroizing::new)
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
                config(r#"{"auths":["s3cret"]}"#),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (
                config(r#"{"auths":{"r.test":{"password":5}}}"#),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (
                config(r#"{"auths":{"r.test":"s3cret"}}"#),
                "key .dockerconfigjson is no docker config with auths",
            ),
            (auth("s3cret!"), "an auth is no base64"),
            (auth(&STANDARD.encode("s3cret")), "an auth has no colon"),
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
    fn an_auth_that_base64_wrapped_at_76_columns_is_read() {
        let auth = STANDARD.encode(format!("user:{}", "p".repeat(200)));
        let lines: Vec<&str> = auth
            .as_bytes()
            .chunks(76)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        for end in ["\\n", "\\r\\n"] {
            let auth = lines.join(end) + end;
            let json = config(&format!(r#"{{"auths":{{"r.test":{{"auth":"{auth}"}}}}}}"#));
            let expected = format!("user:{}", "p".repeat(200));
            assert_eq!(users(&json, "r.test/a:1").unwrap(), [expected]);
        }
        let blanks = config(r#"{"auths":{"r.test":{"auth":" dTpw"}}}"#);
        assert_eq!(users(&blanks, "r.test/a:1"), Err("an auth is no base64"));
    }

    #[test]
    fn null_is_nothing_and_names_of_fields_have_any_letter_case() {
        for (content, logins) in [
            (
                r#"{"auths":{"r.test":{"username":"u","password":"p","auth":null,"email":null}}}"#,
                &["u:p"][..],
            ),
            (
                r#"{"auths":{"r.test":{"username":null,"password":null,"auth":"dTpw"}}}"#,
                &["u:p"],
            ),
            (r#"{"auths":{"r.test":null}}"#, &[":"]),
            (
                r#"{"AUTHS":{"r.test":{"UserName":"u","PASSWORD":"p"}}}"#,
                &["u:p"],
            ),
            (
                r#"{"auths":{"r.test":{"username":"u","paſſword":"p"}}}"#,
                &["u:p"],
            ),
            (
                r#"{"auths":{"r.test":{"username":"a","username":"u","password":"p"}}}"#,
                &["u:p"],
            ),
            (
                r#"{"auths":{"x.test":{}},"auths":{"r.test":{"auth":"dTpw"}}}"#,
                &["u:p"],
            ),
            (r#"{"auths":{"r.test":{"auth":"dTpx"}}}"#, &["u:q"]),
            // The last two bits of the last letter belong to no byte.
            (r#"{"auths":{"r.test":{"auth":"dTpwcR=="}}}"#, &["u:pq"]),
            (
                r#"{"auths":{"r.test":{"username":"\ud800","password":"\ud83d\ude00"}}}"#,
                &["\u{fffd}:\u{1f600}"],
            ),
            (r#"{"auths":null}"#, &[]),
            (r#"{"auths":{"r.test":{"auth":"dTpw"}},"auths":null}"#, &[]),
            (r#"{"credsStore":"desktop"}"#, &[]),
            ("{}", &[]),
            ("null", &[]),
        ] {
            assert_eq!(
                users(&config(content), "r.test/a:1").unwrap(),
                logins,
                "{content}"
            );
        }
    }

    /// The API server stores no such Secret today; the kubelet passes over it without a word.
    #[test]
    fn a_key_without_content_has_no_logins() {
        assert_eq!(users(&config(""), "r.test/a:1"), Ok(Vec::new()));
        let old = secret("kubernetes.io/dockercfg", ".dockercfg", "");
        assert_eq!(users(&old, "r.test/a:1"), Ok(Vec::new()));
    }

    #[test]
    fn an_entry_that_no_runtime_could_use_is_passed_over_and_named() {
        let latin1 = STANDARD.encode(b"us\xe9r:p");
        let long = "p".repeat(MOST_LOGIN);
        for (key, entry, why) in [
            (
                "x.test",
                format!(r#"{{"auth":"{latin1}"}}"#),
                "an auth is no UTF-8 text, and a runtime takes no other",
            ),
            (
                "x.test",
                format!(r#"{{"username":"u","password":"{long}"}}"#),
                "a login is longer than 64 KiB",
            ),
            (
                "x.t[e]st",
                r#"{"auth":"dTpw"}"#.to_owned(),
                "a key is no address of a registry",
            ),
        ] {
            let json = config(&format!(
                r#"{{"auths":{{"{key}":{entry},"r.test":{{"auth":"dTpw"}}}}}}"#
            ));
            let mut keyring = Keyring::default();
            assert_eq!(json.add_to(&mut keyring), Ok([why].into()));
            assert_eq!(users(&json, "r.test/a:1").unwrap(), ["u:p"]);
        }
    }

    #[test]
    fn text_that_is_no_utf8_is_mended_as_in_go() {
        assert_eq!(*json::mended(b"\xe2\x82x"), "\u{fffd}\u{fffd}x");
        assert_eq!(*json::mended(br"\ud800\u0041"), r"\ufffd\u0041");
        assert_eq!(
            *json::mended(br"\ud83d\ude00\\ud800"),
            r"\ud83d\ude00\\ud800"
        );
        assert_eq!(*json::mended(br"\"), r"\");
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
