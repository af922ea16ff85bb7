//! A leader over a fleet that is made up: a real engine in its real loop, whose commands are answered
//! at once, and the debug endpoint of it.

#![allow(dead_code, reason = "not all who use it need all of it")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{FutureExt as _, future::BoxFuture};

use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, ImageCacheStatus, ImagePullPolicy};
use kubefledged_controller::{
    debug::{self, Debug},
    driver::{self, Asking},
    effects::queries::{Holdings, PullerQueries},
    lease::Term,
    metrics::Metrics,
};
use kubefledged_engine::{
    BatchEnd, CacheKey, CacheObject, CheckReport, Command, Engine, Event, ImageOutcome,
    ImageResult, KeptReason, NodeFacts, NodeName, ObservedImage, Puller, Settings, Source, Work,
};
use kubefledged_process::debug as endpoint;
use kubefledged_proto::{
    debug::{
        Pull as Pulling, PullState, controller_debug_service_client::ControllerDebugServiceClient,
    },
    puller::DiskUsage,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// What pulling an image comes to; `None`: it never ends.
pub type Pull = fn(&str) -> Option<ImageResult>;

pub struct Fleet {
    pub events: mpsc::Sender<Event>,
    pub engine: Asking,
    pub address: SocketAddr,
    pub metrics: Metrics,
    pub registry: Registry,
    pub standing: watch::Sender<Option<Term>>,
    pub holder: watch::Sender<String>,
    shutdown: CancellationToken,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn term(number: u64) -> Term {
    Term {
        number,
        acting: CancellationToken::new(),
    }
}

impl Fleet {
    /// So many nodes, called `n00000` and so on, that hold nothing.
    pub async fn start(nodes: usize, pull: Pull) -> Self {
        let (events, inbox) = mpsc::channel(4096);
        let (engine, questions) = Asking::new();
        let shutdown = CancellationToken::new();
        let effects = Answering {
            answers: relay(events.clone()),
            pull,
        };
        let run = Engine::new(Settings::default());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let counted = metrics.clone();
        let ends = shutdown.clone();
        tokio::spawn(driver::run(run, inbox, questions, effects, counted, ends));

        let (standing, stands) = watch::channel(Some(term(1)));
        let (holder, holds) = watch::channel("pod-1_00ff".to_owned());
        let shown = Debug {
            engine: engine.clone(),
            pullers: Arc::new(Answers::default()),
            standing: stands,
            holder: holds,
            namespace: "kube-fledged".into(),
        };
        let (routes, follow) = debug::routes(shown).await.unwrap();
        tokio::spawn(follow);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(endpoint::serve(Some(listener), routes, shutdown.clone()));

        let fleet = Self {
            events,
            engine,
            address,
            metrics,
            registry,
            standing,
            holder,
            shutdown,
        };
        for number in 0..nodes {
            fleet.join(number, NodeFacts::default()).await;
        }
        for source in [Source::Caches, Source::Nodes, Source::Pullers] {
            fleet.tell(Event::Synced(source)).await;
        }
        fleet.tell(Event::Leadership(Some(1))).await;
        fleet
    }

    pub async fn tell(&self, event: Event) {
        self.events.send(event).await.unwrap();
    }

    pub async fn join(&self, number: usize, facts: NodeFacts) {
        let name = NodeName(format!("n{number:05}").into());
        let facts = NodeFacts {
            ready: true,
            ..facts
        };
        self.tell(Event::NodeApplied(name.clone(), facts)).await;
        let puller = Puller {
            instance: format!("pod-of-{name}").into(),
            address: ([10, 0, 0, 1], 7443).into(),
        };
        self.tell(Event::PullerChanged(name, Some(puller))).await;
    }

    /// A cache of all nodes.
    pub async fn create(&self, name: &str, images: &[String]) {
        let list = CacheSpecEntry {
            images: images.to_vec(),
            image_pull_policy: Some(ImagePullPolicy::IfNotPresent),
            ..CacheSpecEntry::default()
        };
        let object = CacheObject {
            key: key(name),
            uid: format!("uid-{name}"),
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
        };
        self.tell(Event::CacheApplied(Box::new(object))).await;
    }

    pub async fn client(&self) -> ControllerDebugServiceClient<Channel> {
        ControllerDebugServiceClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }
}

/// What pullers answer: `slow` gets ten bytes more with every query, `held` is present, and n00001 does not answer.
#[derive(Default)]
struct Answers {
    queries: AtomicU64,
}

impl PullerQueries for Answers {
    fn pulls<'a>(
        &'a self,
        node: &'a NodeName,
        _: &'a Puller,
    ) -> BoxFuture<'a, Result<Vec<Pulling>, Arc<str>>> {
        let queries = self.queries.fetch_add(1, Ordering::Relaxed) + 1;
        let pull = Pulling {
            image: "r.test/slow:1".to_owned(),
            state: PullState::Pulling.into(),
            done_bytes: queries * 10,
            total_bytes: 1000,
            ..Pulling::default()
        };
        answered(node, vec![pull])
    }

    fn holdings<'a>(
        &'a self,
        node: &'a NodeName,
        _: &'a Puller,
        images: &'a [Arc<str>],
    ) -> BoxFuture<'a, Result<Holdings, Arc<str>>> {
        let held = images.iter().enumerate();
        let held = held.filter(|(_, image)| image.contains("held"));
        let holdings = Holdings {
            present: held.map(|(at, _)| (at, 4_000_000)).collect(),
            disk: Some(DiskUsage {
                capacity_bytes: 1000,
                available_bytes: 400,
                watermark_percent: 80,
            }),
        };
        answered(node, holdings)
    }
}

