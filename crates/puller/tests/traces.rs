//! Traces of a whole puller, sent to a real collector.

#![allow(clippy::unwrap_used, reason = "only tests are here")]

mod common;

use std::time::Duration;

use common::{Puller, image, request};
use kubefledged_testkit::{Collector, FakeRuntime, Removal};
use tokio::{net::TcpListener, time::Instant};
use tonic::{Code, Request};

const A: &str = "registry.test/team/a:1";
const B: &str = "registry.test/team/b:1";

async fn puller(endpoint: &str) -> Puller {
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    let socket = runtime.socket();
    let flags = ["--cri-socket-path", socket.to_str().unwrap()];
    Puller::beside(
        runtime,
        &[&flags[..], &["--otlp-endpoint", endpoint]].concat(),
    )
    .await
}

async fn end(puller: Puller) {
    puller.shutdown.cancel();
    puller.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn each_image_is_a_span_within_the_span_of_the_caller() {
    let collector = Collector::start().await.unwrap();
    let mut puller = puller(&collector.url()).await;
    let not_found = "manifest unknown";
    puller.runtime.fail(B, Code::NotFound, not_found);
    let mut pull = Request::new(request(1, vec![image(A), image(B)]));
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    pull.metadata_mut()
        .insert("traceparent", caller.parse().unwrap());
    let mut stream = puller.client.pull_images(pull).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    puller.remove(2, &[A]).await;
    end(puller).await;

    let pulls = collector.spans("image pull");
    let of = |name| {
        pulls
            .iter()
            .find(|span| span.get("kubefledged.image") == name)
            .unwrap()
    };
    for span in [of(A), of(B)] {
        assert_eq!(span.trace[..4], [0x0a, 0xf7, 0x65, 0x19]);
        assert_eq!(span.parent[..4], [0xb7, 0xad, 0x6b, 0x71]);
        assert_eq!(span.get("service.name"), "kubefledged-puller");
        assert_eq!(span.get("k8s.node.name"), common::NODE);
    }
    assert_eq!(of(A).get("kubefledged.result"), "pulled");
    assert_eq!(of(A).get("kubefledged.attempts"), "1");
    assert!(of(A).get("kubefledged.image_bytes").parse::<u64>().unwrap() > 0);
    assert_eq!(of(B).get("kubefledged.result"), "failed");
    assert_eq!(of(B).get("kubefledged.reason"), "ImageNotFound");
    assert!(of(B).failed && !of(A).failed);

    // The caller of the removal has no trace: it begins one.
    let removals = collector.spans("image remove");
    assert_eq!(removals.len(), 1);
    assert_eq!(removals[0].get("kubefledged.result"), "removed");
    assert!(removals[0].parent.is_empty() && removals[0].trace != of(A).trace);
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_delays_neither_a_pull_nor_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [&silent, &away].map(|listener| listener.local_addr().unwrap());
    drop(away);
    for address in addresses {
        let mut puller = puller(&format!("http://{address}")).await;
        let began = Instant::now();
        puller.pull(1, vec![image(A)]).await.outcomes().await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        let began = Instant::now();
        end(puller).await;
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
    }
}
