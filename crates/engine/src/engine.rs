//! The order in which the engine takes in events and decides.

use crate::{
    commit::{Engine, timers::Timer},
    ids::NodeIdx,
    plan::{
        self,
        context::{NodeContext, NodeView},
    },
    vocabulary::{BatchEnd, Command, Event, Now, Source, Tick},
};

/// Most rounds of one [`Engine::poll`]. What a cache decides changes its nodes, and what a node shows may end an
/// operation and begin the next.
const MAX_ROUNDS: usize = 8;

impl Engine {
    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::CacheApplied(object) => self.cache_applied(now, *object),
            Event::CacheDeleted(key) => self.cache_gone(now, &key),
            Event::CacheInvalid(invalid) => self.cache_invalid(now, *invalid),
            Event::NodeApplied(name, facts) => self.node_applied(now, name, facts),
            Event::NodeDeleted(name) => self.node_deleted(&name),
            Event::PullerChanged(name, puller) => self.puller_changed(now, name, puller),
            Event::PullersPlaced(placement) => self.pullers_placed(placement.as_deref()),
            Event::WorkloadApplied(id, key, workload) => {
                self.workload_applied(id, key, *workload);
            }
            Event::WorkloadDeleted(id, key) => self.workload_deleted(id, &key),
            Event::NamespaceApplied(id, name, labels) => self.namespace_applied(id, name, labels),
            Event::NamespaceDeleted(id, name) => self.namespace_deleted(id, &name),
            Event::WatchFailed(id, failure) => self.watch_failed(id, failure),
            Event::Listing(Source::Watch(id)) => self.watch_listing(id),
            Event::Synced(Source::Watch(id)) => self.watch_synced(now, id),
            Event::Listing(source) => self.listing(source),
            Event::Synced(source) => self.synced(source),
            Event::BudgetsKnown(known) => self.model.names.registries.restore(known),
            Event::Leadership(term) => {
                self.model.leadership.term = term;
                self.model.leadership.begun = false;
            }
            Event::Outcomes(batch, outcomes) => self.outcomes(now, batch, outcomes),
            Event::Transfers(batch, transfers) => self.transfers(now, batch, &transfers),
            Event::Checked(batch, report) => self.checked(now.tick, batch, report),
            Event::BatchEnded(batch, end) => self.batch_ended(now, batch, end),
            Event::SecretsRead(keys, scope, problems) => {
                self.secrets_read(&keys, &scope, problems);
            }
            Event::StatusWritten(key, result) => self.status_written(now, &key, result),
            Event::AnnotationCleared(key, result) => self.annotation_cleared(now, &key, result),
            Event::NodeWritten(name, result) => self.node_written(now, &name, result),
            Event::FinalizerWritten(key, result) => self.finalizer_written(now, &key, result),
        }
    }

    /// Decides about everything that has changed or is due.
    pub fn poll(&mut self, now: Now, out: &mut Vec<Command>) {
        if !self.model.leadership.leads() {
            return;
        }
        if !self.model.leadership.begun {
            self.begin_term(now);
        }
        self.fire_timers(now);
        if self.agenda.is_clear() {
            return;
        }
        for _ in 0..MAX_ROUNDS {
            let mut changed = self.take_changed_caches();
            for cache in &changed {
                self.decide(*cache, now);
            }
            let nodes: Vec<NodeIdx> = self.agenda.nodes.iter().collect();
            self.agenda.nodes.clear();
            for node in nodes {
                self.plan_node(node, now);
            }
            self.serve_swarms(now.tick);
            changed.append(&mut self.agenda.caches);
            for cache in changed {
                self.advance(cache, now);
            }
            if self.agenda.is_clear() {
                break;
            }
        }
        self.update_watches();
        out.append(&mut self.agenda.outbox);
    }

    /// When [`Engine::poll`] has something to do although nothing happens; `None`: never.
    pub fn next_wakeup(&self) -> Option<Tick> {
        if !self.model.leadership.leads() {
            return None;
        }
        if self.agenda.is_clear() && self.model.leadership.begun {
            self.agenda.timers.next()
        } else {
            Some(Tick(0))
        }
    }

    fn plan_node(&mut self, idx: NodeIdx, now: Now) {
        if self.model.nodes[idx].name.is_none() {
            return;
        }
        let context = NodeContext::of(&self.model, idx);
        self.update_node(idx, &context, now);
        self.sync_peers(idx, now.tick);
        let view = NodeView::new(&self.model, idx, now.tick);
        let plan = plan::plan(&view, context);
        self.commit(idx, plan, now);
        self.note_transition(idx, now);
        self.advance_gate(idx, now);
    }

    fn fire_timers(&mut self, now: Now) {
        while let Some(timer) = self.agenda.timers.due(now.tick) {
            match timer {
                Timer::Node(node) => self.touch_node(node),
                Timer::Gate(node) => self.agenda.nodes.insert(node),
                Timer::Cache(cache) => {
                    self.agenda.caches.insert(cache);
                }
                Timer::Registry(registry) => self.serve_registry(registry, now.tick),
                Timer::Long(batch) => self.batch_is_long(batch, now.tick),
                Timer::Peers(swarm) => {
                    self.agenda.swarms.insert(swarm);
                }
                Timer::Lost(batch) => self.batch_ended(now, batch, BatchEnd::Lost),
            }
        }
    }

    /// Another leader may have acted: objects are taken up anew, and nodes are checked anew.
    fn begin_term(&mut self, now: Now) {
        self.reset(now);
        let mut refused = std::mem::take(&mut self.model.refused);
        self.model.workloads.reset();
        let mut caches: Vec<_> = self.model.caches.take().collect();
        // What has images on nodes keeps its room in the quota of its namespace.
        caches.sort_by_key(|cache| cache.object.status.applied_images.is_empty());
        for mut cache in caches {
            if let Some(object) = refused.remove(&cache.object.key)
                && cache.invalid.is_some()
                && object.uid == cache.object.uid
                && object.generation == cache.object.generation
            {
                cache.object = object.with_written(&cache.object);
                cache.invalid = None;
            }
            match cache.invalid {
                Some(message) => self.take_up(now, cache.object, Some(message)),
                None => self.cache_applied(now, cache.object),
            }
        }
        self.touch_all_nodes();
    }
}
