//! What honest nodes do for each other.

use std::time::{Duration, Instant};

use kubefledged_proto::puller::{ImagePull, Support};
use kubefledged_testkit::{Login, Native};
use tokio::time::sleep;

use crate::{
    common::{Puller, credential, image},
    world::{A, SHORT, World, came_whole, fetched, nothing_stays, peer, published, total},
};

#[tokio::test]
async fn a_node_takes_all_layers_from_another_one_and_nothing_of_the_way_stays() {
    let (world, image) = (World::default(), published(300_000));
    let mut first = world.node("n1", &image, &[]).await;
    let mut second = world.node("n2", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    let (outcome, _) = world.pull(&mut first, alone).await;
    came_whole(&first, &outcome, &image).await;
    assert_eq!(fetched(&first), total(&image));
    let request = world.request("n2", &image.digest, &[peer("n1", first.grpc)]);
    let (outcome, _) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &image).await;
    assert_eq!(fetched(&second), 0);
    let bytes = (
        outcome.peer_bytes,
        outcome.registry_bytes,
        outcome.wasted_bytes,
    );
    assert_eq!(bytes, (total(&image), 0, 0));
    let metrics = second.get("/metrics").await.1;
    let all = total(&image);
    let line = format!("kubefledged_image_layers_bytes_total{{source=\"peer\"}} {all}");
    assert!(metrics.contains(&line), "{metrics}");
    let metrics = first.get("/metrics").await.1;
    let line = format!("kubefledged_peer_uploaded_bytes_total {all}");
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test]
async fn a_layer_is_passed_on_while_it_arrives() {
    let (world, image) = (World::default(), published(4 << 20));
    let mut first = world.node("n1", &image, &[]).await;
    let mut second = world.node("n2", &image, &[]).await;
    let mut third = world.node("n3", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut first, alone).await;
    for node in [&second, &third] {
        // 48 messages, three at a time.
        node.runtime.write_slowly(SHORT);
        node.runtime.silence(true);
    }
    let one = world.request("n2", &image.digest, &[peer("n1", first.grpc)]);
    let two = world.request("n3", &image.digest, &[peer("n2", second.grpc)]);
    let began = Instant::now();
    let timed = async {
        let outcome = world.pull(&mut second, one).await.0;
        (outcome, began.elapsed())
    };
    let ((one, took), (two, _)) = tokio::join!(timed, world.pull(&mut third, two));
    let both = began.elapsed();
    came_whole(&second, &one, &image).await;
    came_whole(&third, &two, &image).await;
    assert_eq!(two.peer_bytes, total(&image));
    assert!(
        both < took * 3 / 2,
        "{took:?} for one node, {both:?} for both"
    );
}

#[tokio::test]
async fn a_node_that_is_asked_before_it_is_told_of_the_pull_is_asked_again() {
    let (world, image) = (World::default(), published(100_000));
    let mut first = world.node("n1", &image, &[]).await;
    let mut second = world.node("n2", &image, &[]).await;
    second.runtime.silence(true);
    let two = world.request("n2", &image.digest, &[peer("n1", first.grpc)]);
    let one = world.request("n1", &image.digest, &[]);
    let later = async {
        sleep(Duration::from_millis(700)).await;
        world.pull(&mut first, one).await
    };
    let ((outcome, _), _) = tokio::join!(world.pull(&mut second, two), later);
    came_whole(&second, &outcome, &image).await;
    assert_eq!(outcome.peer_bytes, total(&image));
}

#[tokio::test]
async fn layers_come_from_several_nodes_and_go_on_with_another_one_if_a_node_dies() {
    let (world, image) = (World::default(), published(6 << 20));
    let mut sources = Vec::new();
    for name in ["n1", "n2"] {
        let mut source = world
            .node(name, &image, &["--max-peer-upload-rate", "4000000"])
            .await;
        let alone = world.request(name, &image.digest, &[]);
        world.pull(&mut source, alone).await;
        sources.push(source);
    }
    let mut third = world.node("n3", &image, &[]).await;
    third.runtime.silence(true);
    let peers = [peer("n1", sources[0].grpc), peer("n2", sources[1].grpc)];
    let request = world.request("n3", &image.digest, &peers);
    let (first, second) = (sources.remove(0), sources.remove(0));
    let dies = async {
        sleep(Duration::from_millis(700)).await;
        first.task.abort();
        drop(first);
    };
    let ((outcome, _), ()) = tokio::join!(world.pull(&mut third, request), dies);
    came_whole(&third, &outcome, &image).await;
    assert_eq!(
        (outcome.peer_bytes, outcome.wasted_bytes),
        (total(&image), 0)
    );
    let metrics = second.get("/metrics").await.1;
    assert!(!metrics.contains("kubefledged_peer_uploaded_bytes_total 0\n"));
}

