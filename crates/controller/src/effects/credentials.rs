//! Pull secrets, read when a batch needs them. Only what matches an image goes to its node.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use kubefledged_engine::CredentialScope;
use kubefledged_image::credentials::Keyring;
use kubefledged_proto::puller::Credential;
use serde::Deserialize;
use tokio::sync::Mutex;

/// How long a look-up is good for.
const FRESH: Duration = Duration::from_secs(60);

/// What the secrets of a scope hold.
#[derive(Default)]
pub struct Resolved {
    /// Credentials by registry.
    pub keyring: Keyring<Credential>,
    /// Secrets that do not exist.
    pub missing: Vec<String>,
}

/// See the module.
pub struct Credentials {
    client: Client,
    // One look-up in flight: a wave over thousands of nodes asks for the same few secrets.
    cache: Mutex<BTreeMap<CredentialScope, (Instant, Arc<Resolved>)>>,
}

impl Credentials {
    /// Reads by this client.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            cache: Mutex::default(),
        }
    }

    /// The credentials of a scope.
    ///
    /// # Errors
    /// The API server did not answer, or forbids it. A missing Secret is no error.
    pub async fn resolve(&self, scope: &CredentialScope) -> Result<Arc<Resolved>, kube::Error> {
        if scope.secrets.is_empty() {
            return Ok(Arc::default());
        }
        let mut cache = self.cache.lock().await;
        cache.retain(|_, (at, _)| at.elapsed() < FRESH);
        if let Some((_, resolved)) = cache.get(scope) {
            return Ok(resolved.clone());
        }
        let resolved = Arc::new(self.read(scope).await?);
        cache.insert(scope.clone(), (Instant::now(), resolved.clone()));
        Ok(resolved)
    }

    async fn read(&self, scope: &CredentialScope) -> Result<Resolved, kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &scope.namespace);
        let mut resolved = Resolved::default();
        for name in scope.secrets.iter() {
            let Some(secret) = api.get_opt(name).await? else {
                resolved.missing.push(name.clone());
                continue;
            };
            if let Err(error) = add(&mut resolved.keyring, &secret) {
                tracing::warn!(
                    namespace = &*scope.namespace,
                    secret = name,
                    error,
                    "cannot use this pull secret"
                );
            }
        }
        Ok(resolved)
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: HashMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

/// Adds the entries of a Secret of one of the two docker types. The error never quotes content.
fn add(keyring: &mut Keyring<Credential>, secret: &Secret) -> Result<(), &'static str> {
    let data = |key: &str| {
        secret
            .data
            .as_ref()?
            .get(key)
            .map(|bytes| bytes.0.as_slice())
    };
    let auths = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            let json = data(".dockerconfigjson").ok_or("key .dockerconfigjson is missing")?;
            serde_json::from_slice::<DockerConfig>(json)
                .map_err(|_| "key .dockerconfigjson is no docker config")?
                .auths
        }
        Some("kubernetes.io/dockercfg") => {
            let json = data(".dockercfg").ok_or("key .dockercfg is missing")?;
            serde_json::from_slice(json).map_err(|_| "key .dockercfg is no docker config")?
        }
        _ => {
            return Err(
                "it must be of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg",
            );
        }
    };
    // The order within one key is kept, across keys it is the keyring's.
    for (registry, entry) in auths.into_iter().collect::<BTreeMap<_, _>>() {
        let (username, password) = user_and_password(entry)?;
        let credential = Credential {
            username,
            password,
            ..Credential::default()
        };
        keyring.add(&registry, credential);
    }
    Ok(())
}

/// `auth` wins over username and password, as in the kubelet.
fn user_and_password(entry: Entry) -> Result<(String, String), &'static str> {
    if entry.auth.is_empty() {
        return Ok((entry.username, entry.password));
    }
    let decoded = STANDARD
        .decode(entry.auth.trim())
        .map_err(|_| "an auth is no base64")?;
    let text = String::from_utf8(decoded).map_err(|_| "an auth is no text")?;
    let (username, password) = text.split_once(':').ok_or("an auth has no colon")?;
    Ok((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use kubefledged_image::ImageRef;

    use super::*;

    fn secret(type_: &str, key: &str, content: &str) -> Secret {
        serde_json::from_value(serde_json::json!({
            "type": type_, "data": {key: STANDARD.encode(content)},
        }))
        .unwrap()
    }

    fn users(secret: &Secret, image: &str) -> Result<Vec<String>, &'static str> {
        let mut keyring = Keyring::default();
        add(&mut keyring, secret)?;
        let image = ImageRef::parse(image).unwrap();
        Ok(keyring
            .matching(&image)
            .into_iter()
            .map(|c| format!("{}:{}", c.username, c.password))
            .collect())
    }

    #[test]
    fn both_docker_types_are_read_and_auth_wins() {
        let auth = STANDARD.encode("u:p:q");
        let config = format!(
            r#"{{"auths":{{"r.test:5001":{{"auth":"{auth}","username":"x"}},"other.test":{{"username":"y","password":"z"}}}}}}"#
        );
        let json = secret(
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            &config,
        );
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
    fn a_malformed_secret_is_named_without_its_content() {
        let bad = secret(
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            "s3cret",
        );
        assert_eq!(
            users(&bad, "a"),
            Err("key .dockerconfigjson is no docker config")
        );
        let opaque = secret("Opaque", "x", "s3cret");
        assert!(
            users(&opaque, "a")
                .unwrap_err()
                .contains("dockerconfigjson")
        );
    }
}
