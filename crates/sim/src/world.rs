//! The World: everything that exists, and the one order in which everything happens.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_engine::Event as EngineEvent;
use kubefledged_queue::CallId;

use crate::{
    api::Api,
    controller::Controller,
    gate::Gates,
    network::Link,
    node::{Node, Running},
    registry::{PAUSE, Registries},
    rng::{Rng, mix},
    runtime::Runtime,
    script::{DAY, Script, SourceKey, Trouble},
};

/// How long the World runs on after the bad day, in ms.
pub const CALM: u64 = 50 * 60_000;
/// More events than any sound day has.
const MOST_EVENTS: u64 = 2_000_000;
/// More events at one moment than anything sound causes.
const MOST_AT_ONCE: u64 = 20_000;

/// Something that happens at a moment.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step of the script.
    Step(usize),
    /// A trouble is over.
    Over(Trouble),
    /// The bad day is over.
    Calm,
    /// The engine is told something.
    Tell(usize, u32, Box<EngineEvent>),
    /// The engine is told what is next in a watch.
    Watch(usize, u32, SourceKey),
    /// A watch lists anew.
    List(usize, u32, SourceKey),
    /// The engine wakes.
    EngineWake(usize, u32, u64),
    /// A controller looks at the Lease.
    Lease(usize, u32),
    /// A controller begins.
    ControllerStarts(usize),
    /// A write reaches the API server.
    Write(usize, u32, Box<crate::controller::Write>),
    /// A request reaches a node.
    Request(u64, Vec<u8>),
    /// A reply reaches a controller.
    Reply(u64, crate::network::Reply),
    /// The caller gives up, or learns that the stream is broken.
    Lost(u64),
    /// The caller hears nothing for too long, if the request did not arrive.
    Silence(u64),
    /// The puller learns that nobody listens.
    Closed(u64),
    /// It is seen whether somebody waits in vain in this process of a node.
    Fair(usize, u32),
    /// The queue wakes.
    QueueWake(usize, u32, u64),
    /// The runtime has done what it was asked to.
    Done(usize, u32, CallId),
    /// The puller does not wait for an answer any longer.
    Limit(usize, u32, CallId),
    /// A pull that was cancelled ends in the runtime all the same.
    EndsLate(usize, u32, Box<Running>),
    /// It is seen whether nodes are held that are not to be.
    Gate,
    /// It is seen whether images wait for other nodes without an end.
    Waits,
    /// It is seen whether pulls run on although the disk of a node is full.
    Room(usize),
    /// The puller of a node begins, in the pod of this number.
    PullerStarts(usize, u32),
    /// The readiness of a puller shows.
    Endpoint(usize),
    /// The kubelet has pulled a name.
    ForeignPulled(usize, usize),
    /// A machine is up again.
    Booted(usize, bool),
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, in ms.
    pub at: u64,
    /// Which.
    pub rule: &'static str,
    /// How.
    pub detail: String,
}

/// What a run leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of all that happened, in order.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// The first broken rule.
    pub failure: Option<Failure>,
}

/// See the module.
pub struct World {
    /// What happens.
    pub script: Script,
    /// In ms.
    pub now: u64,
    /// Everything by chance.
    pub rng: Rng,
    /// What is wrong now; twice where two troubles overlap.
    pub troubles: Vec<Trouble>,
    /// The API server.
    pub api: Api,
    /// All registries.
    pub registries: Registries,
    /// Two of them.
    pub controllers: Vec<Controller>,
    /// All machines.
    pub nodes: Vec<Node>,
    /// Calls from controllers to pullers.
    pub links: BTreeMap<u64, Link>,
    /// Names of objects that are gone: their images may stay.
    pub left: BTreeSet<String>,
    /// The highest term in which somebody led.
    pub highest_term: u64,
    /// The highest term that was believed of a puller beside which no other answered.
    pub only_claim: u64,
    /// What the node gate did and has to do.
    pub gates: Gates,
    /// The bad day is over.
    pub calm: bool,
    /// The first broken rule.
    pub failure: Option<Failure>,
    heap: BTreeMap<(u64, u64, u64), Event>,
    counter: u64,
    hash: u64,
    at_once: u64,
    events: u64,
    traced: bool,
}

impl World {
    /// Before anything has happened. `traced`: tell what happens on standard output.
    pub fn new(script: Script, traced: bool) -> Self {
        let registries = Registries::default();
        let pause = registries.manifest(PAUSE);
        let nodes = script.nodes.iter().enumerate();
        let nodes = nodes
            .map(|(index, flavor)| Node::new(index, Runtime::new(*flavor, &pause), script.room));
        let mut world = Self {
            nodes: nodes.collect(),
            now: 0,
            rng: Rng::new(mix(script.seed ^ 0x5eed)),
            troubles: Vec::new(),
            api: Api::default(),
            registries,
            controllers: vec![Controller::default(), Controller::default()],
            links: BTreeMap::new(),
            left: BTreeSet::new(),
            highest_term: 0,
            only_claim: 0,
            gates: Gates::default(),
            calm: false,
            failure: None,
            heap: BTreeMap::new(),
            counter: 0,
            hash: script.seed,
            at_once: 0,
            events: 0,
            traced,
            script,
        };
        for index in 0..world.nodes.len() {
            world.join(index);
        }
        for who in 0..2 {
            let at = world.rng.below(3_000);
            world.at(at, Event::ControllerStarts(who));
        }
        let steps: Vec<u64> = world.script.steps.iter().map(|step| step.at).collect();
        for (index, at) in steps.into_iter().enumerate() {
            world.at(at, Event::Step(index));
        }
        world.at(DAY, Event::Calm);
        if world.script.gated {
            world.at(0, Event::Gate);
        }
        if world.script.peers.on {
            world.at(0, Event::Waits);
        }
        world
    }

