//! A real engine and a fleet behind simulated lines: one cache, from its creation to the last node.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use cpu_time::ThreadTime;
use kubefledged_api_types::{Tick, Timestamp, names::failure};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CacheObject, CheckReport, Command, Engine, Event, ImageOutcome,
    ImageResult, Now, PeerSettings, PullItem, Puller, Settings, Source, Transfer, Work,
};

use crate::{
    links::{self, Holdings, Lines, Pull, Stripes, noticed},
    objects::{bytes, cache, facts, image, name, number, present},
};

/// One step, in seconds.
const STEP: f64 = 0.01;
/// Checks that a controller has answered in a second (`make bench-fleet`).
const CHECKS: f64 = 3_000.0;
/// A call, and its answer.
const LATENCY: f64 = 0.01;
/// Until the size of a pull is told, and between two reports of its bytes.
const SIZE: f64 = 0.25;
const REPORT: f64 = 2.0;
/// No wave may take longer.
const LONGEST: f64 = 7_200.0;
/// A pull is long after so many seconds.
const LONG: f64 = 20.0;
/// Pulls that a puller runs at a time.
const PARALLEL: usize = 2;

/// What happens.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// How many nodes.
    pub nodes: usize,
    /// Bytes of each image: its even layers and its odd ones.
    pub images: Vec<Stripes>,
    /// Nodes that hold everything at the start: the first ones.
    pub holders: usize,
    /// The lines.
    pub lines: Lines,
    /// `--max-connections`: so many calls run at a time, and as many long ones.
    pub connections: usize,
    /// Settings of peers.
    pub peers: PeerSettings,
    /// A pull from the registry takes so many seconds at least.
    pub least: f64,
    /// The registry refuses more pulls at a time.
    pub limit: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// When each node had all images, in seconds from the creation of the cache, sorted.
    pub done: Vec<f64>,
    /// Bytes from the registry.
    pub registry: f64,
    /// Pulls that the registry refused.
    pub refused: usize,
    /// CPU time of the engine.
    pub engine: Duration,
}

/// A pull at its node.
struct Running {
    batch: BatchId,
    index: usize,
    pull: Pull,
    /// When its size, or its bytes, are told next.
    tells: f64,
    /// When the runtime answers; `None`: bytes are still missing.
    answers: Option<f64>,
}

/// See the module.
pub struct Wave {
    scenario: Scenario,
    engine: Engine,
    now: f64,
    /// When the cache was created.
    start: f64,
    events: VecDeque<(f64, Event)>,
    checked: f64,
    /// Calls that wait for a connection.
    calls: VecDeque<Batch>,
    /// Images of calls that run and have no outcome.
    open: BTreeMap<BatchId, usize>,
    /// Pulls that wait for a slot of their puller.
    queues: Vec<VecDeque<(BatchId, usize, Pull)>>,
    running: Vec<Running>,
    busy: Vec<usize>,
    /// Which node has which image.
    held: Vec<Vec<bool>>,
    done: Vec<f64>,
    registry: f64,
    /// Pulls that the registry serves now.
    asked: usize,
    refused: usize,
    spent: Duration,
    object: CacheObject,
}

/// What nodes have at the beginning of a step.
struct Seen {
    held: Vec<Vec<bool>>,
    receive: BTreeMap<(usize, usize), Stripes>,
    images: Vec<Stripes>,
}

impl Holdings for Seen {
    fn has(&self, node: usize, image: usize, stripe: usize) -> Option<f64> {
        if self.held[node][image] {
            return Some(self.images[image][stripe]);
        }
        self.receive.get(&(node, image)).map(|got| got[stripe])
    }
}

impl Wave {
    /// Runs a scenario to its end.
    pub fn run(scenario: Scenario) -> Outcome {
        let mut wave = Self::new(scenario);
        while wave.done.len() < wave.scenario.nodes && wave.now < LONGEST {
            wave.step();
        }
        wave.done.sort_by(f64::total_cmp);
        Outcome {
            done: wave.done,
            registry: wave.registry,
            refused: wave.refused,
            engine: wave.spent,
        }
    }

