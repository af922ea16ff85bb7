//! Which puller answers is verified before anything is asked of it that changes a node, and by the answer to the first check.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod earlier;
mod nodes;

use std::convert::Infallible;

use earlier::Earlier;
use kube::{Client, client::Body};
use kubefledged_controller::{
    effects::{credentials::Credentials, dialer::Dialer, peers::Entitlements, pullers::Pullers},
    metrics::Metrics,
    runtimes::KubeletRuntimes,
};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CheckReport, Event, NameList, NodeName, Puller, Work,
};
use kubefledged_testkit::{Ca, Call, eventually};
use nodes::{Node, connector, node, node_at};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const IMAGE: &str = "registry.test/team/a:1";

/// One node, and calls to it.
struct World {
    ca: Ca,
    node: Node,
    metrics: Registry,
    pullers: Pullers,
    kubelets: KubeletRuntimes,
    shutdown: CancellationToken,
}

impl World {
    async fn start() -> Self {
        let (ca, shutdown) = (Ca::default(), CancellationToken::new());
        let node = node("n1", &ca, &shutdown).await;
        let connector = connector(&ca);
        let answers = async || connector.answers(node.puller.address).await.then_some(());
        eventually("the puller answers", answers).await;
        let kubelets = KubeletRuntimes::default();
        let mut metrics = Registry::default();
        let dialer = Dialer {
            connector,
            metrics: Metrics::register(&mut metrics),
            kubelets: kubelets.clone(),
        };
        let nobody = tower::service_fn(|_: http::Request<Body>| async {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let credentials = Credentials::new(Client::new(nobody, "team"), None);
        let entitlements = Entitlements::new(watch::channel(None).1);
        Self {
            pullers: Pullers::new(dialer, credentials, entitlements, watch::channel(0).0, 4, 4),
            ca,
            node,
            metrics,
            kubelets,
            shutdown,
        }
    }

    /// Another pod's puller comes to the address, on the same node.
    async fn replace_puller(&mut self) {
        self.shutdown.cancel();
        (&mut self.node.task).await.unwrap().unwrap();
        self.shutdown = CancellationToken::new();
        let port = self.node.puller.address.port();
        self.node = node_at(port, "n1", "pod-after", &self.ca, &self.shutdown).await;
        let connector = connector(&self.ca);
        let answers = async || {
            connector
                .answers(self.node.puller.address)
                .await
                .then_some(())
        };
        eventually("the other puller answers", answers).await;
    }

    /// Failed attempts to connect.
    fn dial_failures(&self) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix("puller_dial_failures_total "));
        value.unwrap().parse().unwrap()
    }

    /// Calls the puller that an endpoint names. Returns how the call ended, and what the puller reported.
    async fn call(&self, instance: &str, work: Work) -> (BatchEnd, Option<CheckReport>) {
        let puller = Puller {
            instance: instance.into(),
            address: self.node.puller.address,
        };
        self.call_at(&self.node.name, puller, work).await
    }

    async fn call_at(
        &self,
        node: &NodeName,
        puller: Puller,
        work: Work,
    ) -> (BatchEnd, Option<CheckReport>) {
        let batch = Batch {
            id: BatchId(1),
            term: 1,
            seq: 1,
            node: node.clone(),
            puller,
            operations: Vec::new(),
            work,
        };
        let (events, mut heard) = mpsc::channel(16);
        let (end, _) = self.pullers.run(&batch, &events).await;
        drop(events);
        let mut report = None;
        while let Some(event) = heard.recv().await {
            if let Event::Checked(_, checked) = event {
                report = Some(checked);
            }
        }
        (end, report)
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.node.task.await.unwrap().unwrap();
    }
}

fn check() -> Work {
    Work::Check {
        references: [IMAGE.into()].into(),
    }
}

fn removal() -> Work {
    Work::Remove {
        references: [IMAGE.into()].into(),
        desired: NameList::default(),
        releasable: NameList::default(),
        only_pulled: NameList::default(),
        unpin: NameList::default(),
    }
}

