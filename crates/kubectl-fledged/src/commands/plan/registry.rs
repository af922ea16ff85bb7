//! Sizes of images, from the manifests of their registries.

use std::collections::BTreeMap;

use docker_credential::DockerCredential;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kubefledged_api_types::ImageCacheSpec;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    manifest::{ImageIndexEntry, OciImageManifest, OciManifest},
    secrets::RegistryAuth,
};

use super::Wanted;
use crate::{access::Access, exit::chain};

/// Requests to registries at the same time: few enough for any of them.
const AT_ONCE: usize = 4;

/// The layers of an image, with its configuration, by digest: their sizes in bytes.
pub type Layers = BTreeMap<String, u64>;

/// What is known of each image on each platform, or why nothing is.
pub type Sizes = BTreeMap<(String, String), Result<Layers, String>>;

/// Access to registries.
pub struct Registries {
    client: Client,
    /// Docker configs of pull secrets, as they are stored.
    secrets: Vec<Vec<u8>>,
}

/// Docker configs of the pull secrets of a spec, as far as the user may read them.
pub async fn secrets(access: &Access, namespace: &str, spec: &ImageCacheSpec) -> Vec<Vec<u8>> {
    let api: Api<Secret> = Api::namespaced(access.client.clone(), namespace);
    let mut configs = Vec::new();
    for secret in &spec.image_pull_secrets {
        let Ok(Some(secret)) = api.get_opt(&secret.name).await else {
            continue;
        };
        let config = secret.data.unwrap_or_default().remove(".dockerconfigjson");
        configs.extend(config.map(|config| config.0));
    }
    configs
}

impl Registries {
    /// Uses plain HTTP for these hosts.
    pub fn new(plain_http: &[String], secrets: Vec<Vec<u8>>) -> Self {
        // Whoever has chosen one before has chosen the same: there is no other in this program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain_http.to_vec()),
            ..ClientConfig::default()
        };
        Self {
            client: Client::new(config),
            secrets,
        }
    }

    /// Asks for all images.
    pub async fn sizes(&self, images: &Wanted) -> Sizes {
        let asked = stream::iter(images.clone()).map(async |(image, architecture)| {
            let layers = self.layers(&image, &architecture).await;
            ((image, architecture), layers)
        });
        asked.buffer_unordered(AT_ONCE).collect().await
    }

    async fn layers(&self, image: &str, architecture: &str) -> Result<Layers, String> {
        let reference: Reference = image.parse().map_err(|error| format!("{image}: {error}"))?;
        let auth = self.auth(reference.resolve_registry());
        let asked = self.client.pull_manifest(&reference, &auth).await;
        let (manifest, _) = asked.map_err(|error| chain(&error))?;
        match manifest {
            OciManifest::Image(manifest) => Ok(layers(&manifest)),
            OciManifest::ImageIndex(index) => {
                let digest = choose(&index.manifests, architecture);
                let digest =
                    digest.ok_or_else(|| format!("it has no build for linux/{architecture}"))?;
                let reference = reference.clone_with_digest(digest.to_owned());
                let asked = self.client.pull_image_manifest(&reference, &auth).await;
                let (manifest, _) = asked.map_err(|error| chain(&error))?;
                Ok(layers(&manifest))
            }
        }
    }

    /// The login for a registry: of a pull secret, as the pull would use it, or of the user's docker config.
    fn auth(&self, registry: &str) -> RegistryAuth {
        let host = if registry == "index.docker.io" {
            "https://index.docker.io/v1/"
        } else {
            registry
        };
        let stored = self.secrets.iter().find_map(|config| {
            docker_credential::get_credential_from_reader(config.as_slice(), host).ok()
        });
        match stored.or_else(|| docker_credential::get_credential(host).ok()) {
            Some(DockerCredential::UsernamePassword(user, password)) => {
                RegistryAuth::Basic(user, password)
            }
            // An identity token is exchanged for another one by a protocol that the client does not speak.
            Some(DockerCredential::IdentityToken(_)) | None => RegistryAuth::Anonymous,
        }
    }
}

/// What a pull fetches: the layers, each once, and the configuration.
fn layers(manifest: &OciImageManifest) -> Layers {
    let blobs = manifest.layers.iter().chain([&manifest.config]);
    let blobs = blobs.map(|blob| (blob.digest.clone(), u64::try_from(blob.size).unwrap_or(0)));
    blobs.collect()
}

/// The image of an index for Linux on a processor; a node whose processor is not known gets the first one.
fn choose<'a>(entries: &'a [ImageIndexEntry], architecture: &str) -> Option<&'a str> {
    let mut linux = entries.iter().filter_map(|entry| {
        let platform = entry.platform.as_ref()?;
        let known = platform.architecture.to_string();
        (platform.os.to_string() == "linux").then_some((entry, known))
    });
    let chosen = linux.find(|(_, known)| architecture.is_empty() || known == architecture);
    chosen.map(|(entry, _)| entry.digest.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_an_index_the_nodes_processor_is_chosen() {
        let entry = |architecture: &str, digest: &str| json!({"mediaType": "m", "digest": digest, "size": 1, "platform": {"architecture": architecture, "os": "linux"}});
        let entries = json!([entry("amd64", "sha256:a"), entry("arm64", "sha256:b")]);
        let entries: Vec<ImageIndexEntry> = serde_json::from_value(entries).expect("entries");
        assert_eq!(choose(&entries, "arm64"), Some("sha256:b"));
        assert_eq!(choose(&entries, "riscv64"), None);
    }

    #[test]
    fn a_layer_that_comes_twice_is_fetched_once() {
        let blob =
            |digest: &str, size: u64| json!({"mediaType": "m", "digest": digest, "size": size});
        let manifest = json!({"schemaVersion": 2, "config": blob("c", 7), "layers": [blob("a", 100), blob("a", 100)]});
        let manifest: OciImageManifest = serde_json::from_value(manifest).expect("a manifest");
        assert_eq!(layers(&manifest).values().sum::<u64>(), 107);
    }

    #[test]
    fn a_login_is_taken_from_the_pull_secret() {
        let config = json!({"auths": {"r.test:5000": {"auth": "ZGVtbzpzZWNyZXQ="}}}).to_string();
        let registries = Registries::new(&[], vec![config.into_bytes()]);
        let RegistryAuth::Basic(user, password) = registries.auth("r.test:5000") else {
            unreachable!("it has a login");
        };
        assert_eq!((user.as_str(), password.as_str()), ("demo", "secret"));
    }
}
