//! The whole process: it waits for its certificate, serves with it, takes a new one under way and
//! drains at the end. The apiserver is a function.

// The lint knows test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use common::{CONFIGURATION, SECRET, apiserver, connect, publishing, signed};
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, client::Body};
use kubefledged_testkit::Ca;
use kubefledged_webhook::{
    app::{self, Config},
    certificate::Names,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

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
        let service = apiserver(secrets, configuration, permits.clone());
        let client = Client::new(service, "kube-fledged");
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
        connect(self.tls, trusted).await
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
