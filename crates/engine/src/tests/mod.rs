//! Whole stories, fed to the engine event by event. A small harness answers its commands: writes succeed,
//! nodes hold what was pulled to them.

mod answers;
mod deletion;
mod edits;
mod fields;
mod gate;
mod gates;
mod handovers;
mod honest;
mod leaders;
mod limits;
mod nodes;
mod operations;
mod peers;
mod recorded;
mod refresh;
mod shared_calls;
mod sources;
mod suspend;
mod truth;
mod view;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, ImageCacheStatus, ImagePullPolicy, PullSecretReference,
    RemovalPolicy, Retention, Timestamp,
};

use super::*;

#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the harness, not one state"
)]
struct Harness {
    engine: Option<Engine>,
    now: Now,
    version: u64,
    objects: BTreeMap<CacheKey, CacheObject>,
    /// Names on nodes, and which image each is.
    held: BTreeMap<String, BTreeMap<String, u32>>,
    /// What the registry has, where it is not the first of its name.
    moved: BTreeMap<String, u32>,
    /// Our pins: ids on nodes.
    pins: BTreeMap<String, BTreeSet<String>>,
    /// Runtimes do not say which pins are ours, nor take them off.
    pins_unknown: bool,
    /// Nodes whose runtime cannot pin.
    unpinnable: bool,
    /// Images of which a volume would be empty.
    artifacts: BTreeSet<String>,
    disk_full: bool,
    /// Nodes whose runtime can take layers from others and hand them on; `None`: their pullers do not say.
    shares: Option<BTreeSet<String>>,
    /// Pulls that a puller runs at a time; 0: it does not say.
    parallel: u32,
    /// Images that cannot be pulled, and the reason.
    broken: BTreeMap<String, &'static str>,
    /// Names that cannot be removed.
    stuck: BTreeSet<String>,
    /// Names that somebody else pulled: they stay where only ours go.
    foreign: BTreeSet<String>,
    /// Names that are in use.
    in_use: BTreeSet<String>,
    /// Images whose pulls do not end.
    slow: BTreeSet<String>,
    /// Images that every puller pulls already, for a call that nobody here knows of.
    running: BTreeSet<String>,
    /// Nodes whose puller cannot be reached.
    unreachable: BTreeSet<String>,
    /// The API server does not answer for secrets.
    no_secrets: bool,
    /// Everything the engine asked for.
    log: Vec<String>,
    batches: Vec<Batch>,
    statuses: Vec<(CacheKey, ImageCacheStatus)>,
    /// Images of pulls that have not ended, by batch and index.
    open: BTreeMap<BatchId, BTreeMap<usize, String>>,
    /// The watch brings a write before the write is answered.
    watch_is_faster: bool,
    /// Writes of the status are not answered with success.
    writes_fail: bool,
    /// Node objects that the gate writes to.
    gated: BTreeMap<String, gate::Object>,
    /// A status with more names than this is too large for the API server.
    most_names: Option<usize>,
    /// How many were.
    refused_writes: usize,
    /// Watches that are wanted.
    watches: Vec<(WatchId, Watched)>,
}

fn key() -> CacheKey {
    named("a")
}

fn named(name: &str) -> CacheKey {
    CacheKey {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn node(name: &str) -> NodeName {
    NodeName(name.into())
}

fn facts(labels: &[(&str, &str)]) -> NodeFacts {
    NodeFacts {
        labels: labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ready: true,
        ..NodeFacts::default()
    }
}

/// Images and the labels that select nodes.
type Lists<'a> = [(&'a [&'a str], &'a [(&'a str, &'a str)])];

fn spec(lists: &Lists<'_>) -> ImageCacheSpec {
    ImageCacheSpec {
        cache_spec: lists
            .iter()
            .map(|(images, selector)| CacheSpecEntry {
                images: images.iter().map(ToString::to_string).collect(),
                node_selector: facts(selector).labels,
                ..CacheSpecEntry::default()
            })
            .collect(),
        ..ImageCacheSpec::default()
    }
}

/// One list for all nodes.
fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.into(),
        effect: effect.into(),
        ..Taint::default()
    }
}

