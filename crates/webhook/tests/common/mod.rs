//! An API server for one webhook, and connections to the webhook.

// The lint knows test functions, not their helpers.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::client::Body;
use kubefledged_testkit::{Ca, Leaf, Usage};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

pub const HOST: &str = "kubefledged-webhook-server.kube-fledged.svc";
pub const SECRET: &str = "kubefledged-webhook-server-tls";
pub const CONFIGURATION: &str = "kubefledged-webhook-server";

/// A Secret, and the CA that signed the certificate in it.
pub fn signed(version: &str) -> (Secret, Ca) {
    let ca = Ca::default();
    let Leaf { certificate, key } = ca.issue(&[HOST], Usage::Server);
    let data = [("tls.crt", certificate), ("tls.key", key)]
        .map(|(name, text)| (name.to_owned(), ByteString(text.into())));
    let mut secret = Secret {
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    };
    secret.metadata.name = Some(SECRET.to_owned());
    secret.metadata.namespace = Some("kube-fledged".to_owned());
    secret.metadata.resource_version = Some(version.to_owned());
    (secret, ca)
}

/// A configuration that publishes these CAs.
pub fn publishing(cas: &[&Ca]) -> Value {
    let bundle: String = cas.iter().map(|ca| ca.pem()).collect();
    json!({
        "metadata": {"name": CONFIGURATION, "resourceVersion": "1"},
        "webhooks": [{
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": ByteString(bundle.into())},
        }],
    })
}

/// An API server that lists no Secret, and by its watch shows one more for each permit. It has one
/// configuration, which does not change.
pub fn apiserver<B: Send + 'static>(
    secrets: Vec<Secret>,
    configuration: Value,
    permits: Arc<Semaphore>,
) -> impl Service<
    Request<B>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ Sync
+ 'static {
    let secrets = Arc::new(Mutex::new(secrets.into_iter()));
    tower::service_fn(move |request: Request<B>| {
        let (secrets, permits) = (secrets.clone(), permits.clone());
        let configuration = configuration.clone();
        let uri = request.uri().clone();
        async move {
            let query = uri.query().unwrap_or_default();
            let watches = query.contains("watch=true");
            let list = |items: Vec<Value>| {
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                       "items": items})
                .to_string()
            };
            // Without the selectors the resourceNames of our roles would not match.
            let selects =
                |name: &str| query.contains(&format!("fieldSelector=metadata.name%3D{name}"));
            let body = match uri.path() {
                "/api/v1/namespaces/kube-fledged/secrets" if selects(SECRET) && watches => {
                    permits.acquire().await.unwrap().forget();
                    let secret = secrets.lock().unwrap().next().unwrap();
                    json!({"type": "MODIFIED", "object": secret}).to_string() + "\n"
                }
                "/api/v1/namespaces/kube-fledged/secrets" if selects(SECRET) => list(vec![]),
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
                    if selects(CONFIGURATION) =>
                {
                    if watches {
                        std::future::pending::<()>().await;
                    }
                    list(vec![configuration])
                }
                path => unreachable!("{path}?{query}"),
            };
            Ok(Response::new(Body::from(body.into_bytes())))
        }
    })
}

/// Connects to the port for the API server as one that trusts this CA.
pub async fn connect(address: SocketAddr, trusted: &Ca) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.der())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    // As API servers do.
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}
