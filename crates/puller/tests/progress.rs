//! Bytes that arrive, as containerd's content store shows them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use common::{Puller, image, request};
use kubefledged_proto::puller::{PullImagesRequest, pull_images_response::Event};
use kubefledged_testkit::{Call, FakeRuntime, Native, eventually};

const A: &str = "registry.test/team/a:1";

#[tokio::test]
async fn whoever_asked_for_it_hears_of_the_bytes_while_the_pull_runs() {
    let runtime = FakeRuntime::containerd(Native::WithoutPins).unwrap();
    let socket = runtime.socket();
    let mut puller =
        Puller::beside(runtime, &["--cri-socket-path", socket.to_str().unwrap()]).await;
    puller.runtime.block(A);
    puller.runtime.fetch(A, 10, 50);
    let request = PullImagesRequest {
        progress_interval_ms: 1000,
        ..request(1, vec![image(A)])
    };
    let mut stream = puller
        .client
        .pull_images(request)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.event {
            Some(Event::Progress(progress)) => {
                for told in progress.images {
                    seen.push((told.index, told.done_bytes, told.total_bytes));
                }
                if seen.len() == 1 {
                    puller.runtime.fetch(A, 40, 50);
                } else {
                    puller.runtime.release(A);
                }
            }
            Some(Event::Outcomes(outcomes)) => assert_eq!(outcomes.outcomes.len(), 1),
            _ => {}
        }
    }
    assert_eq!(seen, [(0, 10, 50), (0, 40, 50)]);
}

#[tokio::test]
async fn where_no_byte_arrives_for_too_long_the_pull_is_ended_and_says_how_far_it_came() {
    let runtime = FakeRuntime::containerd(Native::WithoutPins).unwrap();
    let socket = runtime.socket();
    let flags = [
        "--cri-socket-path",
        socket.to_str().unwrap(),
        "--no-progress-limit",
        "1s",
    ];
    let mut puller = Puller::beside(runtime, &flags).await;
    puller.runtime.block(A);
    puller.runtime.fetch(A, 10, 50);
    let request = PullImagesRequest {
        progress_interval_ms: 1000,
        ..request(1, vec![image(A)])
    };
    let outcomes = puller.pull_with(request).await.outcomes().await;
    assert_eq!(outcomes[0].reason, "NoProgress");
    assert!(
        outcomes[0].message.contains("10 of 50 bytes"),
        "{}",
        outcomes[0].message
    );
    let runtime = &puller.runtime;
    eventually("the runtime's call ends", async || {
        (runtime.count(&Call::PullCancelled(A.to_owned())) == 1).then_some(())
    })
    .await;
}
