//! The smallest world in which an engine has work: every write succeeds, every node does at once
//! what it is asked to. CPU time of this thread counts, while the
//! engine runs: other processes on the machine do not matter.

use std::{collections::BTreeMap, time::Duration};

use cpu_time::ThreadTime;
use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, ImageCacheStatus, Tick, Timestamp, names::status,
};
use kubefledged_engine::{
    Batch, BatchEnd, CacheKey, CacheObject, Command, Engine, Event, ImageOutcome, ImageResult,
    NodeFacts, NodeName, Now, ObservedImage, Puller, Settings, Source, Work,
};

/// Events taken in before the engine decides, as in the controller.
const MOST_EVENTS: usize = 1024;

/// How large the world is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// `ImageCaches` over all nodes.
    pub caches: usize,
    /// Images of each.
    pub images: usize,
}

impl Size {
    /// Pairs of node and wanted image.
    pub fn pairs(self) -> usize {
        self.nodes * self.caches * self.images
    }
}

/// See the module.
pub struct World {
    /// What is measured.
    pub engine: Engine,
    /// CPU time spent in it.
    pub spent: Duration,
    now: Now,
    objects: BTreeMap<CacheKey, CacheObject>,
    version: u64,
    /// What a check finds.
    warm: bool,
    commands: Vec<Command>,
}

impl World {
    /// Nodes and caches are known, nothing was looked at, nobody leads.
    pub fn new(size: Size) -> Self {
        let mut world = Self {
            engine: Engine::new(Settings::default()),
            spent: Duration::ZERO,
            now: Now {
                tick: Tick(1000),
                wall: Timestamp(1_700_000_000),
            },
            objects: BTreeMap::new(),
            version: 0,
            warm: false,
            commands: Vec::new(),
        };
        for node in 0..size.nodes {
            world.tell(Event::NodeApplied(name(node), facts(node, 0)));
            let puller = Puller {
                instance: format!("pod-{node}").into(),
                address: ([10, 0, 0, 1], 7443).into(),
            };
            world.tell(Event::PullerChanged(name(node), Some(puller)));
        }
        for cache in 0..size.caches {
            world.apply(cache, size.images);
        }
        for source in [Source::Nodes, Source::Pullers, Source::Caches] {
            world.tell(Event::Synced(source));
        }
        world
    }

    /// The same, and everything is where it is wanted.
    pub fn warm(size: Size) -> Self {
        let mut world = Self::new(size);
        world.lead(1);
        world.settle();
        world
    }

    /// Somebody else led; now this engine does.
    pub fn lead(&mut self, term: u64) {
        self.tell(Event::Leadership(None));
        self.tell(Event::Leadership(Some(term)));
    }

    /// A cache has so many images.
    pub fn apply(&mut self, cache: usize, images: usize) {
        let key = key(cache);
        let object = self
            .objects
            .entry(key.clone())
            .or_insert_with(|| CacheObject {
                key,
                uid: format!("uid-{cache}"),
                resource_version: String::new(),
                generation: 0,
                spec: ImageCacheSpec::default(),
                status: ImageCacheStatus::default(),
                refresh: None,
                purge: None,
                purge_came_later: false,
                deleting: false,
                finalizer: false,
            });
        let names = (0..images).map(|image| format!("registry.example/team{cache}/app{image}:1.0"));
        object.spec.cache_spec = vec![CacheSpecEntry {
            images: names.collect(),
            ..CacheSpecEntry::default()
        }];
        object.generation += 1;
        self.version += 1;
        object.resource_version = self.version.to_string();
        let event = Event::CacheApplied(Box::new(object.clone()));
        self.tell(event);
    }

    /// A fact about a node changes that no selector reads.
    pub fn node_event(&mut self, node: usize, round: usize) {
        self.tell(Event::NodeApplied(name(node), facts(node, round)));
        self.poll();
        assert!(self.commands.is_empty(), "nothing follows from it");
    }

    /// The engine takes in an event.
    pub fn tell(&mut self, event: Event) {
        let start = ThreadTime::now();
        self.engine.handle(self.now, event);
        self.spent += start.elapsed();
    }

    /// The engine decides.
    pub fn poll(&mut self) {
        let start = ThreadTime::now();
        self.engine.poll(self.now, &mut self.commands);
        self.spent += start.elapsed();
    }

