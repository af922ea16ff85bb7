//! The API server: objects with resource versions, what they were before, and the Lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::{ImageCacheSpec, ImageCacheStatus, Timestamp, names::status};
use kubefledged_engine::{
    CacheKey, CacheObject, Event, KnownBudget, NodeFacts, NodeName, Puller, WatchId, Workload,
    WorkloadKey,
};

use crate::script::SourceKey;

/// Names a resource.
pub type Key = (SourceKey, String);

/// An `ImageCache` as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Another object of the same name has another one.
    pub uid: u64,
    /// Rises with every write to any object.
    pub version: u64,
    /// Rises with every change of the spec.
    pub generation: i64,
    /// What is wanted.
    pub spec: ImageCacheSpec,
    /// What the controller wrote.
    pub status: ImageCacheStatus,
    /// Value of the refresh annotation.
    pub refresh: Option<String>,
    /// Value of the purge annotation.
    pub purge: Option<String>,
    /// `status.startTime` of the operation during which that refresh was asked for.
    pub refresh_during: Option<Timestamp>,
    /// The same of that purge.
    pub purge_during: Option<Timestamp>,
    /// Whoever writes the spec did not write that annotation.
    pub purge_came_later: bool,
    /// Ours stands on it.
    pub finalizer: bool,
    /// Deleted, and held by the finalizer.
    pub deleting: bool,
    /// For the rules: names that `status.appliedImages` ever held.
    pub ever_applied: BTreeSet<String>,
    /// For the rules: what the user did last.
    pub last_wish: Wish,
}

impl Object {
    /// `status.startTime` of the operation in progress.
    pub fn in_progress(&self) -> Option<Timestamp> {
        let runs = self.status.status == status::PROCESSING;
        self.status.start_time.filter(|_| runs)
    }
}

/// What a user did last to an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Wrote a spec.
    #[default]
    Spec,
    /// Asked for a refresh; the flag: when a purge was over.
    Refresh(bool),
    /// Asked for a purge.
    Purge,
}

/// Anything that is watched.
#[derive(Clone, Debug)]
pub enum Resource {
    /// An `ImageCache`.
    Cache(Box<Object>),
    /// A Node.
    Node(NodeFacts),
    /// The ready puller of a node.
    Puller(Puller),
    /// A Deployment.
    Workload(Workload),
}

/// What became of a resource; nothing: it is gone.
pub type Change = (Key, Option<Resource>);

/// The Lease of the controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Which controller, and which of its lives.
    pub holder: Option<(usize, u32)>,
    /// The term.
    pub term: u64,
    /// Another value means that the holder is alive.
    pub renewed: u64,
}

/// All that is stored.
#[derive(Debug, Default)]
pub struct Api {
    /// As it is now.
    pub now: BTreeMap<Key, Resource>,
    /// The Lease; nothing before the first leader, and after somebody deleted it.
    pub lease: Option<Lease>,
    /// What the Lease says of registries.
    pub budgets: Vec<(Arc<str>, KnownBudget)>,
    version: u64,
    history: Vec<(u64, Key, Option<Resource>)>,
}

impl Api {
    /// A version that nothing had before.
    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Stores a resource.
    pub fn put(&mut self, at: u64, key: Key, mut resource: Resource) {
        let version = self.next_version();
        if let Resource::Cache(object) = &mut resource {
            object.version = version;
        }
        self.now.insert(key.clone(), resource.clone());
        self.history.push((at, key, Some(resource)));
    }

    /// Deletes a resource. False: there was none.
    pub fn delete(&mut self, at: u64, key: &Key) -> bool {
        let was = self.now.remove(key).is_some();
        if was {
            self.next_version();
            self.history.push((at, key.clone(), None));
        }
        was
    }

    /// All of a kind as they were then, and what happened since.
    pub fn as_of(&self, source: SourceKey, at: u64) -> (BTreeMap<Key, Resource>, Vec<Change>) {
        let mut then = BTreeMap::new();
        let mut since = Vec::new();
        for (when, key, resource) in self.history.iter().filter(|(_, (s, _), _)| *s == source) {
            match (*when <= at, resource) {
                (true, Some(resource)) => drop(then.insert(key.clone(), resource.clone())),
                (true, None) => drop(then.remove(key)),
                (false, _) => since.push((key.clone(), resource.clone())),
            }
        }
        (then, since)
    }

    /// The stored `ImageCache` of this key.
    pub fn cache(&self, key: &str) -> Option<&Object> {
        match self.now.get(&(SourceKey::Caches, key.to_owned())) {
            Some(Resource::Cache(object)) => Some(object),
            _ => None,
        }
    }

    /// All workloads.
    pub fn workloads(&self) -> impl Iterator<Item = (WorkloadKey, &Workload)> {
        let all = self.now.iter();
        all.filter_map(|((_, key), resource)| match resource {
            Resource::Workload(workload) => Some((workload_key(key), workload)),
            _ => None,
        })
    }

    /// All `ImageCaches`.
    pub fn caches(&self) -> impl Iterator<Item = (&String, &Object)> {
        self.now
            .iter()
            .filter_map(|((_, key), resource)| match resource {
                Resource::Cache(object) => Some((key, &**object)),
                _ => None,
            })
    }
}

/// A resource as the controller's inputs tell it. `watch`: the number of the watch of workloads.
pub fn applied(key: &str, resource: &Resource, watch: WatchId) -> Event {
    match resource {
        Resource::Cache(object) => Event::CacheApplied(Box::new(seen(key, object))),
        Resource::Workload(workload) => {
            Event::WorkloadApplied(watch, workload_key(key), Box::new(workload.clone()))
        }
        Resource::Node(facts) => Event::NodeApplied(NodeName(key.into()), facts.clone()),
        Resource::Puller(puller) => {
            Event::PullerChanged(NodeName(key.into()), Some(puller.clone()))
        }
    }
}

/// Its end as the controller's inputs tell it.
pub fn deleted((source, key): &Key, watch: WatchId) -> Event {
    match source {
        SourceKey::Workloads => Event::WorkloadDeleted(watch, workload_key(key)),
        SourceKey::Caches => Event::CacheDeleted(cache_key(key)),
        SourceKey::Nodes => Event::NodeDeleted(NodeName(key.as_str().into())),
        SourceKey::Pullers => Event::PullerChanged(NodeName(key.as_str().into()), None),
    }
}

/// Nodes and pullers are told only when they differ from what was told.
pub fn same(a: &Resource, b: &Resource) -> bool {
    match (a, b) {
        (Resource::Node(a), Resource::Node(b)) => a == b,
        (Resource::Puller(a), Resource::Puller(b)) => a == b,
        _ => false,
    }
}

/// `namespace/name`
pub fn cache_key(key: &str) -> CacheKey {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    CacheKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// `namespace/name`
pub fn workload_key(key: &str) -> WorkloadKey {
    let CacheKey { namespace, name } = cache_key(key);
    WorkloadKey { namespace, name }
}

fn seen(key: &str, object: &Object) -> CacheObject {
    CacheObject {
        key: cache_key(key),
        uid: object.uid.to_string(),
        resource_version: object.version.to_string(),
        generation: object.generation,
        spec: object.spec.clone(),
        status: object.status.clone(),
        refresh: object.refresh.clone(),
        purge: object.purge.clone(),
        purge_came_later: object.purge_came_later,
        deleting: object.deleting,
        finalizer: object.finalizer,
    }
}
