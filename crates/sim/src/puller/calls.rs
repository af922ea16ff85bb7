//! Calls of a queue to the runtime of its node: how each will go, how long it takes, and what it does.

use kubefledged_queue::{
    Answer, Call, CallError, CallId, CredentialId, Event as QueueEvent, Sources,
};

use crate::{
    node::{Plan, Running},
    registry::{HOSTS, NAMES, PRIVATE, USER, host, normalized},
    rng::mix,
    runtime::{Flavor, away, no_space, unknown},
    script::Trouble,
    world::{Event, World},
};

/// For a call that the runtime answers from what it knows.
const LOOK_LIMIT: u64 = 30_000;
/// For a removal.
const REMOVE_LIMIT: u64 = 120_000;
/// How long a megabyte takes to come, in ms.
const MS_A_MB: u64 = 100;
/// Until the runtime shows a pin that was set or taken off, at most.
const PIN_SHOWS: u64 = 5_000;

impl World {
    /// A call begins.
    pub fn begin_call(&mut self, node: usize, id: CallId, call: Call) {
        let (plan, mut takes) = self.plan(node, &call);
        let mut sources = Sources::default();
        if let (Call::Pull(name, _, sharing), Plan::Succeed(Some(manifest))) = (&call, &plan) {
            (takes, sources) = self.shared(node, name, sharing, manifest, takes);
        }
        if self.is(Trouble::RuntimeSlow(node)) {
            takes += self.rng.below(if self.rng.clone().percent(20) {
                45_000
            } else {
                2_000
            });
        }
        if self.is(Trouble::InspectionsSlow(node)) && matches!(call, Call::Inspect(_)) {
            // One after the other.
            let until = &mut self.nodes[node].inspects_until;
            *until = self.now.max(*until) + self.rng.between(1_500, 4_000);
            takes = *until - self.now;
        }
        let limit = match &call {
            Call::Pull(..) => None,
            Call::Remove(_) | Call::Untag(_) => Some(REMOVE_LIMIT),
            _ => Some(LOOK_LIMIT),
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let incarnation = process.incarnation;
        let hangs = matches!(plan, Plan::Hang | Plan::Silent | Plan::Drip);
        if let Call::Pull(name, ..) = &call {
            process.seen.waiting.begun(&normalized(name));
        }
        let running = Running {
            call,
            plan,
            since: self.now,
            takes,
            sources,
            cancelled: false,
            over_since: None,
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
        let Call::Pull(name, credential, _) = call else {
            return (Plan::Succeed(None), quick);
        };
        if let Some(stuck) = self.stuck(name) {
            return (stuck, 0);
        }
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

    /// Whether the registry of a name leaves pulls without an end.
    fn stuck(&self, name: &str) -> Option<Plan> {
        let from = host(name);
        let at = HOSTS.iter().position(|host| *host == from)?;
        if self.is(Trouble::RegistrySilent(at)) {
            return Some(Plan::Silent);
        }
        self.is(Trouble::RegistryDrips(at)).then_some(Plan::Drip)
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

    /// The puller gives a call up.
    pub fn cancel_runtime_call(&mut self, node: usize, id: CallId) {
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
        if running.cancelled && self.hits(Trouble::PullsEndLate(node), 60) {
            self.will_end_late(node, incarnation, &running);
        } else if self.rng.percent(20) {
            drop(self.effect(node, &running));
        } else if let Plan::Succeed(Some(manifest)) = &running.plan {
            let percent = (self.now - running.since) * 100 / running.takes.max(1);
            self.nodes[node].runtime.break_off(manifest, percent);
        }
        let answer = running.call.failed(error);
        self.answer(node, id, answer);
    }

    /// The runtime was past the point where it can stop a pull.
    fn will_end_late(&mut self, node: usize, incarnation: u32, running: &Running) {
        let wait = self.rng.between(100, 8_000);
        if let Call::Pull(name, ..) = &running.call {
            let ends = (normalized(name), self.now + wait);
            self.nodes[node].late_ends.push(ends);
            let event = Event::EndsLate(node, incarnation, Box::new(running.clone()));
            self.after(wait, event);
        }
    }

    /// A pull that was cancelled ends. With the connection of another process, the runtime has let go of it.
    pub fn ends_late(&mut self, node: usize, incarnation: u32, pull: &Running) {
        let now = self.now;
        let machine = &mut self.nodes[node];
        machine.late_ends.retain(|(_, at)| *at > now);
        let process = machine.process.as_ref();
        let same = process.is_some_and(|process| process.incarnation == incarnation);
        if same && machine.runtime.away_until <= now {
            let effect = self.effect(node, pull);
            self.note(|| format!("n{node} late end of {:?}: {effect:?}", pull.call));
        }
    }

    /// The runtime has done what it was asked to.
    pub fn call_done(&mut self, node: usize, incarnation: u32, id: CallId) {
        let Some(running) = self.take_call(node, incarnation, id) else {
            return;
        };
        if self.nodes[node].runtime.away_until > self.now {
            let answer = running.call.failed(away());
            return self.answer(node, id, answer);
        }
        let mut answer = self.effect(node, &running);
        if self.hits(Trouble::EffectsUntold(node), 30) {
            answer = running.call.failed(away());
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
    pub fn effect(&mut self, node: usize, running: &Running) -> Answer {
        let now = self.now;
        let starts = matches!(running.call, Call::Containers)
            && self.is(Trouble::ContainersStart(node))
            && self.rng.percent(50);
        let disk = self.disk(node);
        let shown = now + self.pin_shows(node, &running.call);
        let runtime = &mut self.nodes[node].runtime;
        let manifest = match &running.plan {
            Plan::Fail(error) => return running.call.failed(error.clone()),
            Plan::Pretend => return Answer::Pulled(Ok(Sources::default())),
            Plan::Hang | Plan::Silent | Plan::Drip => return running.call.failed(away()),
            Plan::Succeed(manifest) => manifest,
        };
        match &running.call {
            Call::Inspect(name) => Answer::Inspected(Ok(runtime.inspect(name, now))),
            Call::Containers => {
                let answer = Answer::Containers(Ok(runtime.list_containers()));
                let mounted = runtime.mounts.iter().cloned().collect();
                if starts {
                    // Between the look and the removal.
                    let ids: Vec<String> = runtime.images.keys().cloned().collect();
                    let id = self.rng.pick(&ids).clone();
                    if self.rng.percent(30) {
                        runtime.mount(&id);
                    } else {
                        self.run_container(node, &id);
                    }
                }
                if let Some(process) = &mut self.nodes[node].process {
                    process.seen.mounted = mounted;
                }
                answer
            }
            Call::Remove(target) => Answer::Removed(runtime.remove(target)),
            Call::Untag(_) => unreachable!("no two images have one id here"),
            Call::Pin(id, on) => Answer::Pinned(runtime.label(id, *on, now, shown)),
            Call::Pins => Answer::Pins(Ok(runtime.labelled())),
            Call::Mark(name) => {
                runtime.mark(name);
                Answer::Marked(Ok(()))
            }
            Call::Trace(name) => Answer::Traced(Ok(runtime.is_marked(name))),
            Call::Credentials(_) => Answer::Credentials(Vec::new(), None),
            Call::FsInfo => Answer::Disk(Ok(disk)),
            Call::Progress(names) => Answer::Progress(Ok(self.bytes(node, names))),
            Call::Pull(name, ..) => {
                if let Some(manifest) = manifest {
                    if manifest.lacks(&runtime.layers()) << 20 > disk.available {
                        return Answer::Pulled(Err(no_space()));
                    }
                    runtime.store(name, manifest, now);
                    runtime.foreign.remove(&normalized(name));
                }
                Answer::Pulled(Ok(running.sources))
            }
        }
    }

    /// How long it takes until a change of a pin shows.
    fn pin_shows(&mut self, node: usize, call: &Call) -> u64 {
        let late = matches!(call, Call::Pin(..));
        let late = late && self.nodes[node].runtime.flavor == Flavor::Containerd2;
        if late { self.rng.below(PIN_SHOWS) } else { 0 }
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