fn answered<'a, T: Send + 'a>(node: &NodeName, answer: T) -> BoxFuture<'a, Result<T, Arc<str>>> {
    let silent = &*node.0 == "n00001";
    let answer = if silent {
        Err("it is silent".into())
    } else {
        Ok(answer)
    };
    std::future::ready(answer).boxed()
}

pub fn key(name: &str) -> CacheKey {
    CacheKey {
        namespace: "team".into(),
        name: name.into(),
    }
}

/// The driver's hands must not wait: what they answer waits here.
fn relay(events: mpsc::Sender<Event>) -> mpsc::UnboundedSender<Event> {
    let (answers, mut waiting) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(answer) = waiting.recv().await {
            if events.send(answer).await.is_err() {
                return;
            }
        }
    });
    answers
}

struct Answering {
    answers: mpsc::UnboundedSender<Event>,
    pull: Pull,
}

impl driver::Effects for Answering {
    fn carry_out(&self, command: Command) {
        let answers = match command {
            Command::StartBatch(batch) => {
                let id = batch.id;
                let outcomes = match &batch.work {
                    Work::Pull { images, .. } => {
                        let images = images.iter().map(|image| &image.reference);
                        self.pulled(images)
                    }
                    Work::Check { references } => all(references, &ImageResult::Absent),
                    Work::Remove { references, .. } => {
                        all(references, &ImageResult::Kept(KeptReason::InUse))
                    }
                };
                let ended = outcomes.iter().all(Option::is_some);
                let outcomes = outcomes.into_iter().flatten().collect();
                let mut answers = vec![Event::Outcomes(id, outcomes)];
                if matches!(batch.work, Work::Check { .. }) {
                    answers.insert(0, Event::Checked(id, CheckReport::default()));
                }
                if ended {
                    answers.push(Event::BatchEnded(id, BatchEnd::Done));
                }
                answers
            }
            Command::WriteStatus {
                key,
                resource_version,
                ..
            } => {
                let version: u64 = resource_version.parse().unwrap();
                vec![Event::StatusWritten(key, Ok((version + 1).to_string()))]
            }
            Command::ClearAnnotation { key, .. } => vec![Event::AnnotationCleared(key, Ok(None))],
            Command::SetFinalizer { key, .. } => vec![Event::FinalizerWritten(key, Ok(None))],
            _ => Vec::new(),
        };
        for answer in answers {
            let _ = self.answers.send(answer);
        }
    }
}

impl Answering {
    fn pulled<'a>(&self, images: impl Iterator<Item = &'a Arc<str>>) -> Vec<Option<ImageOutcome>> {
        let outcome = |(index, image): (usize, &Arc<str>)| {
            let result = (self.pull)(image)?;
            let observed = (result == ImageResult::Pulled).then(|| ObservedImage {
                size: 4_000_000,
                ..ObservedImage::default()
            });
            Some(ImageOutcome {
                observed,
                ..ImageOutcome::new(index, result)
            })
        };
        images.enumerate().map(outcome).collect()
    }
}

fn all(references: &[Arc<str>], result: &ImageResult) -> Vec<Option<ImageOutcome>> {
    let outcome = |index| Some(ImageOutcome::new(index, result.clone()));
    (0..references.len()).map(outcome).collect()
}
