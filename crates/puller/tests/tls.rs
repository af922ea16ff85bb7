//! Who gets in, who may call what, and a change of certificates under way.

mod common;

use std::time::Duration;

use common::{
    Certificates, NAMESPACE, NODE, Puller, controller_leaf, dial, image, puller_leaf, request,
};
use kubefledged_process::tls::names;
use kubefledged_proto::puller::{
    CancelPullsRequest, CheckImagesRequest, GetInfoRequest, ListImagesRequest, RemoveImagesRequest,
    puller_service_client::PullerServiceClient,
};
use kubefledged_testkit::{Ca, Call, Leaf, Removal, Usage, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status};

const A: &str = "registry.test/team/a:1";

const METHODS: [&str; 6] = [
    "GetInfo",
    "CheckImages",
    "ListImages",
    "PullImages",
    "RemoveImages",
    "CancelPulls",
];

/// Calls a method as whoever has this leaf.
async fn call(puller: &Puller, leaf: &Leaf, name: &str) -> Result<(), Status> {
    let channel = dial(puller.grpc, leaf, &puller.certificates.ca)
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let mut client = PullerServiceClient::new(channel);
    let node_name = NODE.to_owned();
    let references = vec![A.to_owned()];
    match name {
        "GetInfo" => client
            .get_info(GetInfoRequest { node_name })
            .await
            .map(drop),
        "CheckImages" => client
            .check_images(CheckImagesRequest {
                node_name,
                references,
                with_info: false,
            })
            .await
            .map(drop),
        "ListImages" => client
            .list_images(ListImagesRequest { node_name })
            .await
            .map(drop),
        "PullImages" => client
            .pull_images(request(1, vec![image(A)]))
            .await
            .map(drop),
        "RemoveImages" => client
            .remove_images(RemoveImagesRequest {
                authority: Some(common::authority(2)),
                references,
                ..RemoveImagesRequest::default()
            })
            .await
            .map(drop),
        _ => client
            .cancel_pulls(CancelPullsRequest {
                authority: Some(common::authority(3)),
                cancels: Vec::new(),
            })
            .await
            .map(drop),
    }
}

/// What each of [`METHODS`] answers; None: the connection broke.
async fn codes(puller: &Puller, leaf: &Leaf) -> Vec<Option<Code>> {
    let mut codes = Vec::new();
    for name in METHODS {
        let code = match call(puller, leaf, name).await {
            Ok(()) => Some(Code::Ok),
            Err(status) if status.code() == Code::PermissionDenied => Some(Code::PermissionDenied),
            Err(status) => {
                assert!(
                    std::error::Error::source(&status).is_some(),
                    "{name}: {status}"
                );
                None
            }
        };
        codes.push(code);
    }
    codes
}

fn all(code: Option<Code>) -> Vec<Option<Code>> {
    vec![code; METHODS.len()]
}

#[tokio::test]
async fn the_controller_may_do_everything_and_who_debugs_may_look() {
    let puller = Puller::start(Removal::Whole).await;
    let ca = &puller.certificates.ca;
    let debug = ca.issue(&[&names::debug(NAMESPACE)], Usage::Client);
    let mut looks = all(Some(Code::Ok));
    looks[3..].fill(Some(Code::PermissionDenied));
    assert_eq!(codes(&puller, &debug).await, looks);
    assert!(!puller.runtime.holds(A));
    assert_eq!(
        codes(&puller, &controller_leaf(ca)).await,
        all(Some(Code::Ok))
    );
}

#[tokio::test]
async fn a_name_without_a_role_may_do_nothing() {
    let puller = Puller::start(Removal::Whole).await;
    let controller = names::controller(NAMESPACE);
    for names in [
        &["someone.kube-fledged.kubefledged.internal"][..],
        &["controller.other.kubefledged.internal"],
        &[&controller, "someone.kube-fledged.kubefledged.internal"],
        // The puller's name, even in a certificate that may dial.
        &[&names::puller(NAMESPACE)],
    ] {
        let leaf = puller.certificates.ca.issue(names, Usage::Client);
        assert_eq!(
            codes(&puller, &leaf).await,
            all(Some(Code::PermissionDenied)),
            "{names:?}"
        );
    }
    assert!(puller.runtime.calls().is_empty());
}

