//! Whole stories told to the engine by hand. A small world answers its commands: writes succeed,
//! nodes hold what was pulled to them.

mod deletion;
mod edits;
mod fields;
mod leaders;
mod limits;
mod nodes;
mod operations;
mod refresh;
mod truth;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, ImageCacheStatus, ImagePullPolicy, PullSecretReference,
    Retention, Timestamp,
};

use super::*;

#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the world, not one state"
)]
struct World {
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
    disk_full: bool,
    /// Pulls that a puller runs at a time; 0: it does not say.
    parallel: u32,
    /// Images that cannot be pulled, and the word for it.
    broken: BTreeMap<String, &'static str>,
    /// Names that cannot be removed.
    stuck: BTreeSet<String>,
    /// Names that are in use.
    in_use: BTreeSet<String>,
    /// Images whose pulls do not end.
    slow: BTreeSet<String>,
    /// Nodes whose puller cannot be reached.
    deaf: BTreeSet<String>,
    /// The API server does not answer for secrets.
    no_secrets: bool,
    /// Everything the engine asked for.
    log: Vec<String>,
    batches: Vec<Batch>,
    statuses: Vec<(CacheKey, ImageCacheStatus)>,
    /// Images of pulls that have not ended, by batch and index.
    open: BTreeMap<BatchId, BTreeMap<usize, String>>,
    /// The watch tells of a write before the write is answered.
    watch_is_faster: bool,
    /// Writes of the status are not answered with success.
    writes_fail: bool,
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

impl World {
    fn new(nodes: &[&str]) -> Self {
        Self::with(Settings::default(), nodes)
    }

