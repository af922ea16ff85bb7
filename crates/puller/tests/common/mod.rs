//! A whole puller beside a fake runtime, spoken to over real gRPC.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

use std::{net::SocketAddr, sync::Arc};

use clap::Parser as _;
use kubefledged_process::tls::{Connector, Failures, Identity, names};
use kubefledged_proto::puller::{
    Authority, BatchCancel, CancelPullsRequest, CheckImagesRequest, CheckImagesResponse,
    Credential, ImagePull, PullImagesRequest, PullImagesResponse, PullOutcome, PullPolicy,
    RemoveImagesRequest, RemoveOutcome, pull_images_response,
    puller_service_client::PullerServiceClient, remove_images_response,
};
use kubefledged_puller::{app, args::Args};
use kubefledged_testkit::{
    Ca, FakeRuntime, Leaf, Native, Removal, SecretDirectory, Usage, eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub const NODE: &str = "n1";
/// The default of `--namespace`.
pub const NAMESPACE: &str = "kube-fledged";

/// The installation's CA, and what the puller has mounted.
pub struct Certificates {
    pub ca: Arc<Ca>,
    pub directory: SecretDirectory,
}

impl Certificates {
    /// Of an installation that has more pullers.
    pub fn of(ca: Arc<Ca>) -> Self {
        let directory = SecretDirectory::new().unwrap();
        directory.write(&puller_leaf(&ca), &[&ca]).unwrap();
        Self { ca, directory }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::of(Arc::default())
    }
}

pub fn puller_leaf(ca: &Ca) -> Leaf {
    ca.issue(&[&names::puller(NAMESPACE)], Usage::Server)
}

pub fn controller_leaf(ca: &Ca) -> Leaf {
    ca.issue(&[&names::controller(NAMESPACE)], Usage::Client)
}

pub struct Puller {
    pub runtime: FakeRuntime,
    pub certificates: Certificates,
    pub client: PullerServiceClient<Channel>,
    pub http: SocketAddr,
    pub debug: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<anyhow::Result<()>>,
    pub grpc: u16,
}

impl Puller {
    pub async fn start(removal: Removal) -> Self {
        let runtime = FakeRuntime::start(removal).unwrap();
        let socket = runtime.socket();
        Self::beside(runtime, &["--cri-socket-path", socket.to_str().unwrap()]).await
    }

    /// Beside containerd with its own interface.
    pub async fn containerd(native: Native, more: &[&str]) -> Self {
        let runtime = FakeRuntime::containerd(native).unwrap();
        let socket = runtime.socket();
        let path = ["--cri-socket-path", socket.to_str().unwrap()];
        Self::beside(runtime, &[&path, more].concat()).await
    }

    pub async fn beside(runtime: FakeRuntime, more: &[&str]) -> Self {
        Self::on(NODE, runtime, Certificates::default(), more).await
    }

    /// The puller of this node.
    pub async fn on(
        node: &str,
        runtime: FakeRuntime,
        certificates: Certificates,
        more: &[&str],
    ) -> Self {
        let args = [
            "kubefledged-puller",
            "--node-name",
            node,
            "--pod-uid",
            "uid-1",
        ];
        let ports = [
            "--listen-port",
            "0",
            "--http-port",
            "0",
            "--debug-address",
            "127.0.0.1:0",
        ];
        let tls = ["--tls-dir", certificates.directory.path().to_str().unwrap()];
        let args = Args::try_parse_from([&args[..], &ports, &tls, more].concat()).unwrap();
        let bound = app::build(args).await.unwrap();
        let (grpc, http) = (bound.grpc_address.port(), bound.http_address);
        let debug = bound.debug_address.unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(bound.run(shutdown.clone()));
        let client = connect(grpc, &certificates.ca).await;
        Self {
            runtime,
            certificates,
            client,
            http,
            debug,
            shutdown,
            task,
            grpc,
        }
    }

    /// Another controller.
    pub async fn another_client(&self) -> PullerServiceClient<Channel> {
        connect(self.grpc, &self.certificates.ca).await
    }

    pub async fn pull(&mut self, seq: u64, images: Vec<ImagePull>) -> Pulling {
        self.pull_with(request(seq, images)).await
    }

    pub async fn pull_with(&mut self, request: PullImagesRequest) -> Pulling {
        Pulling {
            stream: self.client.pull_images(request).await.unwrap().into_inner(),
            attached: None,
        }
    }

    pub async fn remove(&mut self, seq: u64, names: &[&str]) -> Vec<RemoveOutcome> {
        let request = RemoveImagesRequest {
            authority: Some(authority(seq)),
            references: texts(names),
            ..RemoveImagesRequest::default()
        };
        let mut stream = self
            .client
            .remove_images(request)
            .await
            .unwrap()
            .into_inner();
        let mut outcomes = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            if let Some(remove_images_response::Event::Outcomes(more)) = message.event {
                outcomes.extend(more.outcomes);
            }
        }
        outcomes.sort_by_key(|outcome| outcome.index);
        outcomes
    }

    pub async fn check(&mut self, names: &[&str]) -> CheckImagesResponse {
        let request = CheckImagesRequest {
            node_name: NODE.to_owned(),
            references: texts(names),
            with_info: false,
        };
        self.client
            .check_images(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn cancel(&mut self, seq: u64, batch_id: u64) -> u32 {
        let request = CancelPullsRequest {
            authority: Some(authority(seq)),
            cancels: vec![BatchCancel {
                batch_id,
                references: Vec::new(),
            }],
        };
        let response = self.client.cancel_pulls(request).await.unwrap();
        response.into_inner().ended
    }

    /// Status line and body of a plain HTTP request.
    pub async fn get(&self, path: &str) -> (String, String) {
        get(self.http.port(), path).await
    }
}

/// Status line and body of a plain HTTP request.
pub async fn get(port: u16, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// As the controller, with a certificate of this CA.
pub async fn connect(port: u16, ca: &Ca) -> PullerServiceClient<Channel> {
    let leaf = controller_leaf(ca);
    let channel = eventually("the puller accepts connections", async || {
        dial(port, &leaf, ca).await.ok()
    });
    PullerServiceClient::new(channel.await)
}

/// As whoever has this leaf, trusting this CA.
pub async fn dial(
    port: u16,
    leaf: &Leaf,
    trusted: &Ca,
) -> Result<Channel, tonic::transport::Error> {
    let identity = Identity::from_pem(
        leaf.certificate.as_bytes(),
        leaf.key.as_bytes(),
        trusted.pem().as_bytes(),
    );
    let config = Arc::new(identity.unwrap().client().unwrap());
    let (_, current) = watch::channel(Some(config));
    let connector = Connector::new(current, names::puller(NAMESPACE), Failures::default()).unwrap();
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    // As pullers ask each other.
    let endpoint = endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20);
    endpoint.connect_with_connector(connector).await
}

/// The answers to one pull request.
pub struct Pulling {
    stream: Streaming<PullImagesResponse>,
    pub attached: Option<u32>,
}

impl Pulling {
    /// Waits until the queue has taken the request.
    pub async fn accepted(&mut self) -> u32 {
        let message = self.stream.message().await.unwrap().unwrap();
        let Some(pull_images_response::Event::Accepted(accepted)) = message.event else {
            panic!("{message:?} is not the first answer of a stream");
        };
        self.attached = Some(accepted.attached);
        accepted.attached
    }

    /// All outcomes, by index.
    pub async fn outcomes(self) -> Vec<PullOutcome> {
        self.try_outcomes().await.unwrap()
    }

    pub async fn try_outcomes(mut self) -> Result<Vec<PullOutcome>, Status> {
        let mut outcomes = Vec::new();
        while let Some(message) = self.stream.message().await? {
            if let Some(pull_images_response::Event::Outcomes(more)) = message.event {
                outcomes.extend(more.outcomes);
            }
        }
        outcomes.sort_by_key(|outcome| outcome.index);
        Ok(outcomes)
    }
}

pub fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// In term 7; the batch has the number of the request.
pub fn authority(seq: u64) -> Authority {
    Authority {
        node_name: NODE.to_owned(),
        term: 7,
        seq,
        batch_id: seq,
    }
}

pub fn request(seq: u64, images: Vec<ImagePull>) -> PullImagesRequest {
    PullImagesRequest {
        authority: Some(authority(seq)),
        images,
        ..PullImagesRequest::default()
    }
}

pub fn image(reference: &str) -> ImagePull {
    ImagePull {
        reference: reference.to_owned(),
        policy: PullPolicy::IfNotPresent.into(),
        freshness: "ImageCacheCreate".to_owned(),
        deadline_ms: 60_000,
        ..ImagePull::default()
    }
}

pub fn credential(username: &str, password: &str) -> Credential {
    Credential::login(username, password)
}