#[tokio::test]
async fn the_answer_to_a_check_tells_which_puller_it_is() {
    let world = World::start().await;
    let (end, report) = world.call("pod-n1", check()).await;
    assert!(matches!(end, BatchEnd::Done), "{end:?}");
    assert!(report.unwrap().parallel_pulls > 0);
    // Known since then.
    let (end, report) = world.call("pod-n1", check()).await;
    assert!(matches!(end, BatchEnd::Done), "{end:?}");
    assert!(report.unwrap().parallel_pulls > 0);
    world.end().await;
}

#[tokio::test]
async fn another_puller_at_the_address_is_asked_for_nothing_and_its_answer_counts_nothing() {
    let world = World::start().await;
    world.node.runtime.hold(IMAGE);
    for times in ["once", "again"] {
        for work in [check(), removal()] {
            let (end, report) = world.call("pod-before", work).await;
            assert!(matches!(end, BatchEnd::Unreachable), "{times}: {end:?}");
            assert_eq!(report, None);
        }
    }
    assert!(world.node.runtime.holds(IMAGE));
    // The right one, by GetInfo.
    let (end, _) = world.call("pod-n1", removal()).await;
    assert!(matches!(end, BatchEnd::Done), "{end:?}");
    assert!(!world.node.runtime.holds(IMAGE));
    world.end().await;
}

#[tokio::test]
async fn a_connection_that_has_ended_is_not_made_anew_to_whoever_has_the_address_then() {
    let mut world = World::start().await;
    let (end, _) = world.call("pod-n1", check()).await;
    assert!(matches!(end, BatchEnd::Done), "{end:?}");
    world.replace_puller().await;
    world.node.runtime.hold(IMAGE);
    let (end, _) = world.call("pod-n1", removal()).await;
    assert!(matches!(end, BatchEnd::Lost), "{end:?}");
    let (end, _) = world.call("pod-n1", removal()).await;
    assert!(matches!(end, BatchEnd::Unreachable), "{end:?}");
    assert!(world.node.runtime.holds(IMAGE));
    let (end, _) = world.call("pod-after", removal()).await;
    assert!(matches!(end, BatchEnd::Done), "{end:?}");
    world.end().await;
}

#[tokio::test]
async fn a_first_check_without_an_answer_counts_as_no_connection() {
    let world = World::start().await;
    world.node.runtime.hang();
    let before = world.dial_failures();
    let (end, _) = world.call("pod-n1", check()).await;
    assert!(matches!(end, BatchEnd::Lost), "{end:?}");
    assert_eq!(world.dial_failures(), before + 1);
    world.end().await;
}

#[tokio::test]
async fn the_puller_of_another_runtime_than_the_kubelets_is_not_used() {
    let world = World::start().await;
    world.kubelets.note(&world.node.name, "cri-o://1.36.0");
    for work in [check(), removal()] {
        let (end, report) = world.call("pod-n1", work).await;
        assert!(matches!(end, BatchEnd::Unreachable), "{end:?}");
        assert_eq!(report, None);
    }
    let removals = world.node.runtime.count(&Call::Remove(IMAGE.to_owned()));
    assert_eq!(removals, 0);
    world.end().await;
}

#[tokio::test]
async fn a_puller_of_an_earlier_version_is_asked_which_it_is_once() {
    let world = World::start().await;
    let (earlier, puller) = Earlier::start(&world.ca, &world.shutdown).await;
    let node = NodeName("n-earlier".into());
    for work in [check(), check(), removal()] {
        let (end, report) = world.call_at(&node, puller.clone(), work).await;
        assert!(matches!(end, BatchEnd::Done), "{end:?}");
        assert!(report.is_none_or(|report| report.parallel_pulls == 3));
    }
    assert_eq!((earlier.infos(), earlier.removals()), (1, 1));
    world.end().await;
}

#[tokio::test]
async fn another_puller_of_an_earlier_version_is_asked_for_nothing_else() {
    let world = World::start().await;
    let (earlier, puller) = Earlier::start(&world.ca, &world.shutdown).await;
    let node = NodeName("n-earlier".into());
    let gone = Puller {
        instance: "pod-before".into(),
        ..puller
    };
    for work in [check(), removal()] {
        let (end, report) = world.call_at(&node, gone.clone(), work).await;
        assert!(matches!(end, BatchEnd::Unreachable), "{end:?}");
        assert_eq!(report, None);
    }
    assert_eq!(earlier.removals(), 0);
    world.end().await;
}
