//! What a controller tells the kubectl plugin, over real gRPC: pages over all nodes.

#![allow(clippy::unwrap_used, reason = "only tests are here")]

mod fleet;

use fleet::Fleet;
use kubefledged_engine::{ImageResult, NodeFacts};
use kubefledged_proto::debug::{
    ListNodesRequest, PlanSpecRequest, State, StreamMatrixRequest, WatchProgressRequest,
};
use kubefledged_testkit::eventually;
use serde_json::json;
use tonic::{Code, Streaming};

/// `wrong` fails for good, `slow` never ends, all else is pulled.
fn mixed(image: &str) -> Option<ImageResult> {
    match image {
        "r.test/wrong:1" => Some(ImageResult::Failed {
            reason: "ImageNotFound".to_owned(),
            message: "manifest unknown".to_owned(),
        }),
        "r.test/slow:1" => None,
        _ => Some(ImageResult::Pulled),
    }
}

async fn all<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

fn names(images: &[&str]) -> Vec<String> {
    images.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn nodes_come_in_pages_with_the_sums_of_all_caches() {
    let fleet = Fleet::start(5, mixed).await;
    fleet
        .create("a", &names(&["r.test/a:1", "r.test/wrong:1"]))
        .await;
    fleet.create("b", &names(&["r.test/a:1"])).await;
    let cordoned = NodeFacts {
        unschedulable: true,
        ..NodeFacts::default()
    };
    fleet.join(5, cordoned).await;
    let mut client = fleet.client().await;
    let rows = eventually("all is pulled", async || {
        let (mut rows, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListNodesRequest {
                page_size: 2,
                page_token: token,
            };
            let page = client.list_nodes(request).await.unwrap().into_inner();
            assert!(page.nodes.len() <= 2);
            rows.extend(page.nodes);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let settled = rows
            .iter()
            .filter(|row| (row.failed_images, row.ready_images) == (1, 2));
        (settled.count() == 5).then_some(rows)
    })
    .await;
    assert_eq!(rows.len(), 6);
    let first = &rows[0];
    assert_eq!((first.desired_images, first.ready_images), (3, 2));
    assert_eq!(
        (first.state(), first.size_bytes / 1_000_000),
        (State::Failed, 4)
    );
    assert!(first.eligible && first.puller);
    assert_eq!(
        (rows[5].eligible, rows[5].reason.as_str()),
        (false, "Cordoned")
    );
}

#[tokio::test]
async fn the_matrix_has_a_byte_for_every_image_on_every_node() {
    let fleet = Fleet::start(30, mixed).await;
    let mut images: Vec<String> = (0..90).map(|n| format!("r.test/i:{n:02}")).collect();
    images.push("r.test/wrong:1".to_owned());
    fleet.create("a", &images).await;
    let mut client = fleet.client().await;
    let rows = eventually("all is pulled", async || {
        let request = StreamMatrixRequest {
            namespace: "team".to_owned(),
            name: "a".to_owned(),
        };
        let stream = client.stream_matrix(request).await.unwrap();
        let pages = all(stream.into_inner()).await;
        assert_eq!(pages[0].images, images);
        let rows: Vec<_> = pages.into_iter().flat_map(|page| page.rows).collect();
        let last = rows.last()?.states.last()?;
        (i32::from(*last) == State::Failed as i32).then_some(rows)
    })
    .await;
    assert_eq!(rows.len(), 30);
    for row in rows {
        let ready = row
            .states
            .iter()
            .filter(|state| i32::from(**state) == State::Ready as i32);
        assert_eq!((row.states.len(), ready.count()), (91, 90));
    }
}

#[tokio::test]
async fn a_spec_is_planned_without_being_written() {
    let fleet = Fleet::start(3, mixed).await;
    let mut client = fleet.client().await;
    let spec = json!({"cacheSpec": [{"images": ["r.test/held:1", "r.test/new:1"]}]}).to_string();
    let nodes = eventually("the nodes are known", async || {
        let request = PlanSpecRequest { spec: spec.clone() };
        let stream = client.plan_spec(request).await.ok()?;
        let nodes: Vec<_> = all(stream.into_inner()).await;
        let nodes: Vec<_> = nodes.into_iter().flat_map(|page| page.nodes).collect();
        (nodes.len() == 3).then_some(nodes)
    })
    .await;
    let first = &nodes[0];
    assert_eq!(first.missing, ["r.test/new:1"]);
    assert_eq!(
        (first.held[0].image.as_str(), first.held[0].size_bytes),
        ("r.test/held:1", 4_000_000)
    );
    assert_eq!((first.available_bytes, first.watermark_percent), (400, 80));
    let silent = &nodes[1];
    assert_eq!(
        (silent.unknown.as_str(), silent.missing.len()),
        ("it is silent", 2)
    );
    let caches = client.list_caches(kubefledged_proto::debug::ListCachesRequest::default());
    assert!(caches.await.unwrap().into_inner().caches.is_empty());

    for wrong in ["{", r#"{"cacheSpec": [{"images": []}]}"#] {
        let request = PlanSpecRequest {
            spec: wrong.to_owned(),
        };
        let error = client.plan_spec(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{wrong}");
    }
}

#[tokio::test]
async fn pullers_are_asked_for_bytes_only_while_somebody_watches_them() {
    let fleet = Fleet::start(1, mixed).await;
    fleet.create("a", &names(&["r.test/slow:1"])).await;
    let mut client = fleet.client().await;
    let request = |bytes| WatchProgressRequest {
        interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 250_000_000,
        }),
        bytes,
        ..WatchProgressRequest::default()
    };
    let mut watch = client
        .watch_progress(request(true))
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = watch.message().await.unwrap().unwrap();
        if let Some(pull) = message.pulls.first() {
            assert_eq!(
                (pull.node.as_str(), pull.image.as_str()),
                ("n00000", "r.test/slow:1")
            );
            seen.push(message.bytes.unwrap().done_bytes);
        }
    }
    drop(watch);
    assert!(seen.is_sorted() && seen[0] < seen[2], "{seen:?}");
    let mut watch = client
        .watch_progress(request(false))
        .await
        .unwrap()
        .into_inner();
    let message = watch.message().await.unwrap().unwrap();
    assert!(message.bytes.is_none() && message.pulls.is_empty());
}
