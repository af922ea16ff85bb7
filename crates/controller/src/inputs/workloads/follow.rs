//! One watch. When it cannot be read any more it begins anew, with discovery: a `CustomResourceDefinition` may come, go
//! or serve another version.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, core::v1 as core};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{ApiResource, DynamicObject},
    discovery,
    error::DiscoveryError,
    runtime::{WatchStreamExt as _, watcher},
};
use kubefledged_api_types::{WorkloadKind, one_line};
use kubefledged_engine::{Event, Source, WatchFailure, WatchId, Watched, WorkloadKey};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::timeout};

use super::objects::{self, Cron, How, Lean, Namespace, Read, Templated};
use super::pods::PodSpec;
use crate::inputs::{STREAM_LIMIT, no_streaming};

/// Pause before a kind that cannot be read is looked for again.
const AGAIN: Duration = Duration::from_secs(10);
/// Maximum length of an error that is told.
const LONGEST_ERROR: usize = 512;
/// A finished Pod needs no image.
const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Nobody receives events any more.
struct Closed;

/// One watch.
pub struct Follow {
    client: Client,
    id: WatchId,
    target: Watched,
    events: mpsc::Sender<Event>,
    /// Namespaces that workloads are in: thousands of them share a few.
    namespaces: BTreeSet<Arc<str>>,
}

/// Converts an object to the events that tell of it: as it is, or that it is gone.
type Convert<K> = fn(&mut Follow, K, bool, &How) -> Option<Event>;

impl Follow {
    /// A watch that does not run yet.
    pub fn new(client: Client, id: WatchId, target: Watched, events: mpsc::Sender<Event>) -> Self {
        Self {
            client,
            id,
            target,
            events,
            namespaces: BTreeSet::new(),
        }
    }

