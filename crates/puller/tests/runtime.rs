//! Which of a node's runtimes is used: the one that runs the puller's own pod.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use std::path::{Path, PathBuf};

use clap::Parser as _;
use common::{Certificates, Puller, get, image};
use kubefledged_puller::{app, args::Args};
use kubefledged_testkit::{FakeRuntime, Removal, eventually};
use tokio_util::sync::CancellationToken;

const A: &str = "registry.test/team/a:1";
/// The UID that the tests' pullers have.
const POD: &str = "uid-1";

/// A node with containerd and CRI-O, whose sockets lie where they usually do.
struct Node {
    containerd: FakeRuntime,
    crio: FakeRuntime,
    run: PathBuf,
}

impl Node {
    fn new() -> Self {
        let containerd = FakeRuntime::start(Removal::Whole).unwrap();
        let crio = FakeRuntime::start(Removal::Name).unwrap();
        let run = containerd.directory().join("run");
        for directory in ["containerd", "k0s", "crio"] {
            std::fs::create_dir_all(run.join(directory)).unwrap();
        }
        link(&containerd, &run.join("containerd/containerd.sock"));
        link(&crio, &run.join("crio/crio.sock"));
        Self {
            containerd,
            crio,
            run,
        }
    }
}

fn link(runtime: &FakeRuntime, path: &Path) {
    std::os::unix::fs::symlink(runtime.socket(), path).unwrap();
}

#[tokio::test]
async fn the_runtime_is_found_below_the_nodes_run_directory() {
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    runtime.run_pod(POD);
    let run = runtime.directory().join("run");
    // The first candidate is a socket that nobody answers on.
    for directory in ["containerd", "crio"] {
        std::fs::create_dir_all(run.join(directory)).unwrap();
    }
    drop(std::os::unix::net::UnixListener::bind(run.join("containerd/containerd.sock")).unwrap());
    std::os::unix::fs::symlink(runtime.socket(), run.join("crio/crio.sock")).unwrap();
    let run = run.to_str().unwrap().to_owned();
    let mut puller = Puller::beside(runtime, &["--host-run-dir", &run]).await;
    let outcomes = puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(outcomes.len(), 1);
    assert!(puller.runtime.holds(A));
}

#[tokio::test]
async fn of_two_runtimes_that_answer_the_one_that_runs_our_pod_is_used() {
    let Node {
        containerd,
        crio,
        run,
    } = Node::new();
    crio.run_pod(POD);
    containerd.run_pod("another pod");
    let mut puller = Puller::beside(crio, &["--host-run-dir", run.to_str().unwrap()]).await;
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert!(puller.runtime.holds(A));
    assert!(!containerd.holds(A));
}

#[tokio::test]
async fn where_no_runtime_runs_our_pod_the_puller_is_not_ready_and_says_which_answered() {
    let node = Node::new();
    let certificates = Certificates::default();
    let tls = certificates.directory.path().to_str().unwrap();
    let run = node.run.to_str().unwrap();
    let flags = "kubefledged-puller --node-name n1 --pod-uid uid-1 --listen-port 0 --http-port 0 --debug-address off";
    let flags = flags.split(' ');
    let args = flags.chain(["--tls-dir", tls, "--host-run-dir", run]);
    let bound = app::build(Args::try_parse_from(args).unwrap())
        .await
        .unwrap();
    let port = bound.http_address.port();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(bound.run(shutdown.clone()));
    let said = eventually("it says why", async || {
        let (status, body) = get(port, "/readyz").await;
        (status.contains("503") && body.contains("runs this pod")).then_some(body)
    })
    .await;
    for part in [
        "containerd.sock (containerd)",
        "crio.sock (cri-o)",
        "uid-1",
        "--cri-socket-path",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The kubelet may be slower than we are.
    node.crio.run_pod(POD);
    eventually("it is ready", async || {
        let (status, _) = get(port, "/readyz").await;
        status.contains("200").then_some(())
    })
    .await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_flag_decides_alone() {
    let Node {
        containerd, crio, ..
    } = Node::new();
    containerd.run_pod(POD);
    let socket = crio.socket();
    let mut puller = Puller::beside(crio, &["--cri-socket-path", socket.to_str().unwrap()]).await;
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert!(puller.runtime.holds(A));
}

#[tokio::test]
async fn a_runtime_whose_socket_moves_is_found_again() {
    let Node {
        containerd,
        mut crio,
        run,
    } = Node::new();
    crio.run_pod(POD);
    crio.stop();
    std::fs::remove_file(run.join("crio/crio.sock")).unwrap();
    containerd.run_pod(POD);
    let flags = ["--host-run-dir", run.to_str().unwrap()];
    let mut puller = Puller::beside(containerd, &flags).await;
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert!(puller.runtime.holds(A));

    // The same runtime comes back elsewhere.
    puller.runtime.stop();
    std::fs::remove_file(run.join("containerd/containerd.sock")).unwrap();
    puller.runtime.serve().unwrap();
    link(&puller.runtime, &run.join("k0s/containerd.sock"));
    let b = "registry.test/team/b:1";
    eventually("it is used again", async || {
        let (status, _) = puller.get("/readyz").await;
        status.contains("200").then_some(())
    })
    .await;
    puller.pull(2, vec![image(b)]).await.outcomes().await;
    assert!(puller.runtime.holds(b));
}
