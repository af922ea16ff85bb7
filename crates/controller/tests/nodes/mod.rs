//! Real pullers on loopback, each with a runtime of its own.

use std::sync::Arc;

use clap::Parser as _;
use kubefledged_engine::{NodeName, Puller};
use kubefledged_process::tls::{Connector, Failures, Identity, names};
use kubefledged_puller::{app, args::Args};
use kubefledged_testkit::{Ca, FakeRuntime, Removal, SecretDirectory, Usage, eventually};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const NAMESPACE: &str = "kube-fledged";

/// A puller and the runtime of its node.
pub struct Node {
    pub name: NodeName,
    pub puller: Puller,
    pub runtime: FakeRuntime,
    _certificates: SecretDirectory,
    pub task: JoinHandle<anyhow::Result<()>>,
}

/// A node whose puller listens, though it may not present its certificate yet.
pub async fn node(name: &str, ca: &Ca, shutdown: &CancellationToken) -> Node {
    node_at(0, name, &format!("pod-{name}"), ca, shutdown).await
}

/// The same, at this port and in this pod.
pub async fn node_at(
    port: u16,
    name: &str,
    pod: &str,
    ca: &Ca,
    shutdown: &CancellationToken,
) -> Node {
    let certificates = SecretDirectory::new().unwrap();
    let leaf = ca.issue(&[&names::puller(NAMESPACE)], Usage::Server);
    certificates.write(&leaf, &[ca]).unwrap();
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    let args = [
        "kubefledged-puller".to_owned(),
        format!("--listen-port={port}"),
        "--http-port=0".to_owned(),
        "--debug-address=off".to_owned(),
        format!("--node-name={name}"),
        format!("--pod-uid={pod}"),
        format!("--tls-dir={}", certificates.path().display()),
        format!("--cri-socket-path={}", runtime.socket().display()),
    ];
    // Whoever got a port that was ours for a moment gives it back.
    let build = async || app::build(Args::try_parse_from(&args).unwrap()).await.ok();
    let bound = eventually("the puller listens", build).await;
    let port = bound.grpc_address.port();
    Node {
        name: NodeName(name.into()),
        puller: Puller {
            instance: pod.into(),
            address: ([127, 0, 0, 1], port).into(),
        },
        runtime,
        _certificates: certificates,
        task: tokio::spawn(bound.run(shutdown.clone())),
    }
}

/// Connects as the controller.
pub fn connector(ca: &Ca) -> Connector {
    let leaf = ca.issue(&[&names::controller(NAMESPACE)], Usage::Client);
    let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
    let identity = Identity::from_pem(certificate, key, ca.pem().as_bytes());
    let (_, current) = watch::channel(Some(Arc::new(identity.unwrap().client().unwrap())));
    Connector::new(current, names::puller(NAMESPACE), Failures::default()).unwrap()
}