    /// Watches until nobody receives events any more.
    pub async fn run(mut self) {
        tracing::info!(kind = %self.target, "watching workloads");
        loop {
            let Ok(failure) = self.once().await else {
                return;
            };
            if self
                .send(Event::WatchFailed(self.id, failure))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Watches until the kind cannot be read.
    async fn once(&mut self) -> Result<WatchFailure, Closed> {
        let all = watcher::Config::default();
        let kind = match self.target.clone() {
            Watched::Workloads(kind) => kind,
            Watched::Namespaces => {
                let of = ApiResource::erase::<core::Namespace>(&());
                return self
                    .watch::<Namespace>(&of, all, &How::Plain, namespace)
                    .await;
            }
        };
        match kind {
            WorkloadKind::Other { group, kind, path } => match self.discover(&group, &kind).await {
                Ok(of) => {
                    let how = How::At(path);
                    self.watch::<DynamicObject>(&of, all, &how, workload).await
                }
                Err(failure) => Ok(failure),
            },
            WorkloadKind::CronJob => {
                let of = ApiResource::erase::<batch::CronJob>(&());
                self.watch::<Lean<Cron>>(&of, all, &How::Plain, workload)
                    .await
            }
            WorkloadKind::Pod => {
                let of = ApiResource::erase::<core::Pod>(&());
                let unfinished = all.fields(UNFINISHED);
                self.watch::<Lean<PodSpec>>(&of, unfinished, &How::Plain, workload)
                    .await
            }
            templated => {
                let (of, how) = templated_kind(&templated);
                self.watch::<Lean<Templated>>(&of, all, &how, workload)
                    .await
            }
        }
    }

    /// The resource of a kind in the version that its group prefers.
    async fn discover(&self, group: &str, kind: &str) -> Result<ApiResource, WatchFailure> {
        let absent = || {
            WatchFailure::Absent(format!(
                "the API server has no kind {group}/{kind}: install its CustomResourceDefinition, or correct the name"
            ))
        };
        match discovery::group(&self.client, group).await {
            Ok(found) => {
                let found = found.recommended_kind(kind).ok_or_else(absent)?;
                Ok(found.0)
            }
            Err(kube::Error::Discovery(
                DiscoveryError::MissingApiGroup(_) | DiscoveryError::EmptyApiGroup(_),
            )) => Err(absent()),
            Err(error) => Err(WatchFailure::Failed(told(&self.target, &error))),
        }
    }

    async fn watch<K>(
        &mut self,
        of: &ApiResource,
        config: watcher::Config,
        how: &How,
        convert: Convert<K>,
    ) -> Result<WatchFailure, Closed>
    where
        K: Resource<DynamicType = ApiResource> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let api: Api<K> = Api::all_with(self.client.clone(), of);
        let open = |config: watcher::Config| watcher(api.clone(), config).default_backoff().boxed();
        let first = self.deliver(open(config.clone().streaming_lists()), true, how, convert);
        if let Some(failure) = first.await? {
            return Ok(failure);
        }
        tracing::info!(kind = %self.target, "this API server streams no lists, asking for pages");
        let paged = self.deliver(open(config), false, how, convert).await?;
        Ok(paged
            .unwrap_or_else(|| WatchFailure::Failed(format!("the watch of {} ended", self.target))))
    }

    /// Sends what a watch brings, until it cannot be read. `None`: the API server does not stream lists.
    async fn deliver<K>(
        &mut self,
        stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
        streams: bool,
        how: &How,
        convert: Convert<K>,
    ) -> Result<Option<WatchFailure>, Closed> {
        let mut stream = std::pin::pin!(stream);
        let mut synced = false;
        loop {
            let item = if synced {
                stream.next().await
            } else {
                match timeout(STREAM_LIMIT, stream.next()).await {
                    Ok(item) => item,
                    Err(_) if streams => return Ok(None),
                    Err(_) => {
                        let why = format!("the API server sent no list of {}", self.target);
                        return Ok(Some(WatchFailure::Failed(why)));
                    }
                }
            };
            let Some(item) = item else {
                return Ok(None);
            };
            if streams && !synced && no_streaming(&item) {
                return Ok(None);
            }
            let event = match item {
                Ok(watcher::Event::Init) => Some(Event::Listing(Source::Watch(self.id))),
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    convert(self, object, true, how)
                }
                Ok(watcher::Event::Delete(object)) => convert(self, object, false, how),
                Ok(watcher::Event::InitDone) => {
                    synced = true;
                    Some(Event::Synced(Source::Watch(self.id)))
                }
                Err(error) => {
                    tracing::warn!(kind = %self.target, %error, "watch of workloads broke, trying again");
                    let failure = WatchFailure::Failed(told(&self.target, &error));
                    if is_refusal(&error) {
                        return Ok(Some(failure));
                    }
                    // What was told before is still true as far as anybody knows.
                    (!synced).then_some(Event::WatchFailed(self.id, failure))
                }
            };
            if let Some(event) = event {
                self.send(event).await?;
            }
        }
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    fn shared(&mut self, namespace: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(namespace) {
            return known.clone();
        }
        let new: Arc<str> = namespace.into();
        self.namespaces.insert(new.clone());
        new
    }
}

/// The resource of one of Kubernetes' own kinds that have their template in `spec.template`, and how it is read.
fn templated_kind(kind: &WorkloadKind) -> (ApiResource, How) {
    match kind {
        WorkloadKind::StatefulSet => (ApiResource::erase::<apps::StatefulSet>(&()), How::Plain),
        WorkloadKind::DaemonSet => (ApiResource::erase::<apps::DaemonSet>(&()), How::Plain),
        WorkloadKind::ReplicaSet => (ApiResource::erase::<apps::ReplicaSet>(&()), How::Scaled),
        WorkloadKind::Job => (ApiResource::erase::<batch::Job>(&()), How::Finishing),
        _ => (ApiResource::erase::<apps::Deployment>(&()), How::Plain),
    }
}

/// Events of a workload. One that names no image is as good as gone.
fn workload<K: Read>(follow: &mut Follow, object: K, exists: bool, how: &How) -> Option<Event> {
    let key = WorkloadKey {
        namespace: follow.shared(&object.namespace()?),
        name: object.meta().name.as_deref()?.into(),
    };
    let named = if exists { object.read(how) } else { None };
    Some(match named {
        Some(workload) => Event::WorkloadApplied(follow.id, key, Box::new(workload)),
        None => Event::WorkloadDeleted(follow.id, key),
    })
}

fn namespace(follow: &mut Follow, mut object: Namespace, exists: bool, _: &How) -> Option<Event> {
    let name: Arc<str> = object.meta().name.as_deref()?.into();
    let metadata = std::mem::take(object.meta_mut());
    Some(if exists {
        Event::NamespaceApplied(follow.id, name, objects::labels(metadata))
    } else {
        Event::NamespaceDeleted(follow.id, name)
    })
}

/// Returns whether an error does not go away by trying again soon: the kind is gone, or may not be read.
fn is_refusal(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403 | 404 | 405)
    )
}

/// An error as people read it.
fn told(target: &Watched, error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&format!("{target} cannot be read: {cause}"), LONGEST_ERROR)
}
