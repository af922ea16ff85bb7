//! Reads the server's certificate from a Secret by the API and replaces it while connections are open.
//! Also checks whether the API server accepts it: a CA in the webhook's configuration must have issued
//! it.
//!
//! The leading controller, or cert-manager, writes both objects. They are watched, because a volume
//! would show a new Secret up to a minute late, and an optional volume would let the pod start without
//! it.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use kubefledged_process::{
    Guard,
    tls::{Identity, IdentityError, Served, keys},
};
use rustls_pki_types::UnixTime;
use tokio::{sync::watch, time::interval};

/// Time between two comparisons with the clock. A certificate may expire while nothing changes.
const LOOK: Duration = Duration::from_secs(60);

/// Names of the objects with certificate and configuration.
#[derive(Clone, Debug)]
pub struct Names {
    /// Namespace of the Secret.
    pub namespace: String,
    /// The Secret, of type kubernetes.io/tls.
    pub secret: String,
    /// The `ValidatingWebhookConfiguration`. Empty: it is not checked.
    pub configuration: String,
}

/// The newest certificate, and whether the API server accepts it.
pub struct Keeper {
    names: Names,
    served: watch::Sender<Option<Arc<Served>>>,
    certificate: Guard,
    published: Guard,
    identity: Option<Identity>,
    bundles: Option<Bundles>,
}

/// caBundle of each webhook.
type Bundles = Vec<Option<Vec<u8>>>;

impl Keeper {
    /// The first guard is ready as soon as there is a certificate and stays ready, because an old one is
    /// better than none. The second guard is ready while the API server accepts the certificate.
    pub fn new(
        names: Names,
        served: watch::Sender<Option<Arc<Served>>>,
        certificate: Guard,
        published: Guard,
    ) -> Self {
        certificate.set_pending("waiting for the Secret");
        let mut keeper = Self {
            names,
            served,
            certificate,
            published,
            identity: None,
            bundles: None,
        };
        keeper.judge(UnixTime::now());
        keeper
    }

    /// Watches both objects by their names. Ends only if a watch ends, which should not happen.
    pub async fn follow(self, client: Client) {
        let Names {
            namespace,
            secret,
            configuration,
        } = &self.names;
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        let secrets = watcher::watch_object(secrets, secret).default_backoff();
        if configuration.is_empty() {
            self.follow_streams(secrets, futures::stream::pending())
                .await;
        } else {
            let api = Api::<ValidatingWebhookConfiguration>::all(client);
            let configurations = watcher::watch_object(api, configuration).default_backoff();
            self.follow_streams(secrets, configurations).await;
        }
    }

    async fn follow_streams(
        mut self,
        secrets: impl Stream<Item = watcher::Result<Option<Secret>>>,
        configurations: impl Stream<Item = watcher::Result<Option<ValidatingWebhookConfiguration>>>,
    ) {
        let mut secrets = std::pin::pin!(secrets);
        let mut configurations = std::pin::pin!(configurations);
        let mut clock = interval(LOOK);
        loop {
            tokio::select! {
                // Tried again, with back-off, by the stream.
                secret = secrets.next() => match secret {
                    Some(Ok(Some(secret))) => self.offer(&secret),
                    Some(Ok(None)) => self.secret_is_gone(),
                    Some(Err(error)) => self.complain(&error),
                    None => return,
                },
                configuration = configurations.next() => match configuration {
                    Some(Ok(found)) => self.bundles = Some(bundles(found)),
                    Some(Err(error)) => tracing::warn!(%error, "cannot read the configuration"),
                    None => return,
                },
                _ = clock.tick() => {}
            }
            self.judge(UnixTime::now());
        }
    }

    /// Loads the certificate of the Secret, if it can be used.
    fn offer(&mut self, secret: &Secret) {
        let taken = identity(secret).and_then(|identity| Ok((identity.server()?, identity)));
        match taken {
            Ok((served, identity)) => {
                let serial = |served: &Option<Arc<Served>>| {
                    served.as_ref().map(|served| served.serial.clone())
                };
                if serial(&self.served.borrow()).as_ref() != Some(&served.serial) {
                    tracing::info!(serial = served.serial, "certificate loaded");
                }
                self.served.send_replace(Some(Arc::new(served)));
                self.identity = Some(identity);
                self.certificate.set_ready();
            }
            Err(error) => self.complain(&format!("Secret {}: {error}", self.names.secret)),
        }
    }

