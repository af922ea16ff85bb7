//! The puller's process: requests go into its real queue, its runtime calls go to the runtime.

use std::collections::BTreeMap;

use kubefledged_contract::puller::{self as contract, Malformed};
use kubefledged_proto::puller::{
    CancelPullsRequest, CheckImagesRequest, Credential, PullImagesRequest, RemoveImagesRequest,
};
use kubefledged_queue::{
    Answer, Bytes, Call, CallError, CallId, Command, CredentialId, Event as QueueEvent, StreamId,
};
use prost::Message as _;

use crate::{
    api::Resource,
    network::{Purpose, Reply, Side},
    node::{Plan, Process, Running},
    registry::{HOSTS, NAMES, PRIVATE, USER, host, normalized},
    rng::mix,
    runtime::{away, no_space, unknown},
    script::{SourceKey, Trouble},
    world::{Event, World},
};

/// For a call that the runtime answers from what it knows.
const LOOK_LIMIT: u64 = 30_000;
/// For a removal.
const REMOVE_LIMIT: u64 = 120_000;
/// How long a megabyte takes to come, in ms.
const MS_A_MB: u64 = 100;
/// Polls until a queue must come to rest.
const MOST_POLLS: usize = 64;

impl World {
    /// A process begins, unless its pod is another one by now.
    pub fn puller_starts(&mut self, node: usize, pod: u32) {
        let now = self.now;
        let machine = &mut self.nodes[node];
        if machine.facts.is_none() || machine.pod != pod || machine.process.is_some() {
            return;
        }
        machine.start(node, now);
        self.note(|| format!("puller of n{node} begins in pod {pod}"));
        let wait = self.rng.between(10, 1_000);
        self.after(wait, Event::Endpoint(node));
    }

    /// Whether its puller is ready shows in the API.
    pub fn endpoint(&mut self, node: usize) {
        let machine = &self.nodes[node];
        let key = (SourceKey::Pullers, machine.name.to_string());
        match &machine.process {
            Some(process) if machine.facts.is_some() => {
                let puller = process.puller.clone();
                self.put(key, Resource::Puller(puller));
            }
            _ => self.remove_resource(&key),
        }
    }

    /// The process ends; another one begins, in the same pod or in a new one.
    pub fn puller_ends(&mut self, node: usize, replaced: bool) {
        if self.nodes[node].process.is_none() {
            return;
        }
        self.kill_puller(node);
        if replaced {
            self.nodes[node].pod += 1;
        }
        let pod = self.nodes[node].pod;
        let wait = self.rng.between(500, 8_000);
        self.after(wait, Event::PullerStarts(node, pod));
    }

    /// The process is gone: its streams break, and its calls find nobody to answer.
    pub fn kill_puller(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else {
            return;
        };
        let incarnation = process.incarnation;
        self.break_links(Side::Server, |link| {
            link.node == node && link.incarnation == incarnation
        });
        for (_, running) in process.calls {
            // What was asked for may happen all the same.
            if self.rng.percent(50) {
                let effect = self.effect(node, &running);
                self.note(|| format!("n{node} after the end of its puller: {effect:?}"));
            }
        }
        let wait = self.rng.between(10, 3_000);
        self.after(wait, Event::Endpoint(node));
    }

    // === requests

