//! The Secrets with certificates, of type kubernetes.io/tls, with the trusted CAs as ca.crt.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource as _,
    api::{ObjectMeta, PostParams},
};
use kubefledged_process::tls::{Identity, keys};
use zeroize::Zeroizing;

use super::{
    parsed::{Certificate, Pair},
    rotation::Authority,
};

/// Annotation on the CA's Secret that requests a new CA. It is removed when the rotation begins.
pub const ROTATE: &str = "kubefledged.io/rotate-ca";
const PREVIOUS_CERTIFICATE: &str = "previous.crt";
const PREVIOUS_KEY: &str = "previous.key";

/// Reads and writes the Secrets by name.
pub struct Secrets {
    api: Api<Secret>,
    deployments: Api<Deployment>,
    deployment: String,
}

/// A Secret and its content.
pub struct Found {
    secret: Option<Secret>,
}

impl Secrets {
    /// The created Secrets are owned by this Deployment and are deleted with it.
    pub fn new(client: Client, namespace: &str, deployment: String) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            deployments: Api::namespaced(client, namespace),
            deployment,
        }
    }

    /// Reads the Secret.
    pub async fn read(&self, name: &str) -> Result<Found, kube::Error> {
        let secret = self.api.get_opt(name).await?;
        Ok(Found { secret })
    }

    /// Writes the data unless the Secret already contains them. Returns whether it wrote. Fails if the
    /// Secret changed since it was read.
    pub async fn write(
        &self,
        name: &str,
        found: &Found,
        data: BTreeMap<String, ByteString>,
        without_annotation: Option<&str>,
    ) -> Result<bool, kube::Error> {
        let params = PostParams::default();
        let Some(before) = &found.secret else {
            let secret = Secret {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    owner_references: self.owner().await.map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                type_: Some("kubernetes.io/tls".to_owned()),
                data: Some(data),
                ..Secret::default()
            };
            self.api.create(&params, &secret).await?;
            tracing::info!(secret = name, "certificate Secret created");
            return Ok(true);
        };
        let annotations = before.metadata.annotations.as_ref();
        let annotated = without_annotation
            .filter(|key| annotations.is_some_and(|annotations| annotations.contains_key(*key)));
        if before.data.as_ref() == Some(&data) && annotated.is_none() {
            return Ok(false);
        }
        let mut secret = before.clone();
        secret.data = Some(data);
        if let (Some(key), Some(annotations)) = (annotated, &mut secret.metadata.annotations) {
            annotations.remove(key);
        }
        self.api.replace(name, &params, &secret).await?;
        tracing::info!(secret = name, "certificate Secret written");
        Ok(true)
    }

    /// Returns `None` if the controller runs outside the cluster or may not read the Deployment. The
    /// Secrets then stay after an uninstall.
    async fn owner(&self) -> Option<OwnerReference> {
        match self.deployments.get_opt(&self.deployment).await {
            Ok(found) => found?.owner_ref(&()),
            Err(error) => {
                let deployment = self.deployment.as_str();
                tracing::warn!(deployment, %error, "cannot read the Deployment: the Secrets get no owner and stay after an uninstall");
                None
            }
        }
    }
}

impl Found {
    fn text(&self, key: &str) -> Option<String> {
        let bytes = self.secret.as_ref()?.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    }

    /// Returns whether the Secret exists.
    pub fn exists(&self) -> bool {
        self.secret.is_some()
    }

    /// Returns a reference for Events on the Secret.
    pub fn uid(&self) -> Option<String> {
        self.secret.as_ref()?.metadata.uid.clone()
    }

    /// Returns certificate and key, if they can be used together.
    pub fn pair(&self) -> anyhow::Result<Pair> {
        self.pair_at(keys::CERTIFICATE, keys::KEY)
    }

    fn pair_at(&self, certificate: &'static str, key: &'static str) -> anyhow::Result<Pair> {
        use anyhow::Context as _;

        let pem = self.text(certificate).context("no certificate")?;
        let key = Zeroizing::new(self.text(key).context("no private key")?);
        Identity::from_pem(pem.as_bytes(), key.as_bytes(), b"")?;
        Ok(Pair {
            certificate: Certificate::parse(&pem)?,
            key,
        })
    }

    /// Returns the trusted CAs.
    pub fn bundle(&self) -> String {
        self.text(keys::CA).unwrap_or_default()
    }

    /// Somebody asked for a new CA.
    pub fn rotation_is_requested(&self) -> bool {
        let annotations = self
            .secret
            .as_ref()
            .map(|s| s.metadata.annotations.as_ref());
        annotations
            .flatten()
            .is_some_and(|annotations| annotations.contains_key(ROTATE))
    }

    /// Returns the CAs in the CA's Secret.
    pub fn authority(&self, now: i64) -> anyhow::Result<Authority> {
        let newest = self.pair()?;
        let previous = self.pair_at(PREVIOUS_CERTIFICATE, PREVIOUS_KEY).ok();
        let mut old = Certificate::parse_all(&self.bundle()).unwrap_or_default();
        old.retain(|ca| {
            let signs = |pair: &Pair| pair.certificate.fingerprint() == ca.fingerprint();
            !signs(&newest) && !previous.as_ref().is_some_and(signs)
        });
        let authority = Authority {
            newest,
            previous,
            old,
        };
        Ok(authority.pruned(now))
    }
}

/// Returns the desired data of the CA's Secret.
pub fn of_authority(authority: &Authority) -> BTreeMap<String, ByteString> {
    let mut data = of_leaf(&authority.newest, &authority.bundle());
    if let Some(previous) = &authority.previous {
        data.extend([
            entry(PREVIOUS_CERTIFICATE, &previous.certificate.pem),
            entry(PREVIOUS_KEY, &previous.key),
        ]);
    }
    data
}

/// Returns the desired data of a certificate's Secret.
pub fn of_leaf(leaf: &Pair, bundle: &str) -> BTreeMap<String, ByteString> {
    BTreeMap::from([
        entry(keys::CERTIFICATE, &leaf.certificate.pem),
        entry(keys::KEY, &leaf.key),
        entry(keys::CA, bundle),
    ])
}

fn entry(key: &str, text: &str) -> (String, ByteString) {
    (key.to_owned(), ByteString(text.as_bytes().to_vec()))
}
