//! One operation over two real pullers, one of them slow, as a collector of traces sees it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod nodes;

use std::{convert::Infallible, sync::Arc, time::Duration};

use clap::Parser as _;
use kube::{Client, client::Body};
use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, ImageCacheStatus};
use kubefledged_controller::{
    args::Cli,
    driver::{self, Asking},
    effects::{
        Effects, credentials::Credentials, dialer::Dialer, objects::Objects, peers::Entitlements,
        pullers::Pullers,
    },
    lease::Term,
    metrics::Metrics,
    runtimes::KubeletRuntimes,
    traces::Spans,
};
use kubefledged_engine::{CacheKey, CacheObject, Engine, Event, NodeFacts, Settings, Source};
use kubefledged_process::tls::Connector;
use kubefledged_testkit::{Ca, Call, Collector, SeenSpan, eventually};
use nodes::{Node, connector, node};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const IMAGE: &str = "registry.test/team/a:1";
/// Time for which the slow node pulls longer.
const SLOW: Duration = Duration::from_millis(300);

/// An API server that takes every write, and shows the status that was written last.
fn api_server() -> (Client, watch::Receiver<Value>) {
    let (written, status) = watch::channel(Value::Null);
    let written = Arc::new(written);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let written = written.clone();
        async move {
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let patch = body.as_array().into_iter().flatten();
            for change in patch.filter(|change| change["path"] == "/status") {
                written.send_replace(change["value"].clone());
            }
            let object = json!({
                "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache", "spec": {"cacheSpec": []},
                "metadata": {"name": "a", "namespace": "team", "resourceVersion": "2"},
            });
            Ok::<_, Infallible>(http::Response::new(Body::from(
                object.to_string().into_bytes(),
            )))
        }
    });
    (Client::new(service, "team"), status)
}

fn effects(
    client: &Client,
    connector: Connector,
    events: &mpsc::Sender<Event>,
    spans: &Spans,
) -> Effects {
    let dialer = Dialer {
        connector,
        metrics: Metrics::register(&mut Registry::default()),
        kubelets: KubeletRuntimes::default(),
    };
    let (raise_term, _) = watch::channel(0);
    let entitlements = Entitlements::new(watch::channel(None).1);
    let credentials = Credentials::new(client.clone(), None);
    let term = Term {
        number: 1,
        acting: CancellationToken::new(),
    };
    Effects {
        pullers: Pullers::new(dialer, credentials, entitlements, raise_term, 4, 4)
            .traced(spans.clone()),
        objects: Objects::new(client.clone(), "pod".to_owned()),
        events: events.clone(),
        standing: watch::channel(Some(term)).1,
        acts: TaskTracker::new(),
        watches: watch::channel(Vec::new()).0,
        spans: spans.clone(),
    }
}

fn cache() -> Event {
    let list = CacheSpecEntry {
        images: vec![IMAGE.to_owned()],
        ..CacheSpecEntry::default()
    };
    Event::CacheApplied(Box::new(CacheObject {
        key: CacheKey {
            namespace: "team".into(),
            name: "a".into(),
        },
        uid: "uid-a".to_owned(),
        resource_version: "1".to_owned(),
        generation: 1,
        spec: ImageCacheSpec {
            cache_spec: vec![list],
            ..ImageCacheSpec::default()
        },
        status: ImageCacheStatus::default(),
        refresh: None,
        purge: None,
        purge_came_later: false,
        deleting: false,
        finalizer: false,
    }))
}