    /// A request reaches a node.
    pub fn request_arrives(&mut self, id: u64, bytes: &[u8]) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let (node, incarnation, purpose) = (link.node, link.incarnation, link.purpose);
        let there = self.nodes[node].process.as_ref();
        if link.broken || there.is_none_or(|process| process.incarnation != incarnation) {
            return self.lost(id);
        }
        if self.is(Trouble::CutOff(node)) {
            return;
        }
        let name = self.nodes[node].name.to_string();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.counter += 1;
        let stream = StreamId(process.counter);
        process.streams.insert(stream, id);
        let event = match event(process, &name, stream, purpose, bytes) {
            Ok(event) => event,
            Err(error) => return self.broken("requests are sound", error),
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.stream = Some(stream);
            if !link.listens {
                // Its caller gave up on the way.
                let wait = self.rng.between(1, 5_000);
                self.after(wait, Event::Closed(id));
            }
        }
        self.requested(node, &event);
        self.queue_told(node, event);
    }

    /// Nobody listens at the other end.
    pub fn closed(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        // Its caller has still to learn of it.
        link.closed = true;
        let (node, incarnation, stream) = (link.node, link.incarnation, link.stream);
        if !link.listens {
            self.links.remove(&id);
        }
        let process = self.nodes[node].process.as_mut();
        if let Some(stream) = stream
            && let Some(process) = process.filter(|p| p.incarnation == incarnation)
        {
            process.streams.remove(&stream);
            self.queue_told(node, QueueEvent::Closed(stream));
        }
    }

    // === the queue

    /// It wakes by itself.
    pub fn queue_wakes(&mut self, node: usize, incarnation: u32, at: u64) {
        let process = self.nodes[node].process.as_mut();
        if let Some(process) = process.filter(|p| p.incarnation == incarnation)
            && process.wake == Some(at)
        {
            process.wake = None;
            self.poll_queue(node);
        }
    }

    fn queue_told(&mut self, node: usize, event: QueueEvent) {
        self.note(|| format!("n{node} <- {event:?}"));
        let now = self.now;
        if let Some(process) = &mut self.nodes[node].process {
            let tick = process.tick(now);
            process.queue.handle(tick, event);
        }
        self.poll_queue(node);
    }

    fn poll_queue(&mut self, node: usize) {
        let now = self.now;
        for round in 0.. {
            if round >= MOST_POLLS {
                let told = format!("the queue of n{node} does not come to rest");
                return self.broken("livelock", told);
            }
            let Some(process) = &mut self.nodes[node].process else {
                return;
            };
            let tick = process.tick(now);
            let mut out = Vec::new();
            process.queue.poll(tick, &mut out);
            let next = process.queue.next_wakeup();
            if out.is_empty() && next.is_none_or(|at| at > tick) {
                let at = next.map(|at| process.started + at.0 - 1);
                if process.wake != at {
                    process.wake = at;
                    let incarnation = process.incarnation;
                    if let Some(at) = at {
                        self.at(at, Event::QueueWake(node, incarnation, at));
                    }
                }
                return;
            }
            for command in out {
                self.queue_asks(node, command);
            }
        }
    }

    fn queue_asks(&mut self, node: usize, command: Command) {
        match command {
            Command::Call(id, call) => {
                self.note(|| format!("n{node} call {} {call:?}", id.0));
                self.check_call(node, &call);
                self.begin_call(node, id, call);
            }
            Command::CancelCall(id) => self.cancel_runtime_call(node, id),
            Command::Accepted(stream, attached) => {
                let message = contract::accepted(attached).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Pulled(stream, outcomes) => {
                self.note(|| format!("n{node} stream {} {outcomes:?}", stream.0));
                let message = contract::pulled(outcomes).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Removed(stream, outcomes) => {
                self.note(|| format!("n{node} stream {} {outcomes:?}", stream.0));
                let message = contract::removed(outcomes).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Overloaded(stream) => {
                self.reply_on(node, stream, Reply::Overloaded);
                self.end_stream(node, stream);
            }
            Command::Checked(stream, report) => {
                let message = contract::checked(report).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Cancelled(stream, _) => {
                self.reply_on(node, stream, Reply::Message(Vec::new()));
                self.end_stream(node, stream);
            }
            Command::Refused(stream, term) => {
                self.reply_on(node, stream, Reply::Refused(term));
                self.end_stream(node, stream);
            }
            Command::Done(stream) => {
                self.reply_on(node, stream, Reply::Done);
                self.end_stream(node, stream);
            }
        }
    }

    fn reply_on(&mut self, node: usize, stream: StreamId, reply: Reply) {
        self.check_reply(node, stream, matches!(reply, Reply::Refused(_)));
        if let Reply::Message(bytes) = &reply {
            self.absorb_bytes(bytes);
        }
        let process = self.nodes[node].process.as_ref();
        if let Some(link) = process.and_then(|p| p.streams.get(&stream)).copied() {
            self.reply(link, reply);
        }
    }

    fn end_stream(&mut self, node: usize, stream: StreamId) {
        if let Some(process) = &mut self.nodes[node].process {
            process.streams.remove(&stream);
            process.seen.removals.remove(&stream);
            process.seen.replaced.remove(&stream);
        }
    }

    // === runtime calls

    fn begin_call(&mut self, node: usize, id: CallId, call: Call) {
        let (plan, mut takes) = self.plan(node, &call);
        if self.is(Trouble::RuntimeSlow(node)) {
            takes += self.rng.below(if self.rng.clone().percent(20) {
                45_000
            } else {
                2_000
            });
        }
        let limit = match &call {
            Call::Pull(..) => None,
            Call::Remove(_) => Some(REMOVE_LIMIT),
            _ => Some(LOOK_LIMIT),
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let incarnation = process.incarnation;
        let hangs = matches!(plan, Plan::Hang);
        let running = Running {
            call,
            plan,
            since: self.now,
            takes,
            cancelled: false,
        };
        process.calls.insert(id, running);
        if !hangs {
            self.after(takes, Event::Done(node, incarnation, id));
        }
        if let Some(limit) = limit.filter(|limit| *limit < takes) {
            self.after(limit, Event::Limit(node, incarnation, id));
        }
    }

    /// How a call will go, and how long it takes.
    fn plan(&mut self, node: usize, call: &Call) -> (Plan, u64) {
        let quick = self.rng.between(1, 15);
        if self.nodes[node].runtime.away_until > self.now {
            return (Plan::Fail(away()), quick);
        }
        if self.hits(Trouble::RuntimeErrs(node), 25) {
            return (
                Plan::Fail(unknown("rpc error: something went wrong")),
                quick,
            );
        }
        let Call::Pull(name, credential) = call else {
            return (Plan::Succeed(None), quick);
        };
        if let Some(refusal) = self.refusal(node, name, credential.as_ref()) {
            return (Plan::Fail(refusal), self.rng.between(50, 2_000));
        }
        let manifest = self.registries.manifest(name);
        let lacks = manifest.lacks(&self.nodes[node].runtime.layers());
        let takes = (50 + lacks * MS_A_MB) * self.rng.between(70, 130) / 100;
        if self.hits(Trouble::PullsCancelled(node), 40) {
            let error = CallError {
                code: "Canceled".to_owned(),
                message: "writing blob: storing blob to file: context canceled".to_owned(),
            };
            return (Plan::Fail(error), takes / 2);
        }
        if self.hits(Trouble::PullsStall(node), 50) {
            return (Plan::Hang, takes);
        }
        if self.hits(Trouble::RuntimeErrs(node), 20) {
            return (Plan::Pretend, takes);
        }
        (Plan::Succeed(Some(manifest)), takes)
    }

    /// What speaks against a pull, in the words of the runtime.
    fn refusal(
        &self,
        node: usize,
        name: &str,
        credential: Option<&CredentialId>,
    ) -> Option<CallError> {
        let from = host(name);
        let at = HOSTS.iter().position(|host| *host == from)?;
        let named = NAMES
            .iter()
            .position(|known| normalized(known) == normalized(name));
        if self.is(Trouble::RegistryDown(at)) {
            return Some(unknown(
                "failed to do request: dial tcp 10.77.0.1:5002: connect: connection refused",
            ));
        }
        if self.is(Trouble::RateLimited(at)) {
            return Some(unknown("unexpected status: 429 Too Many Requests"));
        }
        let users = self.nodes[node]
            .process
            .as_ref()
            .map(|process| &process.users);
        let user = credential.and_then(|id| users?.get(&id.0));
        let right = user.is_some_and(|user| *user == format!("{USER}@{PRIVATE}"));
        if self.is(Trouble::RegistryRefuses(at)) || (from == PRIVATE && !right) {
            return Some(unknown(
                "pulling from host failed with status code [manifests 1]: 401 Unauthorized",
            ));
        }
        named
            .is_some_and(|named| self.is(Trouble::NameUnknown(named)))
            .then(|| unknown("reading manifest: manifest unknown"))
    }

    fn cancel_runtime_call(&mut self, node: usize, id: CallId) {
        let wait = self.rng.between(1, 50);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let incarnation = process.incarnation;
        if let Some(running) = process.calls.get_mut(&id) {
            running.cancelled = true;
            self.after(wait, Event::Limit(node, incarnation, id));
        }
    }

    /// The puller does not wait any longer; what it asked for may happen all the same.
    pub fn call_limit(&mut self, node: usize, incarnation: u32, id: CallId) {
        let Some(running) = self.take_call(node, incarnation, id) else {
            return;
        };
        let (code, message) = if running.cancelled {
            ("Cancelled", "cancelled by the puller")
        } else {
            ("DeadlineExceeded", "the runtime does not answer in time")
        };
        let error = CallError {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        if self.rng.percent(20) {
            drop(self.effect(node, &running));
        } else if let Plan::Succeed(Some(manifest)) = &running.plan {
            let percent = (self.now - running.since) * 100 / running.takes.max(1);
            self.nodes[node].runtime.break_off(manifest, percent);
        }
        let answer = failed(&running.call, error);
        self.answer(node, id, answer);
    }

    /// The runtime has done what it was asked to.
    pub fn call_done(&mut self, node: usize, incarnation: u32, id: CallId) {
        let Some(running) = self.take_call(node, incarnation, id) else {
            return;
        };
        if self.nodes[node].runtime.away_until > self.now {
            let answer = failed(&running.call, away());
            return self.answer(node, id, answer);
        }
        let mut answer = self.effect(node, &running);
        if self.hits(Trouble::EffectsUntold(node), 30) {
            answer = failed(&running.call, away());
        }
        self.answer(node, id, answer);
    }

    fn take_call(&mut self, node: usize, incarnation: u32, id: CallId) -> Option<Running> {
        let process = self.nodes[node].process.as_mut()?;
        (process.incarnation == incarnation)
            .then(|| process.calls.remove(&id))
            .flatten()
    }

    fn answer(&mut self, node: usize, id: CallId, answer: Answer) {
        self.absorb(&[id.0, mix(node as u64)]);
        self.looked(node, &answer);
        self.queue_told(node, QueueEvent::Answered(id, answer));
    }

    /// A call happens in the runtime.
    fn effect(&mut self, node: usize, running: &Running) -> Answer {
        let now = self.now;
        let starts = matches!(running.call, Call::Containers)
            && self.is(Trouble::ContainersStart(node))
            && self.rng.percent(50);
        let full = self.is(Trouble::DiskFull(node));
        let runtime = &mut self.nodes[node].runtime;
        let manifest = match &running.plan {
            Plan::Fail(error) => return failed(&running.call, error.clone()),
            Plan::Pretend => return Answer::Pulled(Ok(())),
            Plan::Hang => return failed(&running.call, away()),
            Plan::Succeed(manifest) => manifest,
        };
        match &running.call {
            Call::Inspect(name) => Answer::Inspected(Ok(runtime.inspect(name))),
            Call::Containers => {
                let answer = Answer::Containers(Ok(runtime.list_containers()));
                if starts {
                    // Between the look and the removal.
                    let ids: Vec<String> = runtime.images.keys().cloned().collect();
                    let id = self.rng.pick(&ids).clone();
                    self.run_container(node, &id);
                }
                answer
            }
            Call::Remove(target) => Answer::Removed(runtime.remove(target)),
            Call::Pin(id, on) => Answer::Pinned(runtime.label(id, *on)),
            Call::Pins => Answer::Pins(Ok(runtime.labelled())),
            Call::Credentials(_) => Answer::Credentials(Vec::new(), None),
            Call::FsInfo => Answer::Disk(Ok(runtime.disk(full))),
            Call::Progress(names) => Answer::Progress(Ok(self.bytes(node, names))),
            Call::Pull(name, _) => {
                if let Some(manifest) = manifest {
                    if manifest.lacks(&runtime.layers()) << 20 > runtime.disk(full).available {
                        return Answer::Pulled(Err(no_space()));
                    }
                    runtime.store(name, manifest, now);
                    runtime.foreign.remove(&normalized(name));
                }
                Answer::Pulled(Ok(()))
            }
        }
    }

    /// How far the pulls of these names are. A pull that hangs stands at half.
    fn bytes(&self, node: usize, names: &[String]) -> BTreeMap<String, Bytes> {
        let calls = self.nodes[node]
            .process
            .iter()
            .flat_map(|p| p.calls.values());
        let pulls = calls.filter_map(|running| match &running.call {
            Call::Pull(name, _) if names.contains(name) => {
                let hangs = matches!(running.plan, Plan::Hang);
                let done = if hangs {
                    running.takes / 2
                } else {
                    self.now - running.since
                };
                let bytes = Bytes {
                    done,
                    total: running.takes,
                    active: true,
                };
                Some((name.clone(), bytes))
            }
            _ => None,
        });
        pulls.collect()
    }

    /// The runtime is away for a while; its calls fail.
    pub fn runtime_restarts(&mut self, node: usize, wait: u64) {
        self.nodes[node].runtime.away_until = self.now + wait;
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let calls: Vec<CallId> = process.calls.keys().copied().collect();
        let incarnation = process.incarnation;
        for id in calls {
            self.after(1, Event::Done(node, incarnation, id));
        }
    }
}

fn event(
    process: &mut Process,
    name: &str,
    stream: StreamId,
    purpose: Purpose,
    bytes: &[u8],
) -> Result<QueueEvent, String> {
    let decode = |error: prost::DecodeError| error.to_string();
    let malformed = |error: Malformed| error.to_string();
    match purpose {
        Purpose::Pull => {
            let request = PullImagesRequest::decode(bytes).map_err(decode)?;
            let authority = contract::authority(name, request.authority).map_err(malformed)?;
            let mut credentials = Vec::new();
            for credential in request.credentials {
                process.counter += 1;
                process
                    .users
                    .insert(process.counter, credential.username.clone());
                credentials.push((CredentialId(process.counter), credential));
            }
            let images = request.images.into_iter();
            let images = images
                .map(|image| contract::pull_request(image, &credentials, hash))
                .collect::<Result<_, _>>()
                .map_err(malformed)?;
            Ok(QueueEvent::Pull(stream, authority, images))
        }
        Purpose::Remove => {
            let request = RemoveImagesRequest::decode(bytes).map_err(decode)?;
            contract::remove_event(name, stream, request).map_err(malformed)
        }
        Purpose::Check => {
            let request = CheckImagesRequest::decode(bytes).map_err(decode)?;
            contract::check_node(name, &request.node_name).map_err(malformed)?;
            Ok(QueueEvent::Check(stream, request.references))
        }
        Purpose::Cancel => {
            let request = CancelPullsRequest::decode(bytes).map_err(decode)?;
            contract::cancel_event(name, stream, request).map_err(malformed)
        }
    }
}

/// The same for the same credentials.
fn hash(credentials: &[&Credential]) -> u64 {
    let bytes = credentials.iter().flat_map(|c| c.username.bytes());
    bytes.fold(credentials.len() as u64, |hash, byte| {
        mix(hash ^ u64::from(byte))
    })
}

fn failed(call: &Call, error: CallError) -> Answer {
    match call {
        Call::Inspect(_) => Answer::Inspected(Err(error)),
        Call::Pull(..) => Answer::Pulled(Err(error)),
        Call::Containers => Answer::Containers(Err(error)),
        Call::Remove(_) => Answer::Removed(Err(error)),
        Call::Credentials(_) => Answer::Credentials(Vec::new(), Some(error.message)),
        Call::FsInfo => Answer::Disk(Err(error)),
        Call::Pins => Answer::Pins(Err(error)),
        Call::Pin(..) => Answer::Pinned(Err(error)),
        Call::Progress(_) => Answer::Progress(Err(error)),
    }
}
