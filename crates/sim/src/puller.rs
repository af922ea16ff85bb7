//! The puller's process: its life, and the real queue in it.

mod calls;
mod disk;
mod requests;

use kubefledged_contract::puller as contract;
use kubefledged_queue::{Command, Event as QueueEvent, PinResult, StreamId, Support};
use prost::Message as _;

use crate::{
    api::Resource,
    network::{Reply, Side},
    script::SourceKey,
    world::{Event, World},
};

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
        // The runtime lets go of what it was asked for over this connection.
        self.nodes[node].late_ends.clear();
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
                return self.check_fair(node);
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
                self.check_pins(node, outcomes.iter().map(|outcome| &outcome.pin));
                if let Some(process) = &mut self.nodes[node].process {
                    process.seen.waiting.told(stream, &outcomes);
                }
                let message = contract::pulled(outcomes).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Removed(stream, outcomes) => {
                self.note(|| format!("n{node} stream {} {outcomes:?}", stream.0));
                self.check_removed(node, stream, &outcomes);
                let message = contract::removed(outcomes).encode_to_vec();
                self.reply_on(node, stream, Reply::Message(message));
            }
            Command::Overloaded(stream) => {
                self.check_overloaded(node, stream);
                self.reply_on(node, stream, Reply::Overloaded);
                self.end_stream(node, stream);
            }
            Command::Checked(stream, report) => {
                let no = (report.pins == Support::No).then_some(&PinResult::Unsupported);
                self.check_pins(node, no.into_iter());
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
            process.seen.waiting.ended(stream);
            process.seen.replaced.remove(&stream);
        }
    }
}