    /// How many commands wait to be carried out.
    pub fn waiting(&self) -> usize {
        self.commands.len()
    }

    /// Carries out commands until every cache has succeeded and the engine is at rest.
    pub fn settle(&mut self) {
        loop {
            self.poll();
            let mut commands = std::mem::take(&mut self.commands).into_iter();
            let mut idle = true;
            loop {
                let mut events = Vec::new();
                while events.len() < MOST_EVENTS
                    && let Some(command) = commands.next()
                {
                    self.carry_out(command, &mut events);
                }
                if events.is_empty() {
                    break;
                }
                idle = false;
                let start = ThreadTime::now();
                for event in events {
                    self.engine.handle(self.now, event);
                }
                self.spent += start.elapsed();
                self.poll();
            }
            if idle && self.commands.is_empty() {
                let done = |object: &CacheObject| object.status.status == status::SUCCEEDED;
                if self.objects.values().all(done) {
                    self.warm = true;
                    return;
                }
                self.sleep();
            }
        }
    }

    /// Until the engine wants to be asked again.
    fn sleep(&mut self) {
        let next = self.engine.next_wakeup().expect("it waits for something");
        let seconds = (next.0 - self.now.tick.0).div_ceil(1000).max(1);
        self.now.tick.0 += seconds * 1000;
        self.now.wall.0 += i64::try_from(seconds).unwrap_or(1);
    }

    fn carry_out(&mut self, command: Command, events: &mut Vec<Event>) {
        match command {
            Command::StartBatch(batch) => self.batch(&batch, events),
            Command::WriteStatus { key, status, .. } => {
                self.version += 1;
                let version = self.version.to_string();
                if let Some(object) = self.objects.get_mut(&key) {
                    object.status = *status;
                    object.resource_version.clone_from(&version);
                }
                events.push(Event::StatusWritten(key, Ok(version)));
            }
            Command::EmitEvent { .. }
            | Command::NodeTransition { .. }
            | Command::KeepConnection { .. } => {}
            other => unreachable!("nobody asked for {other:?}"),
        }
    }

    fn batch(&self, batch: &Batch, events: &mut Vec<Event>) {
        let outcome = |(index, reference): (usize, &str), result: ImageResult| {
            let present = result != ImageResult::Absent;
            ImageOutcome {
                observed: present.then(|| ObservedImage {
                    image_id: format!("sha256:{reference}"),
                    repo_digests: vec![format!("{reference}@sha256:{reference}")],
                    ..ObservedImage::default()
                }),
                ..ImageOutcome::new(index, result)
            }
        };
        let outcomes = match &batch.work {
            Work::Pull { images, .. } => {
                let names = images.iter().map(|image| &*image.reference).enumerate();
                names.map(|at| outcome(at, ImageResult::Pulled)).collect()
            }
            Work::Check { references } => {
                let result = if self.warm {
                    ImageResult::Present
                } else {
                    ImageResult::Absent
                };
                let names = references.iter().map(|name| &**name).enumerate();
                names.map(|at| outcome(at, result.clone())).collect()
            }
            Work::Remove { .. } => unreachable!("nothing is removed here"),
        };
        events.push(Event::Outcomes(batch.id, outcomes));
        events.push(Event::BatchEnded(batch.id, BatchEnd::Done));
    }
}

fn name(node: usize) -> NodeName {
    NodeName(format!("node-{node}.example").into())
}

fn key(cache: usize) -> CacheKey {
    CacheKey {
        namespace: "default".into(),
        name: format!("cache-{cache}").into(),
    }
}

/// As many labels as a node in a cloud has.
fn facts(node: usize, round: usize) -> NodeFacts {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("node.kubernetes.io/instance-type", "m7i.2xlarge"),
        ("topology.kubernetes.io/region", "eu-central-1"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let zone = format!("eu-central-1{}", ["a", "b", "c"][node % 3]);
    labels.insert("topology.kubernetes.io/zone".to_owned(), zone);
    labels.insert("kubernetes.io/hostname".to_owned(), name(node).to_string());
    labels.insert("round".to_owned(), round.to_string());
    NodeFacts {
        labels,
        ready: true,
        ..NodeFacts::default()
    }
}