    fn new(scenario: Scenario) -> Self {
        let settings = Settings {
            peers: scenario.peers.clone(),
            ..Settings::default()
        };
        let held =
            (0..scenario.nodes).map(|node| vec![node < scenario.holders; scenario.images.len()]);
        let mut wave = Self {
            engine: Engine::new(settings),
            now: 0.0,
            start: 0.0,
            events: VecDeque::new(),
            checked: 0.0,
            calls: VecDeque::new(),
            open: BTreeMap::new(),
            queues: (0..scenario.nodes).map(|_| VecDeque::new()).collect(),
            running: Vec::new(),
            busy: vec![0; scenario.nodes],
            held: held.collect(),
            done: Vec::new(),
            registry: 0.0,
            asked: 0,
            refused: 0,
            spent: Duration::ZERO,
            object: cache(scenario.images.len()),
            scenario,
        };
        for node in 0..wave.scenario.nodes {
            wave.tell(Event::NodeApplied(name(node), facts()));
            let puller = Puller {
                instance: format!("pod-{node}").into(),
                address: ([10, 0, 0, 1], 7443).into(),
            };
            wave.tell(Event::PullerChanged(name(node), Some(puller)));
        }
        for source in [Source::Nodes, Source::Pullers, Source::Caches] {
            wave.tell(Event::Synced(source));
        }
        wave.tell(Event::Leadership(Some(1)));
        // The leader has heard of every node before the cache comes.
        while wave.now < 10.0 {
            wave.step();
        }
        wave.start = wave.now;
        let created = Event::CacheApplied(Box::new(wave.object.clone()));
        wave.tell(created);
        wave
    }