fn images(images: &[&str]) -> ImageCacheSpec {
    spec(&[(images, &[])])
}

/// The same, and pinned.
fn pinned(names: &[&str]) -> ImageCacheSpec {
    ImageCacheSpec {
        retention: Some(Retention::Pinned),
        ..images(names)
    }
}

fn failed(reason: &str) -> ImageResult {
    ImageResult::Failed {
        reason: reason.to_owned(),
        message: "as planned".to_owned(),
    }
}

fn id(name: &str, version: u32) -> String {
    format!("sha256:{name}-{version}")
}

impl Harness {
    fn new(nodes: &[&str]) -> Self {
        Self::with(Settings::default(), nodes)
    }

    fn with(settings: Settings, nodes: &[&str]) -> Self {
        let mut harness = Self {
            engine: Some(Engine::new(settings)),
            now: Now {
                tick: Tick(1000),
                wall: Timestamp(1_700_000_000),
            },
            version: 1,
            ..Self::default()
        };
        for name in nodes {
            harness.join(name, &[]);
        }
        harness.handle(Event::Synced(Source::Nodes));
        harness.handle(Event::Synced(Source::Pullers));
        harness
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    /// The object becomes one that cannot be parsed, as generation 2.
    fn break_spec(&mut self, message: &str) {
        let object = self.objects[&key()].clone();
        self.handle(Event::CacheInvalid(Box::new(InvalidCache {
            key: key(),
            uid: object.uid,
            resource_version: object.resource_version,
            generation: 2,
            status: object.status,
            refresh: object.refresh,
            purge: object.purge,
            purge_came_later: object.purge_came_later,
            finalizer: false,
            deleting: false,
            message: message.into(),
        })));
    }

    fn lead(&mut self) {
        self.handle(Event::Synced(Source::Caches));
        self.handle(Event::Leadership(Some(1)));
        self.run();
    }

    /// Another leader, that knows what the API server knows.
    fn change_leader(&mut self) {
        self.handle(Event::Leadership(None));
        self.run();
        self.handle(Event::Leadership(Some(2)));
        self.run();
    }

    fn join(&mut self, name: &str, labels: &[(&str, &str)]) {
        self.handle(Event::NodeApplied(node(name), facts(labels)));
        self.puller(name);
    }

    fn puller(&mut self, name: &str) {
        let puller = Puller {
            instance: format!("pod-{name}").into(),
            address: ([10, 0, 0, 1], 7443).into(),
        };
        self.handle(Event::PullerChanged(node(name), Some(puller)));
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        self.engine().handle(now, event);
    }

    fn apply_to(&mut self, key: &CacheKey, change: impl FnOnce(&mut CacheObject)) {
        self.version += 1;
        let version = self.version.to_string();
        let object = self
            .objects
            .entry(key.clone())
            .or_insert_with(|| CacheObject {
                key: key.clone(),
                uid: format!("uid-{}", key.name),
                resource_version: String::new(),
                generation: 1,
                spec: ImageCacheSpec::default(),
                status: ImageCacheStatus::default(),
                refresh: None,
                purge: None,
                purge_came_later: false,
                deleting: false,
                finalizer: false,
            });
        change(object);
        object.resource_version = version;
        let object = object.clone();
        self.handle(Event::CacheApplied(Box::new(object)));
    }

    fn apply(&mut self, change: impl FnOnce(&mut CacheObject)) {
        self.apply_to(&key(), change);
    }

    fn create(&mut self, spec: ImageCacheSpec) {
        self.apply(|object| object.spec = spec);
    }

    fn create_as(&mut self, name: &str, spec: ImageCacheSpec) {
        self.apply_to(&named(name), |object| object.spec = spec);
    }

    /// Another spec, and what follows from it.
    fn edit(&mut self, spec: ImageCacheSpec) {
        self.apply(|object| {
            object.spec = spec;
            object.generation += 1;
        });
        self.run();
    }

    fn change(&mut self, change: impl FnOnce(&mut ImageCacheSpec)) {
        self.apply(|object| {
            change(&mut object.spec);
            object.generation += 1;
        });
        self.run();
    }

    /// `kubectl delete`, as the API server has it: gone, or held by a finalizer.
    fn delete(&mut self) {
        if self.objects[&key()].finalizer {
            self.apply(|object| object.deleting = true);
        } else {
            self.objects.remove(&key());
            self.handle(Event::CacheDeleted(key()));
        }
        self.run();
    }

    fn wait(&mut self, seconds: u64) {
        let until = self.now.tick.0 + seconds * 1000;
        // As a clock does: every timer at its time.
        while let Some(next) = self.engine().next_wakeup().filter(|at| at.0 <= until) {
            self.go_to(next.0.max(self.now.tick.0));
            self.run();
        }
        self.go_to(until);
        self.run();
    }

    fn go_to(&mut self, tick: u64) {
        let start = self.now.wall.0 * 1000 - i64::try_from(self.now.tick.0).unwrap();
        self.now.tick.0 = tick;
        self.now.wall.0 = (start + i64::try_from(tick).unwrap()).div_euclid(1000);
    }

    fn run(&mut self) {
        let mut queue = VecDeque::new();
        for _ in 0..5000 {
            let mut out = Vec::new();
            let now = self.now;
            self.engine().poll(now, &mut out);
            queue.extend(out);
            let Some(command) = queue.pop_front() else {
                let next = self.engine().next_wakeup();
                assert!(
                    next.is_none_or(|at| at > now.tick),
                    "a timer that fires for ever"
                );
                return;
            };
            self.carry_out(command);
        }
        panic!(
            "the engine does not come to rest: {:#?}",
            &self.log[self.log.len().saturating_sub(20)..]
        );
    }

    fn status(&self) -> &ImageCacheStatus {
        &self.objects[&key()].status
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let mut conditions = self.status().conditions.iter();
        let found = conditions.find(|c| c.type_ == type_).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    fn is(&self, type_: &str, status: &str, reason: &str) {
        assert_eq!(
            self.condition(type_),
            (status.into(), reason.into()),
            "{type_}"
        );
    }

    fn has_no(&self, type_: &str) {
        let mut conditions = self.status().conditions.iter();
        assert_eq!(conditions.find(|c| c.type_ == type_), None);
    }

    fn message(&self, type_: &str) -> &str {
        let mut conditions = self.status().conditions.iter();
        let found = conditions.find(|c| c.type_ == type_);
        &found
            .unwrap_or_else(|| panic!("no condition {type_}"))
            .message
    }

    fn reported(&self) -> (&str, &str) {
        (&self.status().status, &self.status().reason)
    }

    /// The pull secret `s` was read for caches: these secrets do not exist.
    fn secrets_read(&mut self, caches: Vec<CacheKey>, missing: &[&str]) {
        let problems = SecretProblems {
            missing: missing.iter().map(ToString::to_string).collect(),
            ..SecretProblems::default()
        };
        let scope = CredentialScope {
            namespace: "ns".into(),
            secrets: ["s".to_owned()].into(),
            service_account: None,
            of_pods: false,
        };
        self.handle(Event::SecretsRead(caches, scope, problems));
        self.run();
    }

    fn count(&self, prefix: &str) -> usize {
        let lines = self.log.iter();
        lines.filter(|line| line.starts_with(prefix)).count()
    }

    /// What was asked of nodes since the last call, and nothing else.
    fn asked(&mut self) -> Vec<String> {
        let log = std::mem::take(&mut self.log);
        let asked = |line: &String| !line.starts_with("event");
        log.into_iter().filter(asked).collect()
    }

    fn held(&self, node: &str) -> Vec<&str> {
        let held = self.held.get(node).into_iter().flatten();
        held.map(|(name, _)| name.as_str()).collect()
    }

    fn why(&self, cache: &str, name: &str) -> Vec<Result<PullReason, PullBlock>> {
        let query = crate::view::PairQuery {
            cache: named(cache),
            node: Some(node(name)),
            image: None,
            states: Vec::new(),
        };
        let engine = self.engine.as_ref().unwrap();
        let pairs = engine.view_pairs(self.now, &query, None).unwrap();
        pairs.rows.into_iter().map(|row| row.plan).collect()
    }
}