    fn with(settings: Settings, nodes: &[&str]) -> Self {
        let mut world = Self {
            engine: Some(Engine::new(settings)),
            now: Now {
                tick: Tick(1000),
                wall: Timestamp(1_700_000_000),
            },
            version: 1,
            ..Self::default()
        };
        for name in nodes {
            world.join(name, &[]);
        }
        world.tell(Event::Synced(Source::Nodes));
        world.tell(Event::Synced(Source::Pullers));
        world
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    fn lead(&mut self) {
        self.tell(Event::Synced(Source::Caches));
        self.tell(Event::Leadership(Some(1)));
        self.run();
    }

    /// Another leader, that knows what the API server knows.
    fn change_leader(&mut self) {
        self.tell(Event::Leadership(None));
        self.run();
        self.tell(Event::Leadership(Some(2)));
        self.run();
    }

    fn join(&mut self, name: &str, labels: &[(&str, &str)]) {
        self.tell(Event::NodeApplied(node(name), facts(labels)));
        self.puller(name);
    }

    fn puller(&mut self, name: &str) {
        let puller = Puller {
            instance: format!("pod-{name}").into(),
            address: ([10, 0, 0, 1], 7443).into(),
        };
        self.tell(Event::PullerChanged(node(name), Some(puller)));
    }

    fn tell(&mut self, event: Event) {
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
                deleting: false,
                finalizer: false,
            });
        change(object);
        object.resource_version = version;
        let object = object.clone();
        self.tell(Event::CacheApplied(Box::new(object)));
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
            self.tell(Event::CacheDeleted(key()));
        }
        self.run();
    }

    fn wait(&mut self, seconds: u64) {
        let until = self.now.tick.0 + seconds * 1000;
        // As a clock does: every alarm at its time.
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
                    "an alarm that rings for ever"
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

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::StartBatch(batch) => {
                self.batch(&batch);
                self.batches.push(*batch);
            }
            Command::CancelPulls(cancel) => self.cancel(&cancel),
            Command::WriteStatus {
                key,
                status,
                resource_version,
            } => self.write(key, *status, &resource_version),
            Command::ClearAnnotation {
                key,
                annotation,
                value,
            } => self.clear(key, annotation, &value),
            Command::SetFinalizer { key, present, .. } => self.finalize(key, present),
            Command::EmitEvent {
                reason, message, ..
            } => self.log.push(format!("event {reason}: {message}")),
            Command::NodeTransition {
                node, transition, ..
            } => {
                let text = match transition {
                    NodeTransition::Warm { .. } => "warm".to_owned(),
                    NodeTransition::Stuck { image, reason, .. } => {
                        format!("stuck: {image} {reason}")
                    }
                };
                self.log.push(format!("event {node} {text}"));
            }
            Command::RaiseTerm { seen_term } => self.log.push(format!("raise {seen_term}")),
        }
    }

    fn cancel(&mut self, cancel: &CancelPulls) {
        let names = cancel.references.join(" ");
        self.log.push(format!("cancel {} {names}", cancel.node));
        let asked = self.open.get(&cancel.batch).cloned().unwrap_or_default();
        let outcomes = asked
            .iter()
            .filter(|(_, name)| cancel.references.iter().any(|r| **r == ***name))
            .map(|(index, _)| ImageOutcome::new(*index, ImageResult::Cancelled))
            .collect();
        self.answer(cancel.batch, outcomes);
    }

    /// Outcomes of a pull; with the last one the batch ends.
    fn answer(&mut self, batch: BatchId, outcomes: Vec<ImageOutcome>) {
        let Some(open) = self.open.get_mut(&batch) else {
            return;
        };
        open.retain(|index, _| !outcomes.iter().any(|outcome| outcome.index == *index));
        let ended = open.is_empty();
        self.tell(Event::Outcomes(batch, outcomes));
        if ended {
            self.open.remove(&batch);
            self.tell(Event::BatchEnded(batch, BatchEnd::Done));
        }
    }

    fn write(&mut self, key: CacheKey, status: ImageCacheStatus, over: &str) {
        if self.writes_fail {
            let error = WriteError::Failed("as planned".to_owned());
            self.tell(Event::StatusWritten(key, Err(error)));
            return;
        }
        let Some(object) = self.objects.get_mut(&key) else {
            self.tell(Event::StatusWritten(key, Err(WriteError::Gone)));
            return;
        };
        if object.resource_version != over {
            self.tell(Event::StatusWritten(key, Err(WriteError::Conflict)));
            return;
        }
        self.version += 1;
        object.resource_version = self.version.to_string();
        object.status = status.clone();
        self.statuses.push((key.clone(), status));
        let version = object.resource_version.clone();
        if self.watch_is_faster {
            let object = object.clone();
            self.tell(Event::CacheApplied(Box::new(object)));
        }
        self.tell(Event::StatusWritten(key, Ok(version)));
    }

    fn clear(&mut self, key: CacheKey, annotation: &str, value: &str) {
        self.log.push(format!("clear {annotation} {value:?}"));
        self.version += 1;
        let version = self.version.to_string();
        let object = self.objects.get_mut(&key).unwrap();
        let stands = if annotation.contains("purge") {
            &mut object.purge
        } else {
            &mut object.refresh
        };
        if stands.as_deref() != Some(value) {
            self.tell(Event::AnnotationCleared(key, Ok(None)));
            return;
        }
        *stands = None;
        object.resource_version.clone_from(&version);
        self.tell(Event::AnnotationCleared(key, Ok(Some(version))));
    }

    fn finalize(&mut self, key: CacheKey, present: bool) {
        self.log.push(format!("finalizer {} {present}", key.name));
        self.version += 1;
        let object = self.objects.get_mut(&key).unwrap();
        object.finalizer = present;
        object.resource_version = self.version.to_string();
        let version = Ok(Some(object.resource_version.clone()));
        let gone = object.deleting && !present;
        self.tell(Event::FinalizerWritten(key.clone(), version));
        if gone {
            self.objects.remove(&key);
            self.tell(Event::CacheDeleted(key));
        }
    }

    fn batch(&mut self, batch: &Batch) {
        let node = batch.node.to_string();
        let names: Vec<String> = match &batch.work {
            Work::Pull { images, .. } => images.iter().map(|i| i.reference.to_string()).collect(),
            Work::Remove { references, .. } | Work::Check { references } => {
                references.iter().map(ToString::to_string).collect()
            }
        };
        let verb = match &batch.work {
            Work::Pull { .. } => "pull",
            Work::Remove { .. } => "remove",
            Work::Check { .. } => "check",
        };
        self.log.push(format!("{verb} {node} {}", names.join(" ")));
        if self.deaf.contains(&node) {
            self.tell(Event::BatchEnded(batch.id, BatchEnd::Unreachable));
            return;
        }
        if self.no_secrets && verb == "pull" {
            let end = BatchEnd::CredentialsFailed("secrets is forbidden".to_owned());
            self.tell(Event::BatchEnded(batch.id, end));
            return;
        }
        let outcomes: Vec<ImageOutcome> = match &batch.work {
            Work::Pull { images, .. } => {
                let pulls = images.iter().enumerate();
                pulls
                    .filter_map(|(index, item)| self.pull(&node, index, item))
                    .collect()
            }
            Work::Check { .. } => {
                let checks = names.iter().enumerate();
                checks
                    .map(|(index, name)| self.check(&node, index, name))
                    .collect()
            }
            Work::Remove { unpin, .. } => {
                let mut outcomes = self.remove(&node, &names);
                for id in unpin {
                    self.log.push(format!("unpin {node} {id}"));
                    let result = if self.pins_unknown {
                        failed("RuntimeUnavailable")
                    } else {
                        self.pins.entry(node.clone()).or_default().remove(&**id);
                        ImageResult::Removed
                    };
                    outcomes.push(ImageOutcome::new(outcomes.len(), result));
                }
                outcomes
            }
        };
        if verb == "check" {
            let pins = self.pins.get(&node).into_iter().flatten();
            let report = CheckReport {
                pinned_by_us: pins
                    .filter(|_| !self.pins_unknown)
                    .map(|id| id.as_str().into())
                    .collect(),
                pins_unknown: self.pins_unknown,
                can_pin: Some(!self.unpinnable),
                highest_term: 0,
                disk: Some(Disk {
                    capacity: 100,
                    available: if self.disk_full { 5 } else { 50 },
                    watermark_percent: 80,
                }),
                parallel_pulls: self.parallel,
            };
            self.tell(Event::Checked(batch.id, report));
        }
        if verb == "pull" {
            let open = names.into_iter().enumerate().collect();
            self.open.insert(batch.id, open);
            self.answer(batch.id, outcomes);
            return;
        }
        self.tell(Event::Outcomes(batch.id, outcomes));
        self.tell(Event::BatchEnded(batch.id, BatchEnd::Done));
    }

    fn observe(&self, node: &str, name: &str) -> Option<ObservedImage> {
        let version = *self.held.get(node)?.get(name)?;
        let id = id(name, version);
        let repository = name
            .rsplit_once(':')
            .map_or(name, |(repository, _)| repository);
        Some(ObservedImage {
            pinned: self.pins.get(node).is_some_and(|pins| pins.contains(&id)),
            repo_digests: vec![format!("{repository}@sha256:{name}-{version}")],
            image_id: id,
            size: 1000 + u64::from(version),
        })
    }

    fn check(&self, node: &str, index: usize, name: &str) -> ImageOutcome {
        let observed = self.observe(node, name);
        let result = match &observed {
            Some(_) => ImageResult::Present,
            None => ImageResult::Absent,
        };
        ImageOutcome {
            observed,
            ..ImageOutcome::new(index, result)
        }
    }

    fn pull(&mut self, node: &str, index: usize, item: &PullItem) -> Option<ImageOutcome> {
        let name = item.reference.to_string();
        if self.slow.contains(&name) {
            return None;
        }
        let held = self.held.entry(node.to_owned()).or_default();
        let asks = item.policy == ImagePullPolicy::Always || !held.contains_key(&name);
        let mut result = ImageResult::Present;
        if asks {
            if let Some(reason) = self.broken.get(&name) {
                return Some(ImageOutcome::new(index, failed(reason)));
            }
            held.insert(name.clone(), self.moved.get(&name).copied().unwrap_or(1));
            result = ImageResult::Pulled;
        }
        let mut pin = PinResult::NotAsked;
        if item.retention == Pin::On {
            let id = id(&name, held[&name]);
            pin = PinResult::Pinned;
            self.pins.entry(node.to_owned()).or_default().insert(id);
        }
        Some(ImageOutcome {
            observed: self.observe(node, &name),
            pin,
            ..ImageOutcome::new(index, result)
        })
    }

    fn remove(&mut self, node: &str, names: &[String]) -> Vec<ImageOutcome> {
        let held = self.held.entry(node.to_owned()).or_default();
        let remove = |(index, name): (usize, &String)| {
            let result = if self.stuck.contains(name) {
                failed("ErrImageRemove")
            } else if self.in_use.contains(name) {
                ImageResult::Kept(KeptReason::InUse)
            } else if held.remove(name).is_some() {
                ImageResult::Removed
            } else {
                ImageResult::Absent
            };
            ImageOutcome::new(index, result)
        };
        names.iter().enumerate().map(remove).collect()
    }

    /// A pull that was slow ends now.
    fn end_slow(&mut self, name: &str) {
        self.slow.remove(name);
        let batches = std::mem::take(&mut self.batches);
        for batch in &batches {
            let (Work::Pull { images, .. }, Some(open)) = (&batch.work, self.open.get(&batch.id))
            else {
                continue;
            };
            let mut indexes: Vec<usize> = open.keys().copied().collect();
            indexes.retain(|index| &*images[*index].reference == name);
            let node = batch.node.to_string();
            let pulls = indexes.into_iter();
            let outcomes = pulls
                .filter_map(|index| self.pull(&node, index, &images[index]))
                .collect();
            self.answer(batch.id, outcomes);
        }
        self.batches = batches;
        self.run();
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

    fn told(&self) -> (&str, &str) {
        (&self.status().status, &self.status().reason)
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