#[tokio::test]
async fn a_pullers_own_certificate_and_a_foreign_ca_do_not_get_in() {
    let puller = Puller::start(Removal::Whole).await;
    let ca = &puller.certificates.ca;
    for leaf in [
        puller_leaf(ca),
        controller_leaf(&Ca::default()),
        ca.issue(&[&names::controller(NAMESPACE)], Usage::Server),
    ] {
        assert_eq!(codes(&puller, &leaf).await, all(None));
    }
    assert!(puller.runtime.calls().is_empty());
    let (_, metrics) = puller.get("/metrics").await;
    for reason in ["unknown_issuer", "wrong_usage"] {
        let line = format!("kubefledged_tls_handshake_failures_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn plain_text_is_refused_and_counted() {
    let puller = Puller::start(Removal::Whole).await;
    let mut stream = TcpStream::connect(("127.0.0.1", puller.grpc))
        .await
        .unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    // An alert at most.
    assert!(answer.len() <= 7, "{answer:?}");
    eventually("it is counted", async || {
        let (_, metrics) = puller.get("/metrics").await;
        metrics
            .contains("kubefledged_tls_handshake_failures_total{reason=\"protocol\"} 1")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn whoever_does_not_speak_holds_nobody_up() {
    let puller = Puller::start(Removal::Whole).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(
            TcpStream::connect(("127.0.0.1", puller.grpc))
                .await
                .unwrap(),
        );
    }
    let leaf = controller_leaf(&puller.certificates.ca);
    let answered = tokio::time::timeout(Duration::from_secs(3), codes(&puller, &leaf)).await;
    assert_eq!(answered.unwrap(), all(Some(Code::Ok)));
}

#[tokio::test]
async fn a_new_ca_is_taken_up_while_a_pull_runs() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;

    // The second step of a rotation: a new leaf, the old CA still trusted.
    let Certificates { ca: old, directory } = &puller.certificates;
    let new = Ca::default();
    directory.write(&puller_leaf(&new), &[&new, old]).unwrap();
    eventually("a client of the new CA gets in", async || {
        let channel = dial(puller.grpc, &controller_leaf(&new), &new).await.ok()?;
        let mut client = PullerServiceClient::new(channel);
        let node_name = NODE.to_owned();
        let info = client.get_info(GetInfoRequest { node_name }).await.ok()?;
        (info.into_inner().trusted_ca_fingerprints.len() == 2).then_some(())
    })
    .await;
    // A client that has not heard of it yet still has the certificate of the old CA.
    // It may have to wait for its turn: so many handshakes as above are more than one address may begin in a second.
    eventually("a client of the old CA gets in", async || {
        let channel = dial(puller.grpc, &controller_leaf(old), &new).await.ok()?;
        let mut client = PullerServiceClient::new(channel);
        let node_name = NODE.to_owned();
        client.get_info(GetInfoRequest { node_name }).await.ok()
    })
    .await;

    // The third step: nothing of the old CA is trusted any more, and the pull goes on.
    directory.write(&puller_leaf(&new), &[&new]).unwrap();
    eventually("the old CA is out", async || {
        let channel = dial(puller.grpc, &controller_leaf(old), &new).await.ok()?;
        let node_name = NODE.to_owned();
        let asked = PullerServiceClient::new(channel)
            .get_info(GetInfoRequest { node_name })
            .await;
        asked.is_err().then_some(())
    })
    .await;
    puller.runtime.release(A);
    assert_eq!(pulling.outcomes().await.len(), 1);
    assert!(puller.runtime.holds(A));
    assert_eq!(puller.runtime.count(&Call::PullCancelled(A.to_owned())), 0);
}

#[tokio::test]
async fn a_secret_that_is_half_written_leaves_the_certificate_in_place() {
    let puller = Puller::start(Removal::Whole).await;
    let Certificates { ca, directory } = &puller.certificates;
    let mut broken = puller_leaf(ca);
    broken.key = puller_leaf(ca).key;
    directory.write(&broken, &[ca]).unwrap();
    let trust_other = Ca::default();
    directory
        .write(&puller_leaf(ca), &[ca, &trust_other])
        .unwrap();
    eventually("the whole one is taken", async || {
        let leaf = controller_leaf(&trust_other);
        let channel = dial(puller.grpc, &leaf, ca).await.ok()?;
        let node_name = NODE.to_owned();
        let mut client = PullerServiceClient::new(channel);
        client.get_info(GetInfoRequest { node_name }).await.ok()
    })
    .await;
    assert!(puller.get("/readyz").await.0.contains("200"));
}
