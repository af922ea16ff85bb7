//! The server's certificate: read from a Secret by the API, and replaced while connections run.
//!
//! The controller's leader writes the Secret. A volume would show a new one up to a minute late,
//! and an optional volume would let the pod start without; a watch does neither.

use std::{fmt, sync::Arc};

use futures::{Stream, StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use kubefledged_process::Guard;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _};
use tokio::sync::watch;

const CERTIFICATE_KEY: &str = "tls.crt";
const PRIVATE_KEY_KEY: &str = "tls.key";

/// Why a Secret gives no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key of the Secret is not there.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// What should be PEM is not.
    #[error("{0} of the Secret is no PEM: {1}")]
    Pem(&'static str, pem::Error),
    /// A chain of nothing.
    #[error("{CERTIFICATE_KEY} of the Secret holds no certificate")]
    NoCertificate,
    /// The key cannot be used, or belongs to another certificate.
    #[error("certificate and private key of the Secret cannot be used together: {0}")]
    KeyPair(#[from] rustls::Error),
}

/// Hands out the newest certificate, to each handshake anew.
#[derive(Clone)]
pub struct Resolver(watch::Receiver<Option<Arc<CertifiedKey>>>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

/// Where a new certificate is put.
pub struct Slot {
    sender: watch::Sender<Option<Arc<CertifiedKey>>>,
    guard: Guard,
}

/// A slot and the resolver that serves from it. The guard is ready as soon as there is a
/// certificate, and stays so: an old one is better than none.
pub fn slot(guard: Guard) -> (Slot, Resolver) {
    let (sender, receiver) = watch::channel(None);
    guard.set_pending("waiting for the Secret");
    (Slot { sender, guard }, Resolver(receiver))
}

impl Slot {
    /// Takes what stands in the Secret, if it can be used and is another one.
    fn offer(&self, secret: &Secret) {
        match certified_key(secret) {
            Ok(new) => {
                let replaced = self.sender.send_if_modified(|current| {
                    let same = current
                        .as_ref()
                        .is_some_and(|current| current.cert == new.cert);
                    if !same {
                        *current = Some(Arc::new(new));
                    }
                    !same
                });
                if replaced {
                    tracing::info!("certificate loaded");
                }
                self.guard.set_ready();
            }
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&self, error: &impl std::fmt::Display) {
        tracing::warn!(%error, "no new certificate");
        if self.sender.borrow().is_none() {
            self.guard.set_pending(error.to_string());
        }
    }

    fn is_gone(&self, name: &str) {
        let has_one = self.sender.borrow().is_some();
        tracing::info!(
            secret = name,
            has_one,
            "the certificate's Secret is not there"
        );
        if !has_one {
            self.guard.set_pending(format!(
                "waiting for Secret {name}: the controller's leader writes it"
            ));
        }
    }
}

/// Keeps the slot at what the Secret holds. Ends only if the watch does, which it should not.
pub async fn follow(client: Client, namespace: &str, name: &str, slot: &Slot) {
    let secrets = Api::<Secret>::namespaced(client, namespace);
    follow_stream(
        watcher::watch_object(secrets, name).default_backoff(),
        name,
        slot,
    )
    .await;
}

async fn follow_stream(
    secrets: impl Stream<Item = watcher::Result<Option<Secret>>>,
    name: &str,
    slot: &Slot,
) {
    pin_mut!(secrets);
    while let Some(next) = secrets.next().await {
        match next {
            Ok(Some(secret)) => slot.offer(&secret),
            Ok(None) => slot.is_gone(name),
            // Tried again, with back-off, by the stream.
            Err(error) => slot.complain(&error),
        }
    }
}

fn certified_key(secret: &Secret) -> Result<CertifiedKey, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(entry(secret, CERTIFICATE_KEY)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Pem(CERTIFICATE_KEY, error))?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(entry(secret, PRIVATE_KEY_KEY)?)
        .map_err(|error| CertificateError::Pem(PRIVATE_KEY_KEY, error))?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(CertifiedKey::from_der(chain, key, &provider)?)
}

fn entry<'a>(secret: &'a Secret, key: &'static str) -> Result<&'a [u8], CertificateError> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    data.map(|bytes| bytes.0.as_slice())
        .ok_or(CertificateError::Missing(key))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use futures::stream;
    use k8s_openapi::ByteString;
    use kubefledged_process::Readiness;

    use super::*;

    /// Name of a server, its Secret, and the certificate as its client's trust anchor.
    pub(crate) fn self_signed(name: &str) -> (Secret, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let secret = secret(&made.cert.pem(), &made.signing_key.serialize_pem());
        (secret, made.cert.der().clone())
    }

    fn secret(certificate: &str, key: &str) -> Secret {
        let data = [("tls.crt", certificate), ("tls.key", key)];
        let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into())));
        Secret {
            data: Some(BTreeMap::from(data)),
            ..Secret::default()
        }
    }

    /// What is served after the Secret went through these states, and whether that is ready.
    async fn after(states: Vec<Option<Secret>>) -> (Option<CertificateDer<'static>>, bool) {
        let readiness = Readiness::default();
        let (slot, resolver) = slot(readiness.register("certificate"));
        follow_stream(stream::iter(states.into_iter().map(Ok)), "tls", &slot).await;
        let served = resolver.0.borrow().as_ref().map(|key| key.cert[0].clone());
        (served, readiness.pending().is_empty())
    }

    #[tokio::test]
    async fn readiness_waits_for_a_certificate() {
        let (secret, certificate) = self_signed("a.test");
        assert_eq!(after(vec![]).await, (None, false));
        assert_eq!(after(vec![None]).await, (None, false));
        assert_eq!(
            after(vec![None, Some(secret)]).await,
            (Some(certificate), true)
        );
    }

    #[tokio::test]
    async fn the_newest_certificate_is_served() {
        let (first, _) = self_signed("a.test");
        let (second, certificate) = self_signed("a.test");
        let states = vec![Some(first), Some(second)];
        assert_eq!(after(states).await, (Some(certificate), true));
    }

    #[tokio::test]
    async fn a_secret_that_breaks_or_goes_leaves_the_certificate_in_place() {
        let (good, certificate) = self_signed("a.test");
        let states = vec![
            Some(good),
            Some(secret("", "")),
            Some(Secret::default()),
            None,
        ];
        assert_eq!(after(states).await, (Some(certificate), true));
    }

    #[tokio::test]
    async fn what_keeps_a_certificate_out_is_said_by_readyz() {
        let (a, _) = self_signed("a.test");
        let (mut mixed, _) = self_signed("a.test");
        let key = a.data.unwrap()["tls.key"].clone();
        mixed
            .data
            .as_mut()
            .unwrap()
            .insert("tls.key".to_owned(), key);
        for (secret, why) in [
            (Secret::default(), "the Secret has no tls.crt"),
            (secret("", ""), "tls.crt of the Secret holds no certificate"),
            (
                mixed,
                "certificate and private key of the Secret cannot be used together",
            ),
        ] {
            let readiness = Readiness::default();
            let (slot, _resolver) = slot(readiness.register("certificate"));
            slot.offer(&secret);
            let pending = readiness.pending();
            assert!(pending[0].1.starts_with(why), "{pending:?}");
        }
    }
}
