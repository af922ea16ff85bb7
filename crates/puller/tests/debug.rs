//! What a puller shows to people, over real gRPC.

#![allow(clippy::unwrap_used, reason = "only tests are here")]

mod common;

use std::time::{Duration, Instant};

use common::{NODE, Puller, image};
use kubefledged_proto::debug::{
    GetDiskRequest, GetQueueRequest, GetRuntimeRequest, ListImagesRequest, PullState,
    puller_debug_service_client::PullerDebugServiceClient,
};
use kubefledged_testkit::{FakeRuntime, Native, Removal, eventually};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

const A: &str = "registry.test/team/a:1";
const B: &str = "registry.test/team/b:1";

async fn debug(puller: &Puller) -> PullerDebugServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", puller.debug)).unwrap();
    PullerDebugServiceClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn the_queue_shows_what_runs_and_how_the_last_pull_ended_a_page_at_a_time() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    puller.runtime.block(B);
    let mut pulling = puller.pull(2, vec![image(B)]).await;
    pulling.accepted().await;
    let mut debug = debug(&puller).await;
    let request = |states: Vec<i32>, page_size, page_token: &str| GetQueueRequest {
        states,
        page_size,
        page_token: page_token.to_owned(),
    };
    let running = eventually("the runtime pulls", async || {
        let states = vec![PullState::Pulling.into()];
        let answer = debug.get_queue(request(states, 0, "")).await.unwrap();
        let answer = answer.into_inner();
        (!answer.pulls.is_empty()).then_some(answer)
    })
    .await;
    assert_eq!((running.node.as_str(), running.term), (NODE, 7));
    assert_eq!((running.running, running.waiting), (1, 0));
    assert_eq!(running.max_parallel_pulls, 2);
    let pull = &running.pulls[0];
    assert_eq!((pull.image.as_str(), pull.interests), (B, 1));
    assert!(pull.age.is_some() && pull.deadline.is_some());

    let first = debug.get_queue(request(Vec::new(), 1, "")).await.unwrap();
    let first = first.into_inner();
    assert_eq!(first.pulls.len(), 1);
    assert_eq!(first.pulls[0].image, A);
    assert_eq!(first.pulls[0].state(), PullState::Finished);
    assert_eq!(first.pulls[0].result, "Pulled");
    let second = request(Vec::new(), 1, &first.next_page_token);
    let second = debug.get_queue(second).await.unwrap().into_inner();
    assert_eq!(second.pulls[0].image, B);
    assert_eq!(second.next_page_token, "");

    for wrong in [request(Vec::new(), 1001, ""), request(Vec::new(), 1, "x")] {
        let error = debug.get_queue(wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    puller.runtime.release(B);
}

#[tokio::test]
async fn runtime_and_images_are_shown_also_while_the_runtime_is_away() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.hold(A);
    puller.runtime.hold(B);
    let mut debug = debug(&puller).await;
    let request = ListImagesRequest {
        name: "team/b".to_owned(),
    };
    let mut stream = debug.list_images(request).await.unwrap().into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(page.images.len(), 1);
    assert_eq!(page.images[0].tags, [B]);
    let answer = debug.get_runtime(GetRuntimeRequest {}).await.unwrap();
    let answer = answer.into_inner();
    assert!(
        answer.answers && answer.socket.contains(".sock"),
        "{answer:?}"
    );
    puller.runtime.stop();
    let away = eventually("the runtime is away", async || {
        let answer = debug.get_runtime(GetRuntimeRequest {}).await.unwrap();
        let answer = answer.into_inner();
        (!answer.answers).then_some(answer)
    })
    .await;
    assert!(!away.message.is_empty(), "{away:?}");
}

#[tokio::test]
async fn the_disk_is_shown_with_the_guards_watermark_and_what_it_would_do_now() {
    let start = async |watermark: &str| {
        let runtime = FakeRuntime::start(Removal::Whole).unwrap();
        let socket = runtime.socket();
        let socket = socket.to_str().unwrap();
        let path = std::env::temp_dir();
        let flags = [
            "--cri-socket-path",
            socket,
            "--image-fs-path",
            path.to_str().unwrap(),
            "--disk-watermark",
            watermark,
        ];
        let puller = Puller::beside(runtime, &flags).await;
        let mut debug = debug(&puller).await;
        let disk = debug
            .get_disk(GetDiskRequest {})
            .await
            .unwrap()
            .into_inner();
        (puller, disk)
    };
    let (_puller, disk) = start("1").await;
    assert!(disk.capacity_bytes > disk.available_bytes && disk.used_percent >= 1);
    assert!(
        disk.refuses_pulls && disk.message.contains("% full"),
        "{disk:?}"
    );
    let (_puller, disk) = start("100").await;
    assert_eq!((disk.watermark_percent, disk.refuses_pulls), (0, false));
}

#[tokio::test]
async fn whoever_looks_at_a_running_pull_sees_the_bytes_of_this_moment() {
    let mut puller = Puller::containerd(Native::WithoutPins, &[]).await;
    puller.runtime.block(A);
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;
    let mut debug = debug(&puller).await;
    let begun = Instant::now();
    for done in [10_u32, 20, 30] {
        puller.runtime.fetch(A, done.into(), 50);
        eventually("the bytes are shown", async || {
            let answer = debug.get_queue(GetQueueRequest::default()).await.unwrap();
            let pull = answer.into_inner().pulls.into_iter().next()?;
            ((pull.done_bytes, pull.total_bytes) == (done.into(), 50)).then_some(())
        })
        .await;
    }
    // The queue itself would look every ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(5));
    puller.runtime.release(A);
}
