//! Layers that are kept for other nodes, and what is let go of.

use std::time::Duration;

use kubefledged_proto::puller::{CancelPullsRequest, ImagePull, PullResult};
use kubefledged_testkit::eventually;

use crate::{
    common::image,
    world::{A, SHORT, World, came_whole, fetched, nothing_stays, peer, published, total},
};

#[tokio::test]
async fn layers_that_the_runtime_discards_are_kept_for_the_time_that_was_asked_for() {
    let (world, published) = (World::default(), published(100_000));
    let mut first = world.node("n1", &published, &[]).await;
    first.runtime.discard_layers();
    let pull = ImagePull {
        hold_layers_ms: 3000,
        ..image(A)
    };
    let request = world.request_of("n1", pull);
    let (outcome, _) = world.pull(&mut first, request).await;
    assert_eq!(outcome.result(), PullResult::Pulled);
    let (layer, _) = &published.layers[0];
    assert!(first.runtime.has_blob(layer));
    let held = eventually("one lease is left", async || {
        let leases = first.runtime.leases();
        (leases.len() == 1).then_some(leases)
    });
    let (_, labels) = held.await.into_iter().next().unwrap();
    assert!(
        labels["containerd.io/gc.expire"].ends_with('Z'),
        "{labels:?}"
    );
    let mut second = world.node("n2", &published, &[]).await;
    let request = world.request("n2", &published.digest, &[peer("n1", first.grpc)]);
    let (outcome, _) = world.pull(&mut second, request).await;
    assert_eq!(
        (outcome.peer_bytes, fetched(&second)),
        (total(&published), 0)
    );
    nothing_stays(&first).await;
    assert!(!first.runtime.has_blob(layer));
}

#[tokio::test]
async fn a_node_that_discards_its_layers_has_nothing_to_hand_on() {
    let (world, published) = (World::default(), published(100_000));
    let mut first = world.node("n1", &published, &[]).await;
    first.runtime.discard_layers();
    let alone = world.request("n1", &published.digest, &[]);
    world.pull(&mut first, alone).await;
    eventually("the runtime discards the layers", async || {
        (!first.runtime.has_blob(&published.layers[0].0)).then_some(())
    })
    .await;
    let mut second = world.node("n2", &published, &[]).await;
    let request = world.request("n2", &published.digest, &[peer("n1", first.grpc)]);
    let (outcome, _) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &published).await;
    assert_eq!(fetched(&second), total(&published));
}

#[tokio::test]
async fn nothing_is_kept_while_the_disk_is_too_full() {
    let (world, published) = (World::default(), published(1000));
    let disk = ["--image-fs-path", "/", "--disk-watermark", "1"];
    let mut first = world.node("n1", &published, &disk).await;
    let pull = ImagePull {
        hold_layers_ms: 60_000,
        ..image(A)
    };
    let request = world.request_of("n1", pull);
    let (outcome, _) = world.pull(&mut first, request).await;
    assert_eq!(outcome.reason, "DiskPressure");
    assert!(first.runtime.leases().is_empty());
}

#[tokio::test]
async fn a_pull_that_is_cancelled_lets_go_of_what_it_took() {
    let (world, published) = (World::default(), published(4 << 20));
    let mut first = world.node("n1", &published, &[]).await;
    let alone = world.request("n1", &published.digest, &[]);
    world.pull(&mut first, alone).await;
    let mut second = world.node("n2", &published, &[]).await;
    second.runtime.write_slowly(SHORT * 10);
    let request = world.request("n2", &published.digest, &[peer("n1", first.grpc)]);
    let authority = request.authority.clone();
    let _stream = second.client.pull_images(request).await.unwrap();
    eventually("bytes arrive", async || {
        let writes = second.runtime.writes();
        writes.iter().any(|(_, length)| *length > 0).then_some(())
    })
    .await;
    let request = CancelPullsRequest {
        authority: authority.map(|authority| kubefledged_proto::puller::Authority {
            seq: 2,
            ..authority
        }),
        cancels: vec![kubefledged_proto::puller::BatchCancel {
            batch_id: 1,
            references: Vec::new(),
        }],
    };
    second.client.cancel_pulls(request).await.unwrap();
    nothing_stays(&second).await;
    assert!(!second.runtime.holds(A));
    tokio::time::sleep(Duration::from_millis(200)).await;
    nothing_stays(&second).await;
}

#[tokio::test]
async fn a_puller_ends_the_leases_of_pulls_that_did_not_outlive_the_one_before_it() {
    let (world, published) = (World::default(), published(1000));
    let first = world.node("n1", &published, &[]).await;
    first
        .runtime
        .lease("kubefledged-1-pull-0", "pull", "2999-01-01T00:00:00Z");
    first
        .runtime
        .lease("kubefledged-1-hold-1", "hold", "2001-01-01T00:00:00Z");
    first
        .runtime
        .lease("kubefledged-1-hold-2", "hold", "2999-01-01T00:00:00Z");
    first
        .runtime
        .lease("somebody-else", "", "2999-01-01T00:00:00Z");
    eventually("the leases that are due have ended", async || {
        let left: Vec<String> = first.runtime.leases().into_keys().collect();
        (left == ["kubefledged-1-hold-2", "somebody-else"]).then_some(())
    })
    .await;
}
