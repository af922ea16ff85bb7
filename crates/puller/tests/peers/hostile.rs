//! Whatever another node does, the image arrives as it would without it, and nothing of the attempt stays.

use std::time::{Duration, Instant};

use kubefledged_proto::puller::PullOutcome;
use kubefledged_testkit::Published;

use crate::{
    common::Puller,
    rogue::{self, Way},
    world::{World, came_whole, fetched, peer, published, total},
};

/// Pulls with a node that behaves so, and returns the node that pulled, the outcome and how long it took.
async fn pull_beside(way: Way, image: &Published) -> (Puller, PullOutcome, Duration) {
    let world = World::default();
    let (port, ends) = rogue::start(way, image, &world.ca).await;
    let mut node = world.node("n1", image, &[]).await;
    let request = world.request("n1", &image.digest, &[peer("rogue", port)]);
    let began = Instant::now();
    let (outcome, _) = world.pull(&mut node, request).await;
    ends.cancel();
    (node, outcome, began.elapsed())
}

/// No more than this is lost by a single node, whatever it does.
const MOST_LOST: Duration = Duration::from_secs(25);

async fn arrives_without(way: Way) -> PullOutcome {
    let image = published(100_000);
    let (node, outcome, took) = pull_beside(way, &image).await;
    came_whole(&node, &outcome, &image).await;
    assert!(took < MOST_LOST, "{way:?}: {took:?}");
    outcome
}

#[tokio::test]
async fn wrong_bytes_are_discarded_and_the_node_is_asked_no_more() {
    let outcome = arrives_without(Way::Lies).await;
    assert_eq!(outcome.peer_bytes, 0);
    assert!(outcome.wasted_bytes >= 100_000, "{outcome:?}");
    assert_eq!(outcome.registry_bytes, total(&published(100_000)));
}

#[tokio::test]
async fn half_a_lie_that_went_to_the_runtime_is_deleted_and_the_image_is_pulled_again() {
    arrives_without(Way::LiesAndStalls).await;
}

#[tokio::test]
async fn a_node_that_is_silent_or_drips_loses_its_turn() {
    tokio::join!(arrives_without(Way::Stalls), arrives_without(Way::Drips));
}

#[tokio::test]
async fn a_node_that_refuses_lacks_or_fails_is_waited_for_in_vain_and_not_for_ever() {
    tokio::join!(
        arrives_without(Way::Refuses),
        arrives_without(Way::LacksIt),
        arrives_without(Way::Fails),
    );
}

#[tokio::test]
async fn messages_that_nobody_asked_for_are_not_written() {
    tokio::join!(
        arrives_without(Way::IsEndless),
        arrives_without(Way::SendsElsewhere),
        arrives_without(Way::SendsNothing),
        arrives_without(Way::SendsAnotherImage),
    );
}

#[tokio::test]
async fn the_runtime_goes_on_at_the_byte_where_nodes_stopped() {
    let image = published(100_000);
    for way in [Way::IsShort, Way::Breaks] {
        let (node, outcome, _) = pull_beside(way, &image).await;
        came_whole(&node, &outcome, &image).await;
        assert!(outcome.peer_bytes > total(&image) / 2, "{outcome:?}");
        assert_eq!(outcome.peer_bytes + fetched(&node), total(&image));
        let parts = node.runtime.fetched();
        assert!(parts.iter().all(|part| part.offset > 0), "{parts:?}");
    }
}

#[tokio::test]
async fn an_honest_node_makes_up_for_a_dishonest_one() {
    let (world, image) = (World::default(), published(100_000));
    let mut honest = world.node("n1", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut honest, alone).await;
    for (number, way) in [Way::Lies, Way::Stalls, Way::IsEndless, Way::Fails]
        .into_iter()
        .enumerate()
    {
        let (port, ends) = rogue::start(way, &image, &world.ca).await;
        let name = format!("r{number}");
        let mut node = world.node(&name, &image, &[]).await;
        node.runtime.silence(true);
        let peers = [peer("rogue", port), peer("n1", honest.grpc)];
        let request = world.request(&name, &image.digest, &peers);
        let (outcome, _) = world.pull(&mut node, request).await;
        came_whole(&node, &outcome, &image).await;
        assert_eq!(outcome.peer_bytes, total(&image), "{way:?}");
        ends.cancel();
    }
}

#[tokio::test]
async fn a_runtime_that_takes_no_bytes_pulls_by_itself() {
    let (world, image) = (World::default(), published(100_000));
    let mut honest = world.node("n1", &image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut honest, alone).await;
    let mut node = world.node("n2", &image, &[]).await;
    node.runtime.refuse_writes();
    let request = world.request("n2", &image.digest, &[peer("n1", honest.grpc)]);
    let (outcome, _) = world.pull(&mut node, request).await;
    came_whole(&node, &outcome, &image).await;
    assert_eq!(fetched(&node), total(&image));
}
