//! What the cluster says, turned into the engine's events. One watch each; after a broken watch the
//! list is told anew, and what is gone is told as deleted.

pub mod caches;
pub mod nodes;
pub mod pullers;

use std::{collections::BTreeSet, fmt::Debug};

use futures::StreamExt as _;
use kube::{Api, Resource, runtime::WatchStreamExt as _, runtime::watcher};
use kubefledged_engine::{Event, Source};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// What one kind of object means to the engine.
pub trait Input {
    /// The object.
    type Object;
    /// Identifies it among its kind.
    type Key: Ord + Clone;
    /// Its identity.
    fn key(&self, object: &Self::Object) -> Option<Self::Key>;
    /// It is there, or has changed. Events only for what is another now.
    fn applied(&mut self, object: Self::Object, tell: &mut Vec<Event>);
    /// It is gone.
    fn deleted(&mut self, key: &Self::Key, tell: &mut Vec<Event>);
}

/// Watches for ever. Ends only when nobody listens any more.
pub async fn watch<I, K>(
    api: Api<K>,
    config: watcher::Config,
    source: Source,
    mut input: I,
    events: mpsc::Sender<Event>,
) where
    I: Input<Object = K>,
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut stream = watcher(api, config).default_backoff().boxed();
    let mut known: BTreeSet<I::Key> = BTreeSet::new();
    let mut listed: Option<BTreeSet<I::Key>> = None;
    while let Some(item) = stream.next().await {
        let mut tell = Vec::new();
        match item {
            Ok(watcher::Event::Init) => listed = Some(BTreeSet::new()),
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                if let Some(key) = input.key(&object) {
                    if let Some(listed) = &mut listed {
                        listed.insert(key.clone());
                    }
                    known.insert(key);
                }
                input.applied(object, &mut tell);
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(key) = input.key(&object) {
                    known.remove(&key);
                    input.deleted(&key, &mut tell);
                }
            }
            Ok(watcher::Event::InitDone) => {
                if let Some(listed) = listed.take() {
                    for key in known.difference(&listed) {
                        input.deleted(key, &mut tell);
                    }
                    known = listed;
                }
                tell.push(Event::Synced(source));
            }
            Err(error) => tracing::warn!(?source, %error, "watch broke, trying again"),
        }
        for event in tell {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}
