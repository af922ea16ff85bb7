//! What is more than a puller keeps in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use common::{Puller, image, request};
use kubefledged_proto::puller::PullResult;
use kubefledged_testkit::{Call, FakeRuntime, Removal};
use tonic::Code;

#[tokio::test]
async fn ten_thousand_images_in_one_request_are_taken_once_and_refused_a_second_time() {
    let mut puller = Puller::start(Removal::Whole).await;
    let names = |round| (0..10_000).map(move |i| format!("registry.test/i{i}:{round}"));
    let images = |round| names(round).map(|name| image(&name)).collect();
    // Whichever of them get a place, none ends by itself.
    for name in names(1) {
        puller.runtime.block(&name);
    }
    let mut many = puller.pull(1, images(1)).await;
    many.accepted().await;
    let refused = puller.client.pull_images(request(2, images(2))).await;
    let status = refused.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("in parts"),
        "{}",
        status.message()
    );
    assert_eq!(puller.cancel(3, 1).await, 10_000);
    let outcomes = many.outcomes().await;
    assert_eq!(outcomes.len(), 10_000);
    assert!(outcomes.iter().all(|o| o.result() == PullResult::Cancelled));
}

#[tokio::test]
async fn long_lists_come_as_streams_where_the_runtime_offers_them() {
    for offered in [true, false] {
        let runtime = FakeRuntime::start(Removal::Whole).unwrap();
        if offered {
            runtime.offer_streams();
        }
        let names = ["registry.test/a:1", "registry.test/b:1"];
        for name in names {
            runtime.hold(name);
        }
        runtime.run(names[0]);
        let socket = runtime.socket();
        let flags = ["--cri-socket-path", socket.to_str().unwrap()];
        let mut puller = Puller::beside(runtime, &flags).await;
        let kept = puller.remove(1, &names).await;
        let reasons: Vec<&str> = kept.iter().map(|o| o.reason.as_str()).collect();
        assert_eq!(
            reasons,
            ["InUse", ""],
            "containers are seen; offered: {offered}"
        );
        let request = kubefledged_proto::puller::ListImagesRequest {
            node_name: common::NODE.to_owned(),
        };
        let listed = puller.client.list_images(request).await.unwrap();
        let page = listed.into_inner().message().await.unwrap().unwrap();
        assert_eq!(page.images.len(), 1);
        let calls = [
            puller.runtime.count(&Call::Stream),
            puller.runtime.count(&Call::List),
        ];
        assert_eq!(calls, if offered { [1, 0] } else { [0, 1] });
    }
}

#[tokio::test]
async fn a_list_that_is_larger_than_a_message_is_told_as_that() {
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    // 17 MiB of names. No image of a real runtime has such a long one, but it may have many.
    for at in 0..17 {
        runtime.hold(&format!("registry.test/{at}{}:1", "a".repeat(1 << 20)));
    }
    let socket = runtime.socket();
    let flags = ["--cri-socket-path", socket.to_str().unwrap()];
    let mut puller = Puller::beside(runtime, &flags).await;
    let request = kubefledged_proto::puller::ListImagesRequest {
        node_name: common::NODE.to_owned(),
    };
    let said = puller.client.list_images(request).await.unwrap_err();
    assert_eq!(said.code(), tonic::Code::ResourceExhausted);
    assert!(said.message().contains("cannot send it in parts"), "{said}");
}
