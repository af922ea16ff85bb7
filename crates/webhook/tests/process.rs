//! The whole process: it waits for its certificate, serves with it, takes a new one under way and
//! drains at the end. The apiserver is a function.

// The lint knows test functions, not their helpers.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Client, client::Body};
use kubefledged_testkit::{Ca, Leaf, Usage};
use kubefledged_webhook::{
    app::{self, Config},
    certificate::Names,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const HOST: &str = "kubefledged-webhook-server.kube-fledged.svc";
const SECRET: &str = "kubefledged-webhook-server-tls";
const CONFIGURATION: &str = "kubefledged-webhook-server";
const PATIENCE: Duration = Duration::from_secs(10);

/// A Secret, and the CA that signed the certificate in it.
fn signed(version: &str) -> (Secret, Ca) {
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
fn publishing(cas: &[&Ca]) -> Value {
    let bundle: String = cas.iter().map(|ca| ca.pem()).collect();
    json!({
        "metadata": {"name": CONFIGURATION, "resourceVersion": "1"},
        "webhooks": [{
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": ByteString(bundle.into())},
        }],
    })
}

/// An apiserver that lists no Secret, and by its watch shows one more for each permit. It has one
/// configuration, which does not change.
fn apiserver(secrets: Vec<Secret>, configuration: Value, permits: Arc<Semaphore>) -> Client {
    let secrets = Arc::new(std::sync::Mutex::new(secrets.into_iter()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (secrets, permits) = (secrets.clone(), permits.clone());
        let configuration = configuration.clone();
        async move {
            let query = request.uri().query().unwrap_or_default();
            let watches = query.contains("watch=true");
            let list = |items: Vec<Value>| {
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                       "items": items})
                .to_string()
            };
            // Without the selectors the resourceNames of our roles would not match.
            let selects =
                |name: &str| query.contains(&format!("fieldSelector=metadata.name%3D{name}"));
            let body = match request.uri().path() {
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
            Ok::<_, Infallible>(Response::new(Body::from(body.into_bytes())))
        }
    });
    Client::new(service, "kube-fledged")
}

struct Process {
    tls: SocketAddr,
    http: SocketAddr,
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    fn start(secrets: Vec<Secret>, configuration: Value) -> Self {
        let permits = Arc::new(Semaphore::new(0));
        let client = apiserver(secrets, configuration, permits.clone());
        Self::start_with(client, permits)
    }

    fn start_with(client: Client, permits: Arc<Semaphore>) -> Self {
        let config = Config {
            rules: kubefledged_webhook::admission::Rules {
                most_images: 100_000,
                access: kubefledged_api_types::WorkloadAccess::default(),
            },
            names: Names {
                namespace: "kube-fledged".to_owned(),
                secret: SECRET.to_owned(),
                configuration: CONFIGURATION.to_owned(),
            },
            listen_port: 0,
            http_port: 0,
            shutdown_delay: Duration::ZERO,
        };
        let bound = app::build(config, client).unwrap();
        let shutdown = CancellationToken::new();
        Self {
            tls: loopback(bound.tls_address().unwrap()),
            http: loopback(bound.http_address().unwrap()),
            permits,
            running: tokio::spawn(bound.run(shutdown.clone())),
            shutdown,
        }
    }

    async fn connect(&self, trusted: &Ca) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(trusted.der())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.tls).await?;
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// Connects again until the server has the certificate.
    async fn served(&self, trusted: &Ca) -> TlsStream<TcpStream> {
        timeout(PATIENCE, async {
            loop {
                if let Ok(stream) = self.connect(trusted).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap()
    }

    async fn readyz_says(&self, what: &str) {
        timeout(PATIENCE, async {
            while !self.readyz().await.contains(what) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    async fn readyz(&self) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }
}

fn loopback(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

/// Sends a request over HTTP/1.1 and reads the head of the answer.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> String {
    let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n{{");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test]
async fn it_is_ready_with_its_first_certificate_and_takes_the_next_without_a_restart() {
    let (first, first_ca) = signed("2");
    let (second, second_ca) = signed("3");
    let configuration = publishing(&[&first_ca, &second_ca]);
    let process = Process::start(vec![first, second], configuration);

    assert!(process.connect(&first_ca).await.is_err());
    assert!(process.readyz().await.starts_with("HTTP/1.1 503"));

    process.permits.add_permits(1);
    let mut open = process.served(&first_ca).await;
    process.readyz_says("HTTP/1.1 200").await;

    process.permits.add_permits(1);
    drop(process.served(&second_ca).await);
    assert!(process.connect(&first_ca).await.is_err());
    let answer = ask(&mut open, "/validate-image-cache").await;
    assert!(
        answer.starts_with("HTTP/1.1 400"),
        "the old connection goes on: {answer}"
    );

    process.shutdown.cancel();
    timeout(PATIENCE, process.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_certificate_that_the_api_server_would_not_take_is_served_but_not_ready() {
    let (secret, ca) = signed("2");
    let process = Process::start(vec![secret], publishing(&[&Ca::default()]));
    process.permits.add_permits(1);
    drop(process.served(&ca).await);
    process
        .readyz_says("configuration: caBundle of kubefledged-webhook-server does not match")
        .await;
    process.running.abort();
}

#[tokio::test]
async fn a_request_under_way_is_answered_after_shutdown_was_asked_for() {
    let (secret, ca) = signed("2");
    let process = Process::start(vec![secret], publishing(&[&ca]));
    process.permits.add_permits(1);
    let mut stream = process.served(&ca).await;
    stream
        .write_all(
            b"POST /validate-image-cache HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
              content-length: 2\r\nexpect: 100-continue\r\n\r\n",
        )
        .await
        .unwrap();
    // Sent when the handler asks for the body: the request is under way.
    let mut head = [0; 25];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    process.shutdown.cancel();
    timeout(PATIENCE, async {
        while TcpStream::connect(process.tls).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    stream.write_all(b"{}").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"));
    timeout(PATIENCE, process.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn an_apiserver_that_refuses_the_secret_is_named_by_readyz() {
    let service = tower::service_fn(|_: Request<Body>| async {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 403,
            "status": "Failure", "reason": "Forbidden", "message": "secrets is forbidden"});
        let mut response = Response::new(Body::from(status.to_string().into_bytes()));
        *response.status_mut() = StatusCode::FORBIDDEN;
        Ok::<_, Infallible>(response)
    });
    let client = Client::new(service, "kube-fledged");
    let process = Process::start_with(client, Arc::new(Semaphore::new(0)));
    process.readyz_says("secrets is forbidden").await;
    process.running.abort();
}