#[tokio::test]
async fn what_no_node_has_comes_from_the_registry() {
    let (world, image) = (World::default(), published(100_000));
    let first = world.node("n1", &image, &[]).await;
    let mut second = world.node("n2", &image, &[]).await;
    let peers = [peer("n1", first.grpc), peer("gone", 9), peer("bad", 0)];
    let request = world.request("n2", &image.digest, &peers);
    let (outcome, _) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &image).await;
    assert_eq!(fetched(&second), total(&image));
    assert_eq!(outcome.peer_bytes, 0);
}

#[tokio::test]
async fn a_node_without_a_certificate_pulls_as_ever() {
    let (world, image) = (World::default(), published(100_000));
    let mut first = world.node("n1", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut first, alone).await;
    let mut second = world.stranger("n2", &image, &[]).await;
    let request = world.request("n2", &image.digest, &[peer("n1", first.grpc)]);
    let (outcome, _) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &image).await;
    assert_eq!(fetched(&second), total(&image));
}

#[tokio::test]
async fn the_size_and_the_digest_of_a_pull_are_told_while_it_runs() {
    let (world, image) = (World::default(), published(2 << 20));
    let mut first = world.node("n1", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut first, alone).await;
    let mut second = world.node("n2", &image, &[]).await;
    second.runtime.write_slowly(SHORT * 10);
    let request = world.request("n2", &image.digest, &[peer("n1", first.grpc)]);
    let (outcome, told) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &image).await;
    let first = &told[0];
    assert_eq!(
        (first.total_bytes, &first.digest),
        (total(&image), &image.digest)
    );
    assert!(
        told.iter().any(|transfer| transfer.peer_bytes > 0),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_private_image_is_pulled_with_the_credentials_of_the_pull_or_not_at_all() {
    let (world, published) = (World::default(), published(100_000));
    let mut first = world.node("n1", &published, &[]).await;
    let alone = world.request("n1", &published.digest, &[]);
    world.pull(&mut first, alone).await;
    let login = Login {
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    for (name, credentials) in [("n2", vec![]), ("n3", vec![credential("u", "p")])] {
        let mut node = world.node(name, &published, &[]).await;
        node.runtime.demand(A, login.clone());
        let knows = !credentials.is_empty();
        let pull = ImagePull {
            peers: vec![peer("n1", first.grpc)],
            ticket: Some(world.ticket(name, &published.digest)),
            credentials: if knows { vec![0] } else { vec![] },
            ..image(A)
        };
        let mut request = world.request_of(name, pull);
        request.credentials = credentials;
        let (outcome, _) = world.pull(&mut node, request).await;
        if knows {
            came_whole(&node, &outcome, &published).await;
            assert_eq!(outcome.peer_bytes, total(&published));
        } else {
            assert_eq!(outcome.reason, "Unauthorized");
            assert!(!node.runtime.holds(A));
            nothing_stays(&node).await;
        }
    }
}

#[tokio::test]
async fn a_tag_that_moves_meanwhile_wastes_bytes_and_leaves_nothing() {
    let (world, old, new) = (World::default(), published(100_000), published(50_000));
    let mut first = world.node("n1", &old, &[]).await;
    let alone = world.request("n1", &old.digest, &[]);
    world.pull(&mut first, alone).await;
    let mut second = world.node("n2", &new, &[]).await;
    let request = world.request("n2", &old.digest, &[peer("n1", first.grpc)]);
    let (outcome, _) = world.pull(&mut second, request).await;
    came_whole(&second, &outcome, &new).await;
    assert_eq!(outcome.peer_bytes, 0);
    for (digest, _) in &old.layers {
        assert!(!second.runtime.has_blob(digest), "{digest}");
    }
}

#[tokio::test]
async fn a_runtime_without_leases_shares_nothing_and_pulls_as_ever() {
    let (world, published) = (World::default(), published(1000));
    let mut node = Puller::containerd(Native::None, &[]).await;
    let check = node.check(&[]).await;
    assert_eq!(check.peer_support(), Support::No);
    let request = world.request("n1", &published.digest, &[peer("n9", 9)]);
    let (outcome, told) = world.pull(&mut node, request).await;
    assert!(node.runtime.holds(A) && told.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn the_flag_switches_peers_off() {
    let (world, published) = (World::default(), published(100_000));
    let mut node = world
        .stranger("n1", &published, &["--peers", "false"])
        .await;
    let request = kubefledged_proto::puller::CheckImagesRequest {
        node_name: "n1".to_owned(),
        references: Vec::new(),
        with_info: false,
    };
    let check = node
        .client
        .check_images(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(check.peer_support(), Support::No);
    let request = world.request("n1", &published.digest, &[peer("n9", 9)]);
    let (outcome, _) = world.pull(&mut node, request).await;
    came_whole(&node, &outcome, &published).await;
}