    fn complain(&self, error: &impl std::fmt::Display) {
        tracing::warn!(%error, "cannot use the new certificate");
        if self.identity.is_none() {
            self.certificate.set_pending(error.to_string());
        }
    }

    fn secret_is_gone(&self) {
        let secret = self.names.secret.as_str();
        let has_one = self.identity.is_some();
        tracing::info!(
            secret,
            has_one,
            "the Secret with the certificate does not exist"
        );
        if !has_one {
            self.certificate.set_pending(format!(
                "waiting for Secret {secret}: the leading controller writes it"
            ));
        }
    }

    /// Checks whether an API server with this configuration accepts the certificate now.
    fn judge(&mut self, now: UnixTime) {
        match self.verdict(now) {
            Ok(()) => self.published.set_ready(),
            Err(why) => self.published.set_pending(why),
        }
    }

    fn verdict(&self, now: UnixTime) -> Result<(), String> {
        let name = &self.names.configuration;
        if name.is_empty() {
            return Ok(());
        }
        let identity = self
            .identity
            .as_ref()
            .ok_or("there is no certificate yet")?;
        let bundles = self.bundles.as_ref();
        let bundles =
            bundles.ok_or_else(|| format!("waiting for ValidatingWebhookConfiguration {name}"))?;
        if bundles.is_empty() {
            return Err(format!(
                "ValidatingWebhookConfiguration {name} is not there, or has no webhook"
            ));
        }
        for bundle in bundles {
            let bundle = bundle.as_ref().ok_or_else(|| {
                format!("{name} has no caBundle: the leading controller writes it")
            })?;
            identity.is_served_under(bundle, now).map_err(|why| {
                format!("caBundle of {name} does not match the certificate: {why}")
            })?;
        }
        Ok(())
    }
}

fn identity(secret: &Secret) -> Result<Identity, IdentityError> {
    let entry = |key| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.as_slice())
            .ok_or(IdentityError::Missing(key))
    };
    Identity::from_pem(entry(keys::CERTIFICATE)?, entry(keys::KEY)?, b"")
}

