//! What a controller shows to people, over real gRPC.

#![allow(clippy::unwrap_used, reason = "only tests are here")]

mod fleet;

use fleet::{Fleet, key, term};
use kubefledged_engine::{Event, ImageResult, NodeFacts, NodeName};
use kubefledged_proto::debug::{
    Action, ExplainPlanRequest, GetCacheRequest, GetNodeRequest, ListBatchesRequest,
    ListCachesRequest, ListRegistriesRequest, PlannedStep, State, StreamCacheNodesRequest,
    WatchProgressRequest, Work, controller_debug_service_client::ControllerDebugServiceClient,
};
use kubefledged_testkit::eventually;
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

type Client = ControllerDebugServiceClient<Channel>;

const SERVICE: &str = "kubefledged.debug.v1.ControllerDebugService";

fn pulled(image: &str) -> Option<ImageResult> {
    (!image.is_empty()).then_some(ImageResult::Pulled)
}

/// `wrong` fails for good, `slow` never ends, all else is pulled.
fn mixed(image: &str) -> Option<ImageResult> {
    let failed = |reason: &str, message: &str| ImageResult::Failed {
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    match image {
        "r.test/wrong:1" => Some(failed("ImageNotFound", "manifest unknown")),
        "r.test/slow:1" => None,
        _ => Some(ImageResult::Pulled),
    }
}

fn names(images: &[&str]) -> Vec<String> {
    images.iter().map(ToString::to_string).collect()
}

async fn all<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

fn of(name: &str) -> StreamCacheNodesRequest {
    StreamCacheNodesRequest {
        namespace: "team".to_owned(),
        name: name.to_owned(),
        ..StreamCacheNodesRequest::default()
    }
}

/// Waits until the cache has so many ready pairs and looks at no node.
async fn ready(fleet: &Fleet, name: &str, pairs: u32) {
    let mut client = fleet.client().await;
    eventually("the images are there", async || {
        let request = GetCacheRequest {
            namespace: "team".to_owned(),
            name: name.to_owned(),
        };
        let cache = client.get_cache(request).await.ok()?.into_inner();
        let ready = cache.summary?.images?.ready;
        (ready == pairs && cache.unseen_nodes == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn half_a_million_pairs_come_in_messages_of_a_thousand_at_most() {
    let fleet = Fleet::start(300, pulled).await;
    let images: Vec<String> = (0..70).map(|image| format!("r.test/i:{image}")).collect();
    fleet.create("big", &images).await;
    ready(&fleet, "big", 300 * 70).await;
    let mut client = fleet.client().await;
    let stream = client.stream_cache_nodes(of("big")).await.unwrap();
    let messages = all(stream.into_inner()).await;
    assert!(messages.len() >= 21 && messages.iter().all(|page| page.pairs.len() <= 1000));
    let pairs: Vec<_> = messages.into_iter().flat_map(|page| page.pairs).collect();
    assert_eq!(pairs.len(), 300 * 70);
    assert!(pairs.iter().all(|pair| pair.state() == State::Ready));
    assert_eq!(pairs[0].size_bytes, 4_000_000);
    let filtered = StreamCacheNodesRequest {
        node: "n00299".to_owned(),
        image: "r.test/i:7".to_owned(),
        states: vec![State::Ready.into()],
        ..of("big")
    };
    let stream = client.stream_cache_nodes(filtered).await.unwrap();
    let messages = all(stream.into_inner()).await;
    assert_eq!(messages[0].pairs.len(), 1);
}

#[tokio::test]
async fn what_is_not_there_says_why_since_when_and_what_happens_next() {
    let fleet = Fleet::start(2, mixed).await;
    let images = names(&["r.test/good:1", "r.test/wrong:1", "r.test/slow:1"]);
    fleet.create("a", &images).await;
    ready(&fleet, "a", 2).await;
    let mut client = fleet.client().await;
    pairs_say_why(&mut client).await;
    the_plan_says_what_happens_next(&mut client).await;
    the_node_says_the_worst(&mut client).await;
    batches_say_what_is_open(&mut client).await;

    let request = ListRegistriesRequest::default();
    let registries = client.list_registries(request).await.unwrap().into_inner();
    let registry = &registries.registries[0];
    assert_eq!((registry.host.as_str(), registry.budget), ("r.test", 64));
    assert_eq!(registry.in_flight, 2);
}

async fn pairs_say_why(client: &mut Client) {
    let stream = client.stream_cache_nodes(StreamCacheNodesRequest {
        states: vec![State::Failed.into(), State::Pulling.into()],
        ..of("a")
    });
    let pairs = all(stream.await.unwrap().into_inner())
        .await
        .remove(0)
        .pairs;
    assert_eq!(pairs.len(), 4);
    let (wrong, slow) = (&pairs[0], &pairs[1]);
    assert_eq!(
        (wrong.node.as_str(), wrong.image.as_str()),
        ("n00000", "r.test/wrong:1")
    );
    assert_eq!(
        (wrong.reason.as_str(), wrong.message.as_str()),
        ("ImageNotFound", "manifest unknown")
    );
    assert_eq!(wrong.attempts, 1);
    let next = wrong.next_attempt.as_ref().map(|next| next.seconds);
    assert!(next > Some(60), "it is asked for again slowly: {next:?}");
    assert!(wrong.since.is_some());
    assert_eq!(slow.state(), State::Pulling);
}

async fn the_plan_says_what_happens_next(client: &mut Client) {
    let request = ExplainPlanRequest {
        node: "n00001".to_owned(),
        ..ExplainPlanRequest::default()
    };
    let stream = client.explain_plan(request).await.unwrap();
    let steps: Vec<PlannedStep> = all(stream.into_inner()).await.remove(0).steps;
    let told: Vec<_> = steps
        .iter()
        .map(|step| (step.image.as_str(), step.action(), step.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("r.test/wrong:1", Action::Wait, "BackOff"),
            ("r.test/slow:1", Action::Wait, "Pulling"),
        ]
    );
}

async fn the_node_says_the_worst(client: &mut Client) {
    let request = GetNodeRequest {
        node: "n00001".to_owned(),
    };
    let node = client.get_node(request).await.unwrap().into_inner();
    assert!(node.eligible && node.puller.is_some() && node.inventory_age.is_some());
    let cache = &node.caches[0];
    assert_eq!(
        (cache.state(), cache.desired_images, cache.ready_images),
        (State::Failed, 3, 1)
    );
    assert!(cache.size_bytes > 0 && cache.size_bytes == node.size_bytes);
    assert_eq!(cache.reason, "ImageNotFound");
    assert_eq!(cache.message, "r.test/wrong:1: manifest unknown");
}

async fn batches_say_what_is_open(client: &mut Client) {
    let request = ListBatchesRequest {
        page_size: 1,
        ..ListBatchesRequest::default()
    };
    let first = client.list_batches(request).await.unwrap().into_inner();
    assert_eq!(first.batches[0].work(), Work::Pull);
    assert_eq!(
        (first.batches[0].images, first.batches[0].open_images),
        (3, 1)
    );
    let request = ListBatchesRequest {
        page_token: first.next_page_token,
        namespace: "team".to_owned(),
        name: "a".to_owned(),
        ..ListBatchesRequest::default()
    };
    let rest = client.list_batches(request).await.unwrap().into_inner();
    assert_eq!((rest.batches.len(), rest.next_page_token.as_str()), (1, ""));
}

#[tokio::test]
async fn a_node_that_gets_nothing_says_what_to_do_about_it() {
    let fleet = Fleet::start(1, pulled).await;
    fleet.create("a", &names(&["r.test/good:1"])).await;
    ready(&fleet, "a", 1).await;
    let cordoned = NodeFacts {
        ready: true,
        unschedulable: true,
        ..NodeFacts::default()
    };
    let name = NodeName("n00000".into());
    fleet.tell(Event::NodeApplied(name, cordoned)).await;
    let mut client = fleet.client().await;
    let node = eventually("the node is out", async || {
        let request = GetNodeRequest {
            node: "n00000".to_owned(),
        };
        let node = client.get_node(request).await.unwrap().into_inner();
        (!node.eligible).then_some(node)
    })
    .await;
    assert_eq!(node.reason, "Cordoned");
    assert!(
        node.message.contains("kubectl uncordon"),
        "{}",
        node.message
    );
    assert_eq!(
        (node.caches[0].state(), node.caches[0].reason.as_str()),
        (State::Out, "Cordoned")
    );
    for unknown in [
        client
            .get_node(GetNodeRequest { node: "x".into() })
            .await
            .unwrap_err(),
        client.stream_cache_nodes(of("none")).await.unwrap_err(),
        client
            .get_cache(GetCacheRequest::default())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    }
    let half = ExplainPlanRequest {
        name: "a".into(),
        ..ExplainPlanRequest::default()
    };
    let refused = client.explain_plan(half).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn caches_come_page_by_page_with_their_operation() {
    let fleet = Fleet::start(1, pulled).await;
    for name in ["a", "b", "c"] {
        fleet.create(name, &names(&["r.test/good:1"])).await;
        ready(&fleet, name, 1).await;
    }
    let mut client = fleet.client().await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListCachesRequest {
            namespace: "team".to_owned(),
            page_size: 2,
            page_token: token,
        };
        let page = client.list_caches(request).await.unwrap().into_inner();
        assert!(page.caches.len() <= 2);
        seen.extend(page.caches);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let seen: Vec<_> = seen.into_iter().map(|cache| cache.name).collect();
    assert_eq!(seen, ["a", "b", "c"]);
    let request = GetCacheRequest {
        namespace: "team".to_owned(),
        name: "b".to_owned(),
    };
    let cache = client.get_cache(request).await.unwrap().into_inner();
    assert_eq!(cache.conditions.len(), 3);
    assert_eq!(cache.desired[0].registry, "r.test");
    assert_eq!(cache.desired[0].pull_policy, "IfNotPresent");
    let operation = cache.summary.unwrap().operation.unwrap();
    assert_eq!(operation.reason, "ImageCacheCreate");
}

#[tokio::test]
async fn progress_is_told_when_it_changes_and_ends_when_all_is_settled() {
    let fleet = Fleet::start(20, pulled).await;
    fleet
        .create("a", &names(&["r.test/good:1", "r.test/good:2"]))
        .await;
    ready(&fleet, "a", 40).await;
    let mut client = fleet.client().await;
    let request = WatchProgressRequest {
        namespace: "team".to_owned(),
        name: "a".to_owned(),
        until_settled: true,
        ..WatchProgressRequest::default()
    };
    let stream = client.watch_progress(request.clone()).await.unwrap();
    let told = all(stream.into_inner()).await;
    assert_eq!(told[0].caches[0].images.unwrap().ready, 40);

    let endless = WatchProgressRequest {
        until_settled: false,
        interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 250_000_000,
        }),
        ..request
    };
    let mut stream = client.watch_progress(endless).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    fleet.join(20, NodeFacts::default()).await;
    let joined = stream.message().await.unwrap().unwrap();
    assert_eq!(joined.caches[0].nodes.unwrap().desired, 21);
    // Nobody streams what a process that leads no more believes.
    fleet.standing.send_replace(None);
    let ended = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_standby_names_the_pod_that_leads_and_is_not_healthy() {
    let fleet = Fleet::start(1, pulled).await;
    let mut health = HealthClient::new(fleet.channel().await);
    let check = || HealthCheckRequest {
        service: SERVICE.to_owned(),
    };
    assert_eq!(health.check(check()).await.unwrap().into_inner().status, 1);
    fleet.standing.send_replace(None);
    fleet.holder.send_replace("pod-2_17".to_owned());
    let mut client = fleet.client().await;
    let refused = client
        .list_caches(ListCachesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let said = refused.message();
    assert!(
        said.contains("kubectl port-forward -n kube-fledged pod/pod-2 7070"),
        "{said}"
    );
    eventually("it is not healthy", async || {
        let status = health.check(check()).await.unwrap().into_inner().status;
        (status == 2).then_some(())
    })
    .await;
    fleet.holder.send_replace(String::new());
    let refused = client
        .list_caches(ListCachesRequest::default())
        .await
        .unwrap_err();
    assert!(refused.message().contains("no controller leads yet"));
    fleet.standing.send_replace(Some(term(2)));
    client
        .list_caches(ListCachesRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn reflection_of_both_versions_names_the_service() {
    let fleet = Fleet::start(1, pulled).await;
    let channel = fleet.channel().await;
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let stream = client.server_reflection_info(tokio_stream::iter([request]));
    let answer = format!("{:?}", all(stream.await.unwrap().into_inner()).await);
    assert!(
        answer.contains(SERVICE) && answer.contains("grpc.health.v1"),
        "{answer}"
    );
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                SERVICE.to_owned(),
            ),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = client.server_reflection_info(tokio_stream::iter([request]));
    let answer = format!("{:?}", all(stream.await.unwrap().into_inner()).await);
    assert!(answer.contains("FileDescriptorResponse"), "{answer}");
}

#[tokio::test]
async fn asking_all_the_time_does_not_keep_the_engine_from_its_work() {
    let fleet = Fleet::start(100, pulled).await;
    let images: Vec<String> = (0..50).map(|image| format!("r.test/i:{image}")).collect();
    fleet.create("a", &images).await;
    let asking = (0..8).map(|_| {
        let engine = fleet.engine.clone();
        tokio::spawn(async move {
            while engine
                .ask(|engine, _| engine.view_caches(None, None, 1000))
                .await
                .is_some()
            {}
        })
    });
    let asking: Vec<_> = asking.collect();
    ready(&fleet, "a", 5000).await;
    assert!(
        fleet
            .engine
            .ask(|engine, _| engine.view_row(&key("a")))
            .await
            .unwrap()
            .is_some()
    );
    let standing = fleet.standing.subscribe();
    fleet.metrics.measure(&fleet.engine, &standing).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &fleet.registry).unwrap();
    let series = "imagecache_images{namespace=\"team\",imagecache=\"a\",state=\"ready\"} 5000\n";
    assert!(text.contains(series), "{text}");
    drop(fleet);
    for task in asking {
        task.await.unwrap();
    }
}
