//! Carries out the plan of a node.

use super::{Engine, timers::Timer};
use crate::{
    ids::{NodeIdx, RegistryId},
    model::{Model, Probe, in_flight::Task},
    plan::node_plan::{NodePlan, PlannedCancel, PlannedPull, PlannedRemoval, Waits},
    vocabulary::{CancelPulls, Command, Now, Work},
};

impl Engine {
    /// Begins what a plan begins, and notes what it says of the node.
    pub(crate) fn commit(&mut self, idx: NodeIdx, plan: NodePlan, now: Now) {
        for cancel in plan.cancel {
            self.cancel(idx, cancel);
        }
        if let Some(removal) = plan.remove {
            self.start_removal(idx, removal, now);
        }
        if let Some(check) = plan.check {
            let references = self.model.lists.share(check.references);
            let images = self.model.image_lists.share(check.images);
            let task = Task::Check { images };
            self.start(idx, Work::Check { references }, task, now);
        }
        for at in plan.convert {
            if let Some(cache) = self.model.caches.get_mut(at) {
                cache.refresh.found();
                self.agenda.caches.insert(at);
            }
        }
        for registry in plan.asked {
            let registry = self.model.names.registries.get_mut(registry);
            registry.grow(now.tick);
        }
        for pull in plan.pull {
            self.use_offers(idx, &pull, now.tick);
            self.start_pull(idx, pull, now);
        }
        self.wait_for_sources(idx, &plan.waits.sources, now.tick);
        self.wait(idx, plan.waits);
        for (at, status) in plan.statuses {
            if let Some(cache) = self.model.caches.get_mut(at) {
                cache.set_row(idx, status);
            }
            self.agenda.caches.insert(at);
        }
        self.wake_node(idx, plan.wake);
    }

    fn cancel(&mut self, idx: NodeIdx, planned: PlannedCancel) {
        let node = &self.model.nodes[idx];
        let (Some(node), Some(puller)) = (node.name.clone(), node.puller.clone()) else {
            return;
        };
        let flight = self.model.in_flight.get_mut(planned.batch);
        let Some(Task::Pull(pull)) = flight.map(|flight| &mut flight.task) else {
            return;
        };
        for at in planned.images {
            pull.images[at].cancelled = true;
        }
        self.agenda.outbox.push(Command::CancelPulls(CancelPulls {
            term: self.model.leadership.term(),
            seq: self.model.in_flight.next_seq(),
            node,
            puller,
            batch: planned.batch,
            references: planned.references,
        }));
    }

    fn start_removal(&mut self, idx: NodeIdx, planned: PlannedRemoval, now: Now) {
        let Model {
            lists, image_lists, ..
        } = &mut self.model;
        let unpin = lists.share(planned.unpin);
        let task = Task::Remove {
            images: image_lists.share(planned.images),
            unpin: unpin.clone(),
        };
        let work = Work::Remove {
            references: lists.share(planned.references),
            desired: lists.share(planned.desired),
            releasable: lists.share(planned.releasable),
            only_pulled: lists.share(planned.only_pulled),
            unpin,
        };
        self.start(idx, work, task, now);
    }

    fn start_pull(&mut self, idx: NodeIdx, planned: PlannedPull, now: Now) {
        let credentials = planned.pull.credentials;
        let work = Work::Pull {
            images: planned.items,
            credentials: self.model.names.scopes.get(credentials).clone(),
        };
        if planned.probes {
            for image in &planned.pull.images {
                let key = (image.id, credentials);
                let probe = Probe {
                    node: idx,
                    failed: None,
                };
                let known = self.model.probes.entry(key).or_insert(probe);
                if known.failed.is_some() {
                    *known = probe;
                }
            }
        }
        self.start(idx, work, Task::Pull(planned.pull), now);
    }

    /// Notes what pulls of the node wait for: they are planned again when there is room.
    fn wait(&mut self, idx: NodeIdx, waits: Waits) {
        for at in waits.caches {
            if let Some(cache) = self.model.caches.get_mut(at) {
                cache.pulling.waiting.insert(idx);
            }
        }
        if !waits.registries.is_empty() {
            self.keep_connection(idx);
        }
        for (registry, priority) in waits.registries {
            let waiting = self.model.names.registries.get_mut(registry);
            waiting.wait(priority, idx);
            self.time_growth(registry);
        }
    }

    /// The next call waits only for a registry: a second handshake would cost both sides more than the connection does.
    fn keep_connection(&mut self, idx: NodeIdx) {
        let node = &mut self.model.nodes[idx];
        let idle = node.in_flight.is_empty() && !node.contact.kept;
        if let (true, Some(name), Some(puller)) = (idle, &node.name, &node.puller) {
            node.contact.kept = true;
            self.agenda.outbox.push(Command::KeepConnection {
                node: name.clone(),
                puller: puller.clone(),
            });
        }
    }

    /// Sets the timer of a registry's budget, if nodes wait for it.
    fn time_growth(&mut self, registry: RegistryId) {
        let grows_at = self.model.names.registries.get(registry).grows_at();
        self.agenda.timers.set(Timer::Registry(registry), grows_at);
    }
}
