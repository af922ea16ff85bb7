//! What a controller hears of the API server: watches that break, and lists that may be old.

use std::collections::{BTreeMap, VecDeque};

use kubefledged_api_types::WorkloadKind;
use kubefledged_engine::{Event as EngineEvent, Source, WatchFailure, WatchId, Watched};

use super::Controller;
use crate::{
    api::{self, Key, Resource},
    script::{SourceKey, Trouble},
    world::{Event, World},
};

/// What was told of one kind of resource, and what is on its way.
#[derive(Default)]
pub struct Watch {
    /// It hears nothing until it lists anew.
    pub broken: bool,
    /// Of the watch of workloads: its number; `None`: nobody wants it.
    number: Option<WatchId>,
    told: BTreeMap<String, Resource>,
    inbox: VecDeque<EngineEvent>,
    last: u64,
}

impl World {
    /// Tells whoever watches.
    pub fn changed(&mut self, key: &Key) {
        for who in 0..self.controllers.len() {
            let controller = &self.controllers[who];
            let wanted = key.0 != SourceKey::Workloads || controller.workload_watch().is_some();
            if controller.engine.is_some()
                && wanted
                && !self.controllers[who].watches[key.0 as usize].broken
            {
                let resource = self.api.now.get(key).cloned();
                self.change_told(who, key, resource);
            }
        }
    }

    fn change_told(&mut self, who: usize, key: &Key, resource: Option<Resource>) {
        let watch = self.controllers[who].workload_watch().unwrap_or(WatchId(0));
        let told = &mut self.controllers[who].watches[key.0 as usize].told;
        let event = match resource {
            Some(resource) => {
                let event = api::applied(&key.1, &resource, watch);
                let before = told.insert(key.1.clone(), resource.clone());
                if before.is_some_and(|before| api::same(&before, &resource)) {
                    return;
                }
                event
            }
            None if told.remove(&key.1).is_none() => return,
            None => api::deleted(key, watch),
        };
        self.push(who, key.0, event);
    }

    fn push(&mut self, who: usize, source: SourceKey, event: EngineEvent) {
        let most = if self.is(Trouble::ApiSlow) { 5_000 } else { 40 };
        let latency = self.rng.between(1, most);
        let controller = &mut self.controllers[who];
        let life = controller.life;
        let watch = &mut controller.watches[source as usize];
        watch.last = (self.now + latency).max(watch.last + 1);
        watch.inbox.push_back(event);
        let at = watch.last;
        self.at(at, Event::Watch(who, life, source));
    }

    /// The next event of a watch reaches the engine.
    pub fn watched(&mut self, who: usize, life: u32, source: SourceKey) {
        if !self.awake(who, life, || Event::Watch(who, life, source)) {
            return;
        }
        let inbox = &mut self.controllers[who].watches[source as usize].inbox;
        if let Some(event) = inbox.pop_front() {
            self.engine_told(who, event);
        }
    }

    /// A watch hears nothing more until it lists anew.
    pub fn break_watch(&mut self, who: usize, source: SourceKey) {
        self.controllers[who].watches[source as usize].broken = true;
    }

    /// Broken watches that nothing hinders list anew soon.
    pub fn mend_watches(&mut self) {
        for who in 0..self.controllers.len() {
            let controller = &self.controllers[who];
            let workloads = controller.workload_watch().map(|_| SourceKey::Workloads);
            for source in SourceKey::ALL.into_iter().chain(workloads) {
                let life = self.controllers[who].life;
                if self.controllers[who].watches[source as usize].broken {
                    let wait = self.rng.between(1, 2_000);
                    self.after(wait, Event::List(who, life, source));
                }
            }
        }
    }

    /// A watch lists: what is gone is told as deleted.
    pub fn list(&mut self, who: usize, life: u32, source: SourceKey) {
        let controller = &mut self.controllers[who];
        let hindered = self.troubles.iter().any(|trouble| {
            *trouble == Trouble::WatchBroken(who, source)
                || *trouble == Trouble::ApiUnreachable(who)
        });
        let watch = &mut controller.watches[source as usize];
        if controller.life != life || controller.engine.is_none() || !watch.broken || hindered {
            return self.unlisted(who, life, source);
        }
        watch.broken = false;
        controller.disturbed = self.now;
        let old = if self.is(Trouble::ListsStale) {
            30_000
        } else {
            0
        };
        let at = self.now.saturating_sub(self.rng.below(old + 1));
        let (then, since) = self.api.as_of(source, at);
        let told = &self.controllers[who].watches[source as usize].told;
        let gone = told
            .keys()
            .filter(|key| !then.contains_key(&(source, (*key).clone())));
        let mut gone: Vec<Key> = gone.map(|key| (source, key.clone())).collect();
        if source == SourceKey::Workloads {
            // The engine finds out what is gone, as it must of real lists.
            for (_, key) in gone.drain(..) {
                self.controllers[who].watches[source as usize]
                    .told
                    .remove(&key);
            }
            self.push(who, source, EngineEvent::Listing(self.source(who, source)));
        }
        for (key, resource) in then {
            self.change_told(who, &key, Some(resource));
        }
        for key in gone {
            self.change_told(who, &key, None);
        }
        self.push(who, source, EngineEvent::Synced(self.source(who, source)));
        for (key, resource) in since {
            self.change_told(who, &key, resource);
        }
    }

    fn source(&self, who: usize, source: SourceKey) -> Source {
        let watch = self.controllers[who].workload_watch();
        source.source(watch.unwrap_or(WatchId(0)))
    }

    /// A list did not come. Of workloads the engine is told.
    fn unlisted(&mut self, who: usize, life: u32, source: SourceKey) {
        let controller = &self.controllers[who];
        let broken = controller.watches[source as usize].broken && controller.life == life;
        if source == SourceKey::Workloads
            && broken
            && let Some(id) = controller.workload_watch()
        {
            let failure = WatchFailure::Failed("the API server does not answer".to_owned());
            self.push(who, source, EngineEvent::WatchFailed(id, failure));
        }
    }

    /// The engine wants these watches. Only Deployments exist.
    pub fn watch_workloads(&mut self, who: usize, all: &[(WatchId, Watched)]) {
        let life = self.controllers[who].life;
        let deployments = Watched::Workloads(WorkloadKind::Deployment);
        let wanted = all.iter().find(|(_, target)| *target == deployments);
        let wanted = wanted.map(|(id, _)| *id);
        self.controllers[who].view.watches(wanted);
        let watch = &mut self.controllers[who].watches[SourceKey::Workloads as usize];
        if watch.number != wanted {
            watch.number = wanted;
            watch.broken = true;
            watch.told.clear();
            if wanted.is_some() {
                let wait = self.rng.between(1, 2_000);
                self.after(wait, Event::List(who, life, SourceKey::Workloads));
            }
        }
        for (id, target) in all {
            if *target != deployments {
                let wait = self.rng.between(1, 3_000);
                let event = EngineEvent::Synced(Source::Watch(*id));
                self.after(wait, Event::Tell(who, life, Box::new(event)));
            }
        }
    }

    /// Nobody leads here any more.
    pub fn unwatch_workloads(&mut self, who: usize) {
        self.controllers[who].view.watches(None);
        self.controllers[who].watches[SourceKey::Workloads as usize].number = None;
    }
}

impl Controller {
    /// The number of the watch of workloads; `None`: nobody wants it.
    fn workload_watch(&self) -> Option<WatchId> {
        self.watches[SourceKey::Workloads as usize].number
    }
}
