//! The disk guard, with the figures of a file system that is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use common::{Puller, image};
use kubefledged_proto::puller::{GetInfoRequest, PullResult};
use kubefledged_testkit::{Call, FakeRuntime, Removal};

const A: &str = "registry.test/team/a:1";

async fn guarded(watermark: &str) -> Puller {
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    let (socket, path) = (runtime.socket(), runtime.directory().to_owned());
    let flags = [
        "--cri-socket-path",
        socket.to_str().unwrap(),
        "--image-fs-path",
        path.to_str().unwrap(),
        "--disk-watermark",
        watermark,
    ];
    Puller::beside(runtime, &flags).await
}

#[tokio::test]
async fn above_the_watermark_a_pull_ends_with_the_figures_and_a_present_image_is_as_good_as_ever() {
    // Any file system in use is at least 1 % full, rounded down; an empty one has nothing to guard.
    let mut puller = guarded("1").await;
    puller.runtime.hold("registry.test/team/here:1");
    let usage = puller.check(&[]).await.disk.unwrap();
    assert!(usage.capacity_bytes > usage.available_bytes);
    assert_eq!(usage.watermark_percent, 1);
    let used = usage.capacity_bytes - usage.available_bytes;
    let full = used * 100 >= usage.capacity_bytes;
    let images = vec![image(A), image("registry.test/team/here:1")];
    let outcomes = puller.pull(1, images).await.outcomes().await;
    assert_eq!(outcomes[1].result(), PullResult::Present);
    if full {
        assert_eq!(outcomes[0].reason, "DiskPressure");
        assert!(
            outcomes[0].message.contains("MiB are free"),
            "{}",
            outcomes[0].message
        );
        assert_eq!(puller.runtime.count(&Call::Pull(A.to_owned())), 0);
    } else {
        assert_eq!(outcomes[0].result(), PullResult::Pulled);
    }
}

#[tokio::test]
async fn the_guard_can_be_switched_off_and_then_reports_nothing() {
    let mut puller = guarded("100").await;
    assert!(puller.check(&[]).await.disk.is_none());
    let outcomes = puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    let request = GetInfoRequest {
        node_name: common::NODE.to_owned(),
    };
    let features = puller
        .client
        .get_info(request)
        .await
        .unwrap()
        .into_inner()
        .features;
    assert!(features.is_empty(), "{features:?}");
}
