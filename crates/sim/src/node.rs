//! One node: its runtime, and the process of its puller with a real queue inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use kubefledged_engine::{NodeFacts, NodeName, Puller};
use kubefledged_queue::{
    Call, CallError, CallId, Event as QueueEvent, Image, Queue, RuntimeFacts, Settings, Sources,
    StreamId, Support, Tick,
};

use crate::{
    registry::{Manifest, PAUSE},
    rules::Waiting,
    runtime::Runtime,
};

/// One machine.
#[derive(Debug)]
pub struct Node {
    /// Of its Node object.
    pub name: NodeName,
    /// Of its Node object, while there is one.
    pub facts: Option<NodeFacts>,
    /// Its container runtime.
    pub runtime: Runtime,
    /// Its puller, while it runs.
    pub process: Option<Process>,
    /// Of the puller's pod.
    pub pod: u32,
    /// Counts processes.
    pub incarnation: u32,
    /// It left the cluster with a disk that kept its images.
    pub left: bool,
    /// Requests that its queue has room for.
    pub room: usize,
    /// Its runtime shares layers, if it has an interface for that.
    pub shares: bool,
    /// Until then its runtime is busy with inspections, one after the other.
    pub inspects_until: u64,
    /// Since when others fill its disk.
    pub fills_since: u64,
    /// Pulls that were cancelled and end later all the same: normalized name, and when.
    pub late_ends: Vec<(String, u64)>,
    /// When it was last harder to reach than usual, or its puller began.
    pub disturbed: u64,
}

/// A running puller.
#[derive(Debug)]
pub struct Process {
    /// Which of the node's processes it is.
    pub incarnation: u32,
    /// Where it listens, and in which pod.
    pub puller: Puller,
    /// When it began.
    pub started: u64,
    /// The real one.
    pub queue: Queue,
    /// When it is polled although nothing happens.
    pub wake: Option<u64>,
    /// Calls whose answers are awaited.
    pub calls: BTreeMap<CallId, Running>,
    /// Where replies go.
    pub streams: BTreeMap<StreamId, u64>,
    /// Numbers streams and credentials.
    pub counter: u64,
    /// Whose credential it is.
    pub users: BTreeMap<u64, String>,
    /// What the rules compare with.
    pub seen: Seen,
}

/// A runtime call under way.
#[derive(Clone, Debug)]
pub struct Running {
    /// Which.
    pub call: Call,
    /// How it will go.
    pub plan: Plan,
    /// When it began.
    pub since: u64,
    /// How long it will take.
    pub takes: u64,
    /// Where the layers of a pull come from.
    pub sources: Sources,
    /// Nobody waits for its effect any more.
    pub cancelled: bool,
    /// Since when it runs although the disk is so full that it is to be stopped.
    pub over_since: Option<u64>,
}

/// How a call will go.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Well. A pull brings this.
    Succeed(Option<Manifest>),
    /// Not at all.
    Fail(CallError),
    /// It does not end.
    Hang,
    /// It does not end: the registry accepted it and does not answer.
    Silent,
    /// It does not end in a day: the registry sends next to nothing.
    Drip,
    /// The runtime says that it went well, and nothing happened.
    Pretend,
}

/// What a puller was told and saw, by its own requests and calls.
#[derive(Debug, Default)]
pub struct Seen {
    /// Highest term of a request.
    pub term: u64,
    /// Requests of leaders that had been replaced.
    pub replaced: BTreeSet<StreamId>,
    /// Newest wish to pull, by normalized name.
    pub pulls: BTreeMap<String, (u64, u64)>,
    /// Removals under way.
    pub removals: BTreeMap<StreamId, Removal>,
    /// Ids that containers used at the last look.
    pub used: BTreeSet<String>,
    /// Ids that containers mounted at the last look.
    pub mounted: BTreeSet<String>,
    /// Pulls that have no outcome yet.
    pub waiting: Waiting,
    /// Images as last looked at, by bare id.
    pub images: BTreeMap<String, Image>,
}

/// A removal as it was asked for; names are normalized.
#[derive(Debug, Default)]
pub struct Removal {
    /// Term and sequence number.
    pub order: (u64, u64),
    /// Names that are to go, in the order of the request.
    pub names: Vec<String>,
    /// May go.
    pub free: BTreeSet<String>,
    /// Must stay.
    pub wanted: BTreeSet<String>,
}

impl Node {
    /// A machine with an empty disk.
    pub fn new(index: usize, runtime: Runtime, room: usize) -> Self {
        Self {
            name: NodeName(format!("n{index}").into()),
            facts: None,
            runtime,
            process: None,
            pod: 0,
            incarnation: 0,
            left: false,
            room,
            shares: false,
            inspects_until: 0,
            fills_since: 0,
            late_ends: Vec::new(),
            disturbed: 0,
        }
    }

    /// The puller of the pod that is there.
    pub fn puller(&self, index: usize) -> Puller {
        let port = u16::try_from(7443 + self.pod).unwrap_or(u16::MAX);
        let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
        Puller {
            instance: Arc::from(format!("pod-{}-{}", self.name, self.pod)),
            address: SocketAddr::from(([10, 0, 0, last], port)),
        }
    }

    /// A new process of the puller, with nothing in its memory.
    pub fn start(&mut self, index: usize, now: u64) {
        self.incarnation += 1;
        self.disturbed = now;
        let settings = Settings {
            runtime: self.runtime.kind,
            disk_watermark: Some(80),
            most_open: self.room,
            ..Settings::default()
        };
        let more = self.runtime.flavor.has_more();
        let facts = RuntimeFacts {
            runtime: self.runtime.kind,
            sandbox_image: Some(PAUSE.to_owned()),
            pins: if more { Support::Unknown } else { Support::No },
            progress: more,
            peers: if more && self.shares {
                Support::Yes
            } else {
                Support::No
            },
            untags: more,
        };
        let mut queue = Queue::new(settings);
        queue.handle(Tick(0), QueueEvent::Runtime(facts));
        self.process = Some(Process {
            incarnation: self.incarnation,
            puller: self.puller(index),
            started: now,
            queue,
            wake: None,
            calls: BTreeMap::new(),
            streams: BTreeMap::new(),
            counter: 0,
            users: BTreeMap::new(),
            seen: Seen::default(),
        });
    }
}

impl Process {
    /// Its own clock.
    pub fn tick(&self, now: u64) -> Tick {
        Tick(now - self.started + 1)
    }
}