fn bundles(configuration: Option<ValidatingWebhookConfiguration>) -> Bundles {
    let webhooks = configuration.and_then(|found| found.webhooks);
    let bundles = webhooks.into_iter().flatten().map(|webhook| {
        let bundle = webhook.client_config.ca_bundle.map(|bundle| bundle.0);
        bundle.filter(|bundle| !bundle.is_empty())
    });
    bundles.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::{FutureExt as _, stream};
    use k8s_openapi::ByteString;
    use kubefledged_process::{Readiness, tls::identity::certificates};
    use kubefledged_testkit::{Ca, Leaf, Usage};

    use super::*;

    fn leaf(ca: &Ca) -> Leaf {
        ca.issue(&["svc.ns.svc"], Usage::Server)
    }

    fn secret(leaf: &Leaf) -> Secret {
        let data = [("tls.crt", &leaf.certificate), ("tls.key", &leaf.key)];
        let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into())));
        Secret {
            data: Some(BTreeMap::from(data)),
            ..Secret::default()
        }
    }

    fn configuration(bundle: &str) -> ValidatingWebhookConfiguration {
        let bundle = (!bundle.is_empty()).then(|| ByteString(bundle.into()));
        serde_json::from_value(serde_json::json!({
            "metadata": {},
            "webhooks": [{
                "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"caBundle": bundle},
            }],
        }))
        .unwrap()
    }

    /// Serial of what is served, and what is pending, after both went through these states.
    fn after(
        secrets: Vec<Option<Secret>>,
        configurations: Vec<Option<ValidatingWebhookConfiguration>>,
    ) -> (Option<String>, Vec<(&'static str, String)>) {
        let readiness = Readiness::default();
        let (served, current) = watch::channel(None);
        let names = Names {
            namespace: "ns".to_owned(),
            secret: "tls".to_owned(),
            configuration: "guard".to_owned(),
        };
        let keeper = Keeper::new(
            names,
            served,
            readiness.register("certificate"),
            readiness.register("configuration"),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let secrets = stream::iter(secrets.into_iter().map(Ok)).chain(stream::pending());
            let configurations =
                stream::iter(configurations.into_iter().map(Ok)).chain(stream::pending());
            let mut following = std::pin::pin!(keeper.follow_streams(secrets, configurations));
            for _ in 0..100 {
                assert!((&mut following).now_or_never().is_none());
            }
        });
        let serial = current
            .borrow()
            .as_ref()
            .map(|served| served.serial.clone());
        (serial, readiness.pending())
    }

    fn serial(leaf: &Leaf) -> Option<String> {
        let chain = certificates(leaf.certificate.as_bytes(), "tls.crt").unwrap();
        kubefledged_process::tls::identity::serial(&chain[0]).ok()
    }

    fn why(pending: &[(&'static str, String)], name: &str) -> String {
        let found = pending.iter().find(|(other, _)| *other == name);
        found.map(|(_, why)| why.clone()).unwrap_or_default()
    }

    #[test]
    fn it_is_ready_when_the_published_ca_has_signed_the_certificate() {
        let ca = Ca::default();
        let leaf = leaf(&ca);
        let published = Some(configuration(&ca.pem()));
        let (served, pending) = after(vec![None, Some(secret(&leaf))], vec![published]);
        assert_eq!((served, pending), (serial(&leaf), vec![]));
    }

    #[test]
    fn it_is_ready_while_two_cas_are_published() {
        let (old, new) = (Ca::default(), Ca::default());
        let published = Some(configuration(&format!("{}{}", new.pem(), old.pem())));
        let (_, pending) = after(vec![Some(secret(&leaf(&old)))], vec![published]);
        assert_eq!(pending, []);
    }

    #[test]
    fn what_is_published_wrongly_or_not_at_all_is_named() {
        let (ca, other) = (Ca::default(), Ca::default());
        for (published, expected) in [
            (vec![], "waiting for ValidatingWebhookConfiguration guard"),
            (
                vec![None],
                "ValidatingWebhookConfiguration guard is not there",
            ),
            (vec![Some(configuration(""))], "guard has no caBundle"),
            (
                vec![Some(configuration("nonsense"))],
                "caBundle of guard does not match the certificate",
            ),
            (
                vec![Some(configuration(&other.pem()))],
                "caBundle of guard does not match the certificate",
            ),
            (
                vec![Some(configuration(&ca.pem())), Some(configuration(""))],
                "guard has no caBundle",
            ),
        ] {
            let (_, pending) = after(vec![Some(secret(&leaf(&ca)))], published);
            let why = why(&pending, "configuration");
            assert!(why.starts_with(expected), "{why}");
            assert_eq!(pending.len(), 1);
        }
    }

    #[test]
    fn a_certificate_for_dialing_is_none_for_serving() {
        let ca = Ca::default();
        let client = ca.issue(&["svc.ns.svc"], Usage::Client);
        let published = Some(configuration(&ca.pem()));
        let (_, pending) = after(vec![Some(secret(&client))], vec![published]);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn the_newest_certificate_is_served_and_stays_when_its_secret_breaks_or_goes() {
        let ca = Ca::default();
        let (first, second) = (leaf(&ca), leaf(&ca));
        let mut mixed = leaf(&ca);
        mixed.key = leaf(&ca).key;
        let states = vec![
            Some(secret(&first)),
            Some(secret(&second)),
            Some(secret(&mixed)),
            Some(Secret::default()),
            None,
        ];
        let (served, pending) = after(states, vec![Some(configuration(&ca.pem()))]);
        assert_eq!((served, pending), (serial(&second), vec![]));
    }

    #[test]
    fn what_keeps_a_certificate_out_is_said_by_readyz() {
        let ca = Ca::default();
        let mut mixed = leaf(&ca);
        mixed.key = leaf(&ca).key;
        let mut empty = leaf(&ca);
        empty.certificate.clear();
        for (state, expected) in [
            (None, "waiting for Secret tls"),
            (Some(Secret::default()), "Secret tls: tls.crt is missing"),
            (
                Some(secret(&empty)),
                "Secret tls: tls.crt contains no certificate",
            ),
            (
                Some(secret(&mixed)),
                "Secret tls: certificate and private key cannot be used together",
            ),
        ] {
            let (served, pending) = after(vec![state], vec![]);
            let why = why(&pending, "certificate");
            assert!(why.starts_with(expected), "{why}");
            assert_eq!(served, None);
        }
    }
}