    /// Runs to the end or to the first broken rule.
    pub fn run(mut self) -> Report {
        while self.failure.is_none()
            && let Some(((at, _, counter), event)) = self.heap.pop_first()
        {
            if at > DAY + CALM {
                break;
            }
            self.at_once = if at == self.now { self.at_once + 1 } else { 0 };
            self.now = self.now.max(at);
            self.events += 1;
            self.absorb(&[at, counter]);
            if self.at_once > MOST_AT_ONCE || self.events > MOST_EVENTS {
                self.broken("livelock", format!("no end of events, the last: {event:?}"));
                break;
            }
            self.happen(event);
        }
        if self.failure.is_none() {
            self.now = DAY + CALM;
            self.check_end();
        }
        Report {
            hash: self.hash,
            events: self.events,
            failure: self.failure,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step(index) => {
                let action = self.script.steps[index].action.clone();
                self.note(|| format!("step {action:?}"));
                self.act(action);
            }
            Event::Over(trouble) => self.over(trouble),
            Event::Calm => self.calm_down(),
            Event::Tell(who, life, told) => self.tell(who, life, *told),
            Event::Watch(who, life, source) => self.watched(who, life, source),
            Event::List(who, life, source) => self.list(who, life, source),
            Event::EngineWake(who, life, at) => self.engine_wakes(who, life, at),
            Event::Lease(who, life) => self.lease_round(who, life),
            Event::ControllerStarts(who) => self.controller_starts(who),
            Event::Write(who, life, write) => self.write_arrives(who, life, &write),
            Event::Request(link, bytes) => self.request_arrives(link, &bytes),
            Event::Reply(link, reply) => self.reply_arrives(link, reply),
            Event::Lost(link) => self.lost(link),
            Event::Silence(link) => self.silence(link),
            Event::Closed(link) => self.closed(link),
            Event::Fair(node, incarnation) => {
                let process = self.nodes[node].process.as_ref();
                if process.is_some_and(|process| process.incarnation == incarnation) {
                    self.check_fair(node);
                }
            }
            Event::QueueWake(node, incarnation, at) => self.queue_wakes(node, incarnation, at),
            Event::Done(node, incarnation, call) => self.call_done(node, incarnation, call),
            Event::Limit(node, incarnation, call) => self.call_limit(node, incarnation, call),
            Event::EndsLate(node, incarnation, pull) => self.ends_late(node, incarnation, &pull),
            Event::Gate => self.check_gates(),
            Event::Waits => self.check_waits(),
            Event::Room(node) => self.check_room(node),
            Event::PullerStarts(node, pod) => self.puller_starts(node, pod),
            Event::Endpoint(node) => self.endpoint(node),
            Event::ForeignPulled(node, name) => self.foreign_pulled(node, name),
            Event::Booted(node, wiped) => self.booted(node, wiped),
        }
    }

    // === for everybody

    /// Something will happen.
    pub fn at(&mut self, at: u64, event: Event) {
        self.counter += 1;
        let tie = mix(self.script.seed ^ self.counter);
        self.heap
            .insert((at.max(self.now), tie, self.counter), event);
    }

    /// Something will happen then, before everything else and after what was put off before it.
    pub fn put_off(&mut self, at: u64, event: Event) {
        self.counter += 1;
        self.heap.insert((at, 0, self.counter), event);
    }

    /// Something will happen after a while.
    pub fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Is this wrong now?
    pub fn is(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    /// Does this trouble, if it is there, hit this time?
    pub fn hits(&mut self, trouble: Trouble, percent: u64) -> bool {
        self.is(trouble) && self.rng.percent(percent)
    }

    /// A rule is broken. The first one counts.
    pub fn broken(&mut self, rule: &'static str, detail: String) {
        self.note(|| format!("BROKEN {rule}: {detail}"));
        let at = self.now;
        self.failure.get_or_insert(Failure { at, rule, detail });
    }

    /// Into the hash of the trace.
    pub fn absorb(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = mix(self.hash ^ number);
        }
    }

    /// Into the hash of the trace.
    pub fn absorb_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = mix(self.hash ^ u64::from_le_bytes(word));
        }
    }

    /// A line for whoever replays a seed.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if self.traced {
            println!("{:>10} {}", self.now, line());
        }
    }
}
