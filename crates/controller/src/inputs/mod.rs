//! Converts changes in the cluster to events of the engine, with one watch per kind of object. After a
//! broken watch the whole list is sent again, and missing objects are sent as deleted. Objects are not kept;
//! only their keys and the facts that were sent.

pub mod caches;
pub mod lean;
pub mod nodes;
pub mod placement;
pub mod pullers;
pub mod starting;
pub mod workloads;

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use kube::{Api, Resource, runtime::WatchStreamExt as _, runtime::watcher};
use kubefledged_engine::{Event, Source};
use kubefledged_process::Guard;
use serde::de::DeserializeOwned;
use tokio::{select, sync::mpsc, time::timeout};

/// Time limit for a streamed list to be complete. An API server that needs longer does not support streamed
/// lists.
pub(crate) const STREAM_LIMIT: Duration = Duration::from_secs(60);

/// Converts one kind of object to events of the engine.
pub trait Input {
    /// The object.
    type Object;
    /// Identifies an object among its kind.
    type Key: Ord + Clone;
    /// Returns the key of an object.
    fn key(&self, object: &Self::Object) -> Option<Self::Key>;
    /// An object exists or has changed. Sends events only for changed facts.
    fn applied(&mut self, object: Self::Object, events: &mut Vec<Event>);
    /// An object was deleted.
    fn deleted(&mut self, key: &Self::Key, events: &mut Vec<Event>);
    /// The first list is complete.
    fn listed(&mut self) {}
    /// Waits for facts that no watch brings. Nothing is lost if it is dropped before it ends.
    fn more(&mut self, _events: &mut Vec<Event>) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Watches until nobody receives events any more. The guard is ready after the first complete list.
pub async fn watch<I, K>(
    api: Api<K>,
    config: watcher::Config,
    source: Source,
    input: I,
    events: mpsc::Sender<Event>,
    guard: Guard,
) where
    I: Input<Object = K> + Send,
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let open = |config: watcher::Config| watcher(api.clone(), config).default_backoff().boxed();
    guard.set_pending("listing");
    let mut converter = Converter::new(source, input, guard);
    let mut streams = true;
    let mut stream: BoxStream<'_, _> = open(config.clone().streaming_lists());
    loop {
        let (limited, mut found) = (streams && !converter.synced, Vec::new());
        let next = async {
            if limited {
                timeout(STREAM_LIMIT, stream.next()).await
            } else {
                Ok(stream.next().await)
            }
        };
        let item = select! {
            item = next => item,
            () = converter.input.more(&mut found) => {
                for event in found {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                continue;
            }
        };
        let refused = match &item {
            Ok(Some(item)) => no_streaming(item),
            Ok(None) => false,
            Err(_) => true,
        };
        if streams && !converter.synced && refused {
            tracing::info!(
                ?source,
                "this API server streams no lists, asking for pages"
            );
            streams = false;
            stream = open(config.clone());
            continue;
        }
        let Ok(Some(item)) = item else { return };
        for event in converter.convert(item) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Returns whether an error means that the API server does not support streamed lists: Kubernetes before 1.32,
/// or with the feature off.
pub(crate) fn no_streaming<K>(item: &Result<watcher::Event<K>, watcher::Error>) -> bool {
    matches!(
        item,
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
            if matches!(status.code, 400 | 422)
    )
}

/// Converts the output of a watch to events.
struct Converter<I: Input> {
    source: Source,
    input: I,
    guard: Guard,
    known: BTreeSet<I::Key>,
    /// Keys in the current list, while it is being received.
    listed: Option<BTreeSet<I::Key>>,
    synced: bool,
}

impl<I: Input> Converter<I> {
    fn new(source: Source, input: I, guard: Guard) -> Self {
        Self {
            source,
            input,
            guard,
            known: BTreeSet::new(),
            listed: None,
            synced: false,
        }
    }

    fn convert(&mut self, item: Result<watcher::Event<I::Object>, watcher::Error>) -> Vec<Event> {
        let mut events = Vec::new();
        match item {
            Ok(watcher::Event::Init) => {
                self.listed = Some(BTreeSet::new());
                events.push(Event::Listing(self.source));
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                if let Some(key) = self.input.key(&object) {
                    if let Some(listed) = &mut self.listed {
                        listed.insert(key.clone());
                    }
                    self.known.insert(key);
                }
                self.input.applied(object, &mut events);
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(key) = self.input.key(&object) {
                    self.known.remove(&key);
                    self.input.deleted(&key, &mut events);
                }
            }
            Ok(watcher::Event::InitDone) => {
                if let Some(listed) = self.listed.take() {
                    for key in self.known.difference(&listed) {
                        self.input.deleted(key, &mut events);
                    }
                    self.known = listed;
                }
                if !self.synced {
                    self.input.listed();
                }
                self.synced = true;
                self.guard.set_ready();
                events.push(Event::Synced(self.source));
            }
            Err(error) => {
                tracing::warn!(source = ?self.source, %error, "watch broke, trying again");
                if !self.synced {
                    self.guard.set_pending(error.to_string());
                }
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_process::Readiness;

    use super::*;

    /// Sends every name as a deleted or new node.
    struct Names;

    impl Input for Names {
        type Object = &'static str;
        type Key = &'static str;

        fn key(&self, object: &&'static str) -> Option<&'static str> {
            Some(object)
        }
        fn applied(&mut self, object: &'static str, events: &mut Vec<Event>) {
            events.push(Event::NodeApplied(
                name(object),
                kubefledged_engine::NodeFacts::default(),
            ));
        }
        fn deleted(&mut self, key: &&'static str, events: &mut Vec<Event>) {
            events.push(Event::NodeDeleted(name(key)));
        }
    }

    fn name(name: &str) -> kubefledged_engine::NodeName {
        kubefledged_engine::NodeName(name.into())
    }

    fn converted(
        converter: &mut Converter<Names>,
        events: Vec<watcher::Event<&'static str>>,
    ) -> Vec<String> {
        let all = events
            .into_iter()
            .flat_map(|event| converter.convert(Ok(event)));
        all.map(|event| match event {
            Event::NodeApplied(name, _) => format!("+{name}"),
            Event::NodeDeleted(name) => format!("-{name}"),
            Event::Listing(_) => "listing".to_owned(),
            Event::Synced(_) => "synced".to_owned(),
            other => format!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn what_vanished_while_the_watch_was_broken_is_sent_as_deleted_after_the_new_list() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

        let readiness = Readiness::default();
        let mut converter = Converter::new(Source::Nodes, Names, readiness.register("nodes"));
        let sent = converted(&mut converter, vec![Init, InitApply("a"), InitApply("b")]);
        assert_eq!(sent, ["listing", "+a", "+b"]);
        assert!(!readiness.pending().is_empty());
        assert_eq!(converted(&mut converter, vec![InitDone]), ["synced"]);
        assert!(readiness.pending().is_empty());
        let sent = converted(&mut converter, vec![Apply("c"), Delete("a")]);
        assert_eq!(sent, ["+c", "-a"]);
        // A list that breaks half way counts for nothing.
        let sent = converted(
            &mut converter,
            vec![Init, InitApply("b"), Init, InitApply("c")],
        );
        assert_eq!(sent, ["listing", "+b", "listing", "+c"]);
        assert_eq!(converted(&mut converter, vec![InitDone]), ["-b", "synced"]);
    }

    #[test]
    fn a_list_that_cannot_be_had_is_named_by_readiness() {
        let readiness = Readiness::default();
        let mut converter = Converter::new(Source::Nodes, Names, readiness.register("nodes"));
        converter.convert(Err(watcher::Error::NoResourceVersion));
        let pending = readiness.pending();
        assert!(pending[0].1.contains("resourceVersion"), "{pending:?}");
    }
}