    fn clock(&self) -> Now {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small and positive"
        )]
        let ms = ((self.now + 1.0) * 1000.0) as u64;
        Now {
            tick: Tick(ms),
            wall: Timestamp(1_700_000_000 + i64::try_from(ms / 1000).unwrap_or(0)),
        }
    }

    fn tell(&mut self, event: Event) {
        let (now, start) = (self.clock(), ThreadTime::now());
        self.engine.handle(now, event);
        self.spent += start.elapsed();
    }

    fn later(&mut self, at: f64, event: Event) {
        self.events.push_back((at, event));
    }

    fn step(&mut self) {
        self.now += STEP;
        let due: Vec<Event> = {
            let (due, later): (Vec<_>, Vec<_>) =
                self.events.drain(..).partition(|(at, _)| *at <= self.now);
            self.events = later.into();
            due.into_iter().map(|(_, event)| event).collect()
        };
        for event in due {
            self.tell(event);
        }
        loop {
            let (now, start, mut commands) = (self.clock(), ThreadTime::now(), Vec::new());
            self.engine.poll(now, &mut commands);
            self.spent += start.elapsed();
            if commands.is_empty() {
                break;
            }
            for command in commands {
                self.carry_out(command);
            }
        }
        self.connect();
        self.move_bytes();
        self.tell_bytes();
        self.answer();
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::StartBatch(batch) => match &batch.work {
                Work::Check { references } => self.check(&batch, references),
                Work::Pull { .. } => self.calls.push_back(*batch),
                Work::Remove { .. } => unreachable!("nothing is removed here"),
            },
            Command::WriteStatus { key, status, .. } => {
                self.object.status = *status;
                let version = self.object.resource_version.parse::<u64>().unwrap_or(0) + 1;
                self.object.resource_version = version.to_string();
                let written = Event::StatusWritten(key, Ok(version.to_string()));
                self.tell(written);
            }
            _ => {}
        }
    }

    fn check(&mut self, batch: &Batch, references: &[Arc<str>]) {
        self.checked = self.checked.max(self.now) + 1.0 / CHECKS;
        let node = number(&batch.node);
        let at = self.checked + LATENCY;
        let report = CheckReport {
            can_share: Some(true),
            ..CheckReport::default()
        };
        let outcome = |(index, reference): (usize, &Arc<str>)| {
            let image = image(reference);
            if self.held[node][image] {
                present(index, image, ImageResult::Present)
            } else {
                ImageOutcome::new(index, ImageResult::Absent)
            }
        };
        let outcomes = references.iter().enumerate().map(outcome).collect();
        if node < self.scenario.holders && !references.is_empty() {
            self.done.push(0.0);
        }
        self.later(at, Event::Checked(batch.id, report));
        self.later(at, Event::Outcomes(batch.id, outcomes));
        self.later(at, Event::BatchEnded(batch.id, BatchEnd::Done));
    }

    /// Calls that have a connection reach their nodes.
    fn connect(&mut self) {
        while self.open.len() < 2 * self.scenario.connections
            && let Some(batch) = self.calls.pop_front()
        {
            let Work::Pull { images, .. } = &batch.work else {
                continue;
            };
            self.open.insert(batch.id, images.len());
            let node = number(&batch.node);
            for (index, item) in images.iter().enumerate() {
                let pull = self.pull(node, item);
                self.queues[node].push_back((batch.id, index, pull));
            }
        }
        for node in 0..self.scenario.nodes {
            if self.queues[node].is_empty() {
                continue;
            }
            let slots = self.slots(node);
            while self.busy[node] < slots
                && let Some((batch, index, mut pull)) = self.queues[node].pop_front()
            {
                if pull.parents.is_none() && self.asked >= self.scenario.limit {
                    self.refuse(batch, index);
                    continue;
                }
                self.asked += usize::from(pull.parents.is_none());
                self.busy[node] += 1;
                pull.begun = self.now + LATENCY;
                self.running.push(Running {
                    batch,
                    index,
                    tells: self.now + SIZE,
                    pull,
                    answers: None,
                });
            }
        }
    }

    /// The registry answers 429.
    fn refuse(&mut self, batch: BatchId, index: usize) {
        self.refused += 1;
        let failed = ImageResult::Failed {
            reason: failure::RATE_LIMITED.to_owned(),
            message: "429 Too Many Requests".to_owned(),
        };
        self.outcome(batch, ImageOutcome::new(index, failed));
    }

    /// Tells the engine of one image of a call, and of the call's end after the last one.
    fn outcome(&mut self, batch: BatchId, outcome: ImageOutcome) {
        let at = self.now + LATENCY;
        self.later(at, Event::Outcomes(batch, vec![outcome]));
        if let Some(open) = self.open.get_mut(&batch) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&batch);
                self.later(at, Event::BatchEnded(batch, BatchEnd::Done));
            }
        }
    }

    /// Beside a long pull a puller runs one more.
    fn slots(&self, node: usize) -> usize {
        let mut running = self
            .running
            .iter()
            .filter(|running| running.pull.node == node);
        let long = self.busy[node] >= PARALLEL && running.any(|r| r.pull.begun + LONG < self.now);
        PARALLEL + usize::from(long)
    }

    fn pull(&self, node: usize, item: &PullItem) -> Pull {
        let image = image(&item.reference);
        let nodes = item.peers.as_ref().map(|peers| &peers.nodes);
        let parents = nodes.and_then(|nodes| {
            let (even, odd) = (nodes.first()?, nodes.last()?);
            Some([number(&even.name), number(&odd.name)])
        });
        Pull {
            node,
            image,
            parents,
            got: [0.0; 2],
            all: self.scenario.images[image],
            begun: 0.0,
            registry: 0.0,
        }
    }

    fn move_bytes(&mut self) {
        let receive = self.running.iter().map(|running| &running.pull);
        let seen = Seen {
            held: std::mem::take(&mut self.held),
            receive: receive
                .map(|pull| ((pull.node, pull.image), pull.got))
                .collect(),
            images: self.scenario.images.clone(),
        };
        let mut pulls: Vec<Pull> = self.running.iter().map(|r| r.pull.clone()).collect();
        let Scenario { nodes, lines, .. } = self.scenario;
        self.registry += links::step(&mut pulls, &seen, nodes, lines, self.now, STEP);
        for (running, pull) in self.running.iter_mut().zip(pulls) {
            running.pull = pull;
            if running.answers.is_none() && running.pull.is_done() {
                let parents = running.pull.parents;
                let begun = running.pull.begun;
                let asked = self.now.max(begun + self.scenario.least);
                running.answers = Some(parents.map_or(asked, |_| noticed(begun, self.now)));
            }
        }
        self.held = seen.held;
    }

    fn tell_bytes(&mut self) {
        let now = self.now;
        let mut told = Vec::new();
        for running in self
            .running
            .iter_mut()
            .filter(|r| r.tells <= now && r.answers.is_none())
        {
            running.tells = now + REPORT;
            let sum = |stripes: Stripes| bytes(stripes[0] + stripes[1]);
            let transfer = Transfer {
                index: running.index,
                total_bytes: sum(running.pull.all),
                done_bytes: sum(running.pull.got),
                peer_bytes: 0,
                digest: None,
            };
            told.push((running.batch, transfer));
        }
        for (batch, transfer) in told {
            self.later(now + LATENCY, Event::Transfers(batch, vec![transfer]));
        }
    }

    fn answer(&mut self) {
        let now = self.now;
        let all = std::mem::take(&mut self.running);
        let (ended, rest): (Vec<Running>, Vec<Running>) = all
            .into_iter()
            .partition(|running| running.answers.is_some_and(|at| at <= now));
        self.running = rest;
        for Running {
            batch, index, pull, ..
        } in ended
        {
            self.busy[pull.node] -= 1;
            self.held[pull.node][pull.image] = true;
            if self.held[pull.node].iter().all(|held| *held) {
                self.done.push(now - self.start);
            }
            self.asked -= usize::from(pull.parents.is_none());
            self.outcome(batch, present(index, pull.image, ImageResult::Pulled));
        }
    }
}