/// Runs the operation that creates a cache, and returns when its end is written.
async fn create(nodes: &[Node], connector: Connector, spans: &Spans) {
    let (client, mut status) = api_server();
    let (events, inbox) = mpsc::channel(1024);
    let effects = effects(&client, connector, &events, spans);
    let (_asking, questions) = Asking::new();
    let metrics = Metrics::register(&mut Registry::default());
    let engine = Engine::new(Settings::default());
    let ends = CancellationToken::new();
    let driver = driver::run(engine, inbox, questions, effects, metrics, ends.clone());
    let driver = tokio::spawn(driver);
    let facts = NodeFacts {
        ready: true,
        ..NodeFacts::default()
    };
    let joined = nodes.iter().flat_map(|node| {
        let puller = Some(node.puller.clone());
        [
            Event::NodeApplied(node.name.clone(), facts.clone()),
            Event::PullerChanged(node.name.clone(), puller),
        ]
    });
    let synced = [Source::Caches, Source::Nodes, Source::Pullers].map(Event::Synced);
    let told = joined.chain([cache()]).chain(synced);
    for event in told.chain([Event::Leadership(Some(1))]) {
        events.send(event).await.unwrap();
    }
    let slow = &nodes[1].runtime;
    let pulled = Call::Pull(IMAGE.to_owned());
    eventually("the slow node pulls", async || {
        (slow.count(&pulled) == 1).then_some(())
    })
    .await;
    eventually("the other one is done", async || {
        nodes[0].runtime.holds(IMAGE).then_some(())
    })
    .await;
    tokio::time::sleep(SLOW).await;
    slow.release(IMAGE);
    let ended = status.wait_for(|status| status["status"] == "Succeeded");
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .unwrap()
        .unwrap();
    ends.cancel();
    driver.await.unwrap();
}

fn of_node<'a>(spans: &'a [SeenSpan], node: &str) -> &'a SeenSpan {
    let found = spans.iter().find(|span| span.get("k8s.node.name") == node);
    found.unwrap_or_else(|| unreachable!("no span of {node} in {spans:?}"))
}

#[tokio::test]
async fn an_operation_its_batches_and_its_pulls_are_one_trace_which_shows_the_slow_node() {
    let collector = Collector::start().await.unwrap();
    let (ca, shutdown) = (Ca::default(), CancellationToken::new());
    let mut nodes = Vec::new();
    for name in ["n1", "n2"] {
        nodes.push(node(name, &ca, &shutdown).await);
    }
    nodes[1].runtime.block(IMAGE);
    let connector = connector(&ca);
    for node in &nodes {
        let answers = async || connector.answers(node.puller.address).await.then_some(());
        eventually("the puller answers", answers).await;
    }
    let flag = format!("--otlp-endpoint={}", collector.url());
    let cli = Cli::try_parse_from(["kubefledged-controller", &flag]).unwrap();
    let spans = Spans::new(&cli.run).unwrap();
    create(&nodes, connector, &spans).await;
    spans.flush().await;
    shutdown.cancel();
    for node in nodes {
        node.task.await.unwrap().unwrap();
    }

    let operations = collector.spans("imagecache operation");
    assert_eq!(operations.len(), 1, "{operations:?}");
    let operation = &operations[0];
    assert!(operation.parent.is_empty() && !operation.failed);
    for (key, value) in [
        ("service.name", "kubefledged-controller"),
        ("kubefledged.imagecache", "team/a"),
        ("kubefledged.operation", "ImageCacheCreate"),
        ("kubefledged.result", "Succeeded"),
    ] {
        assert_eq!(operation.get(key), value, "{key}");
    }
    let (batches, pulls) = (collector.spans("node pull"), collector.spans("image pull"));
    assert_eq!(
        (batches.len(), pulls.len()),
        (2, 2),
        "{batches:?} {pulls:?}"
    );
    for name in ["n1", "n2"] {
        let (batch, pull) = (of_node(&batches, name), of_node(&pulls, name));
        assert_eq!(
            (&batch.parent, &batch.trace),
            (&operation.id, &operation.trace)
        );
        assert_eq!((&pull.parent, &pull.trace), (&batch.id, &operation.trace));
        assert_eq!(batch.get("kubefledged.result"), "Done");
        assert_eq!(pull.get("kubefledged.image"), IMAGE);
        assert_eq!(pull.get("kubefledged.result"), "pulled");
    }
    let slow = of_node(&pulls, "n2").time;
    assert!(Duration::from_nanos(slow.1 - slow.0) >= SLOW);
    assert!(of_node(&pulls, "n1").time.1 < slow.1 && slow.1 <= operation.time.1);
}
