//! The webhook's certificate: a CA and a leaf in Secrets, and the CA in the webhook configuration.
//! The leader looks once a minute and mends what is not as it should be.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration,
    api::core::v1::Secret, jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Of the CA.
pub const CA_SECRET: &str = "kubefledged-ca";
/// Of the webhook's leaf.
pub const WEBHOOK_SECRET: &str = "kubefledged-webhook-server-tls";
/// Field manager of caBundle alone.
const FIELD_MANAGER: &str = "kubefledged-ca";
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);
const DAY: i64 = 24 * 3600;
const CA_LIFE: i64 = 365 * DAY;
const LEAF_LIFE: i64 = 30 * DAY;
/// Clocks of nodes differ.
const BACKDATE: i64 = 3600;
/// When a certificate was made and when it ends, in seconds since the epoch, beside the certificate.
const NOT_AFTER: &str = "kubefledged.io/not-after";

/// What is kept right.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Of the Secrets and the Service.
    pub namespace: String,
    /// The webhook's Service.
    pub service: String,
    /// Empty: no webhook.
    pub configuration: String,
}

/// Looks while this process leads.
pub async fn run(
    client: Client,
    certificates: Certificates,
    mut leading: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    loop {
        let wait = if *leading.borrow_and_update() {
            match certificates.ensure(&client).await {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the webhook's certificate right, trying again");
                    RETRY
                }
            }
        } else {
            LOOK
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

impl Certificates {
    async fn ensure(&self, client: &Client) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let now = Timestamp::now().as_second();
        let (ca, fresh_ca) = match usable(&secrets, CA_SECRET, now, CA_LIFE).await? {
            Some(pair) => (pair, false),
            None => (store(&secrets, CA_SECRET, make_ca(now)?).await?, true),
        };
        let leaf = usable(&secrets, WEBHOOK_SECRET, now, LEAF_LIFE).await?;
        if fresh_ca || leaf.is_none_or(|leaf| leaf.ca != ca.ca) {
            let leaf = make_leaf(&ca, &self.names(), now)?;
            store(&secrets, WEBHOOK_SECRET, leaf).await?;
        }
        self.publish(client, &ca).await
    }

    fn names(&self) -> Vec<String> {
        let (service, namespace) = (&self.service, &self.namespace);
        vec![
            service.clone(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
        ]
    }

    /// Writes caBundle by server-side apply, if the configuration is there and has another one.
    async fn publish(&self, client: &Client, ca: &Pair) -> anyhow::Result<()> {
        if self.configuration.is_empty() {
            return Ok(());
        }
        let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        let Some(found) = api.get_opt(&self.configuration).await? else {
            return Ok(());
        };
        let webhooks = found.webhooks.unwrap_or_default();
        let right =
            |bundle: &Option<ByteString>| bundle.as_ref().is_some_and(|b| b.0 == ca.ca.as_bytes());
        if webhooks
            .iter()
            .all(|webhook| right(&webhook.client_config.ca_bundle))
        {
            return Ok(());
        }
        let webhooks: Vec<_> = webhooks
            .iter()
            .map(|webhook| {
                serde_json::json!({
                    "name": webhook.name,
                    "clientConfig": {"caBundle": ByteString(ca.ca.as_bytes().to_vec())},
                    // Required by the type; applied as they are.
                    "sideEffects": webhook.side_effects,
                    "admissionReviewVersions": webhook.admission_review_versions,
                })
            })
            .collect();
        let patch = serde_json::json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.configuration},
            "webhooks": webhooks,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&self.configuration, &params, &Patch::Apply(&patch))
            .await?;
        tracing::info!(configuration = self.configuration, "caBundle written");
        Ok(())
    }
}

/// A certificate, its key, and the CA that it chains to, all PEM.
struct Pair {
    certificate: String,
    key: String,
    ca: String,
    not_after: i64,
}

/// The pair in a Secret, unless two thirds of its life are over.
async fn usable(
    secrets: &Api<Secret>,
    name: &str,
    now: i64,
    life: i64,
) -> Result<Option<Pair>, kube::Error> {
    let Some(secret) = secrets.get_opt(name).await? else {
        return Ok(None);
    };
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let annotations = secret.metadata.annotations.as_ref();
    let not_after = annotations.and_then(|a| a.get(NOT_AFTER)?.parse().ok());
    let pair = (|| {
        Some(Pair {
            certificate: text("tls.crt")?,
            key: text("tls.key")?,
            ca: text("ca.crt")?,
            not_after: not_after?,
        })
    })();
    Ok(pair.filter(|pair| now < pair.not_after - life / 3))
}

async fn store(secrets: &Api<Secret>, name: &str, pair: Pair) -> Result<Pair, kube::Error> {
    let data: BTreeMap<String, ByteString> = [
        ("tls.crt", &pair.certificate),
        ("tls.key", &pair.key),
        ("ca.crt", &pair.ca),
    ]
    .into_iter()
    .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
    .collect();
    let found = secrets.get_opt(name).await?;
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some(BTreeMap::from([(
                NOT_AFTER.to_owned(),
                pair.not_after.to_string(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    let params = PostParams::default();
    if let Some(found) = found {
        secret.metadata.resource_version = found.metadata.resource_version;
        secrets.replace(name, &params, &secret).await?;
    } else {
        secrets.create(&params, &secret).await?;
    }
    tracing::info!(secret = name, "certificate made");
    Ok(pair)
}

fn params(name: &str, not_before: i64, not_after: i64) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = moment(not_before)?;
    params.not_after = moment(not_after)?;
    Ok(params)
}

fn moment(seconds: i64) -> anyhow::Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(seconds)?)
}

fn make_ca(now: i64) -> anyhow::Result<Pair> {
    let not_after = now + CA_LIFE;
    let mut params = params("kubefledged CA", now - BACKDATE, not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok(Pair {
        ca: certificate.clone(),
        certificate,
        key: key.serialize_pem(),
        not_after,
    })
}

fn make_leaf(ca: &Pair, names: &[String], now: i64) -> anyhow::Result<Pair> {
    // A leaf never outlives its CA.
    let not_after = (now + LEAF_LIFE).min(ca.not_after);
    let mut params = params(&names[0], now - BACKDATE, not_after)?;
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_pem(&ca.ca, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair {
        certificate,
        key: key.serialize_pem(),
        ca: ca.ca.clone(),
        not_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_chains_to_its_ca_and_never_outlives_it() {
        let ca = make_ca(1_700_000_000).unwrap();
        let names = vec!["svc".to_owned(), "svc.ns.svc".to_owned()];
        let leaf = make_leaf(&ca, &names, ca.not_after - DAY).unwrap();
        assert_eq!(leaf.not_after, ca.not_after);
        assert_eq!(leaf.ca, ca.certificate);
        assert!(leaf.certificate.contains("BEGIN CERTIFICATE"));
    }
}
