//! Batches begin and end, and give their places to others.

use std::time::Duration;

use super::{Engine, timers::Timer};
use crate::{
    ids::{CacheIdx, ImageId, NodeIdx, RegistryId, ScopeId, Stamp},
    model::{
        cache::Cache,
        in_flight::{Flight, Pull, Task},
    },
    vocabulary::{Batch, BatchEnd, BatchId, CacheKey, Command, FailureClass, Now, Tick, Work},
};

/// A pull batch without an outcome for so long is long. The puller counts the same.
pub(super) const LONG: Duration = Duration::from_secs(20);
/// Pause before the next call to a puller that knows a later leader.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Begins a call to a node that has a puller.
    pub(super) fn start(&mut self, idx: NodeIdx, work: Work, task: Task, now: Now) {
        let node = &self.model.nodes[idx];
        let (Some(name), Some(puller)) = (node.name.clone(), node.puller.clone()) else {
            return;
        };
        let stamp = self.model.next_stamp(now);
        let lost = now.tick.after(task.deadline());
        let seq = self.model.in_flight.next_seq();
        let operations = self.operations(idx, &task);
        let flight = Flight {
            node: idx,
            stamp,
            task,
        };
        let id = self.model.in_flight.begin(flight);
        let node = &mut self.model.nodes[idx];
        node.in_flight.insert(id);
        node.contact.kept = false;
        self.agenda.timers.set(Timer::Lost(id), Some(lost));
        self.take_places(id, idx, now.tick);
        self.agenda.outbox.push(Command::StartBatch(Box::new(Batch {
            id,
            term: self.model.leadership.term(),
            seq,
            node: name,
            puller,
            operations,
            work,
        })));
    }

    /// Returns the caches whose running operation waits for the node and for images of the task.
    fn operations(&self, idx: NodeIdx, task: &Task) -> Vec<CacheKey> {
        let awaits = |cache: &&Cache| cache.operation.as_ref().is_some_and(|op| op.awaits(idx));
        let waiting = self.model.caches.iter().map(|(_, cache)| cache);
        let waiting = waiting.filter(awaits);
        let key = |cache: &Cache| cache.object.key.clone();
        match task {
            Task::Pull(pull) => {
                let caches = pull.caches().into_iter();
                let caches = caches.filter_map(|cache| self.model.caches.get(cache));
                caches.filter(awaits).map(key).collect()
            }
            Task::Remove { images, .. } => waiting
                .filter(|cache| {
                    let pending = &cache.applied.pending;
                    images.iter().any(|image| pending.contains_key(image))
                })
                .map(key)
                .collect(),
            Task::Check { images } => waiting
                .filter(|cache| {
                    let desired = &cache.desired.images;
                    images.iter().any(|image| desired.contains(*image))
                })
                .map(key)
                .collect(),
        }
    }

    /// Takes what a pull batch needs: room in its registry's budget, and a place among the nodes of its caches.
    fn take_places(&mut self, id: BatchId, idx: NodeIdx, now: Tick) {
        let Some(Flight {
            task: Task::Pull(pull),
            ..
        }) = self.model.in_flight.get_mut(id)
        else {
            return;
        };
        let long = now.after(LONG);
        self.agenda.timers.set(Timer::Long(id), Some(long));
        let registry = self.model.names.registries.get_mut(pull.registry);
        pull.began = registry.take(pull.cost, now);
        registry.pulls(idx);
        for image in &pull.images {
            if let Some(cache) = self.model.caches.get_mut(image.cache) {
                cache.pulling.begin(idx);
            }
        }
    }

    /// Ends a batch: its places are free again.
    pub(super) fn end_flight(&mut self, id: BatchId) -> Option<Flight> {
        let flight = self.model.in_flight.take(id)?;
        self.agenda.timers.set(Timer::Lost(id), None);
        self.agenda.timers.set(Timer::Long(id), None);
        self.model.nodes[flight.node].in_flight.remove(&id);
        self.touch_node(flight.node);
        if let Task::Pull(pull) = &flight.task {
            self.give_back_places(flight.node, pull);
        }
        Some(flight)
    }

    fn give_back_places(&mut self, idx: NodeIdx, pull: &Pull) {
        let registry = self.model.names.registries.get_mut(pull.registry);
        registry.give_back(pull.cost, pull.long);
        self.serve_soon(pull.registry);
        self.supplies_ended(idx, pull);
        for image in pull.images.iter().filter(|image| image.open) {
            self.end_pull(image.cache, idx);
            self.end_probe(image.id, pull.credentials, idx);
        }
    }

    /// The pull of one image for a cache has ended: if it was the last one there, another node may pull.
    pub(super) fn end_pull(&mut self, at: CacheIdx, node: NodeIdx) {
        if let Some(cache) = self.model.caches.get_mut(at) {
            cache.pulling.end(node);
        }
        self.agenda.caches.insert(at);
    }

    /// Lets nodes that wait for a registry be served in this very turn.
    pub(super) fn serve_soon(&mut self, registry: RegistryId) {
        let timer = Timer::Registry(registry);
        self.agenda.timers.set(timer, Some(Tick(0)));
    }

    /// Plans nodes that wait for a registry, as many as it has room for.
    pub(crate) fn serve_registry(&mut self, id: RegistryId, now: Tick) {
        let registry = self.model.names.registries.get_mut(id);
        registry.grow(now);
        for _ in 0..registry.room() {
            let registry = self.model.names.registries.get_mut(id);
            let Some(node) = registry.next_waiting() else {
                break;
            };
            self.touch_node(node);
        }
        let next = self.model.names.registries.get(id).grows_at();
        let next = next.filter(|at| *at > now);
        self.agenda.timers.set(Timer::Registry(id), next);
    }

    /// Plans nodes that wait for `spec.maxConcurrentNodes`, as many as there is room for.
    pub(crate) fn serve_nodes(&mut self, at: CacheIdx) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        if cache.pulling.waiting.is_empty() {
            return;
        }
        let free = cache
            .node_limit()
            .saturating_sub(cache.pulling.active.len());
        let mut served = Vec::new();
        while served.len() < free
            && let Some(node) = cache.pulling.waiting.pop_first()
        {
            served.push(node);
        }
        for node in served {
            self.touch_node(node);
        }
    }

    /// A pull batch had no outcome for long: it leaves the budget.
    pub(crate) fn batch_is_long(&mut self, id: BatchId, now: Tick) {
        let Some(Flight {
            task: Task::Pull(pull),
            node,
            ..
        }) = self.model.in_flight.get_mut(id)
        else {
            return;
        };
        pull.long = true;
        let (registry, cost, node) = (pull.registry, pull.cost, *node);
        self.model.names.registries.get_mut(registry).leave(cost);
        self.serve_registry(registry, now);
        self.touch_node(node);
    }

    pub(crate) fn batch_ended(&mut self, now: Now, id: BatchId, end: BatchEnd) {
        let Some(flight) = self.end_flight(id) else {
            return;
        };
        let seed = self.model.settings.seed;
        let node = &mut self.model.nodes[flight.node];
        // A puller that ends a pull without an outcome for some image would otherwise be asked again at once.
        let incomplete = matches!(&flight.task, Task::Pull(pull)
            if pull.images.iter().any(|image| image.open && !image.cancelled));
        match end {
            BatchEnd::Done if incomplete => node.call_failed(now.tick, seed),
            BatchEnd::Done => {
                node.call_answered();
                let runtime = &mut node.runtime;
                if runtime.may_ask(now.tick) && matches!(flight.task, Task::Check { .. }) {
                    // Even if the report itself did not come.
                    runtime.reported = runtime.reported.max(Some(flight.stamp));
                }
            }
            BatchEnd::Lost | BatchEnd::Unreachable => node.call_failed(now.tick, seed),
            // Whoever calls the pullers decides whether the term must rise.
            BatchEnd::Refused => {
                node.contact.not_before = Some(now.tick.after(REFUSED_PAUSE));
            }
            BatchEnd::CredentialsFailed(message) => {
                if let Task::Pull(pull) = flight.task {
                    let scopes = &mut self.model.names.scopes;
                    scopes.failed(pull.credentials, message, now.tick, seed);
                }
            }
        }
    }

    /// A node that probes has asked, or will not: nodes that waited for it check what came, or ask themselves.
    pub(super) fn end_probe(&mut self, image: ImageId, credentials: ScopeId, node: NodeIdx) {
        let key = (image, credentials);
        let probe = self.model.probes.get(&key);
        if probe.is_some_and(|probe| probe.node == node) {
            self.model.probes.remove(&key);
            self.image_changed(image);
        }
    }

    /// The registry gave no answer to a probe: no other node asks in vain. If the node itself is to blame, another
    /// one asks.
    pub(super) fn fail_probe(
        &mut self,
        image: ImageId,
        credentials: ScopeId,
        node: NodeIdx,
        stamp: Stamp,
        class: FailureClass,
    ) {
        if class.is_node_local() {
            self.end_probe(image, credentials, node);
            return;
        }
        let probe = self.model.probes.get_mut(&(image, credentials));
        if let Some(probe) = probe.filter(|probe| probe.node == node) {
            probe.failed = Some(stamp);
            self.image_changed(image);
        }
    }

    /// Something is known of an image that nodes waited for.
    fn image_changed(&mut self, image: ImageId) {
        for (_, cache) in self.model.caches.iter_mut() {
            if cache.desired.images.contains(image) {
                cache.nodes.epoch += 1;
            }
        }
        self.touch_all_nodes();
    }
}
