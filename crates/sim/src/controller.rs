//! A controller: a real engine, what it hears of the API server, and what it writes there.

use std::collections::{BTreeMap, VecDeque};

use kubefledged_api_types::{
    ImageCacheStatus, Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION},
};
use kubefledged_engine::{
    CacheKey, Command, Engine, Event as EngineEvent, Now, Settings, Tick, WriteError,
};

use crate::{
    api::{self, Key, Lease, Object, Resource},
    network::Side,
    rules::View,
    script::{SourceKey, Trouble},
    world::{Event, World},
};

/// When the World begins, in seconds since 1970.
const DAWN: i64 = 1_800_000_000;
/// A Lease that does not change for so long is free.
const LEASE_DURATION: u64 = 10_000;
/// A leader that cannot renew for so long stands down.
const RENEW_LIMIT: u64 = 7_000;
/// Between looks at the Lease.
const LEASE_RETRY: u64 = 2_000;
/// Polls until an engine must come to rest.
const MOST_POLLS: usize = 64;

/// One controller process, or the place for it.
#[derive(Default)]
pub struct Controller {
    /// Counts processes.
    pub life: u32,
    /// The real one, while the process runs.
    pub engine: Option<Engine>,
    /// When the process began.
    pub started: u64,
    /// How wrong its wall clock is, in seconds.
    pub skew: i64,
    /// It stands still until then.
    pub paused_until: u64,
    /// What it was told and what it asked for.
    pub view: View,
    term: Option<u64>,
    renewed: u64,
    observed: Option<(Lease, u64)>,
    seen_term: u64,
    watches: [Watch; 3],
    wake: Option<u64>,
}

#[derive(Default)]
struct Watch {
    broken: bool,
    told: BTreeMap<String, Resource>,
    inbox: VecDeque<EngineEvent>,
    last: u64,
}

/// A write on its way to the API server.
#[derive(Clone, Debug)]
pub enum Write {
    /// The whole status, over this version.
    Status(CacheKey, String, Box<ImageCacheStatus>),
    /// An annotation, if it has this value.
    Clear(CacheKey, &'static str, String),
    /// The finalizer on an object with this UID, or none.
    Finalizer(CacheKey, String, bool),
}

impl Controller {
    /// Does it know in which term the last leader led?
    pub fn knows_the_lease(&self) -> bool {
        self.engine.is_some() && self.observed.is_some()
    }

    fn now(&self, world: u64) -> Now {
        let seconds = i64::try_from(world / 1000).unwrap_or(i64::MAX);
        Now {
            tick: Tick(world - self.started + 1),
            wall: Timestamp(DAWN + seconds + self.skew),
        }
    }
}

impl World {
    /// A process begins.
    pub fn controller_starts(&mut self, who: usize) {
        if self.controllers[who].engine.is_some() {
            return;
        }
        let old = std::mem::take(&mut self.controllers[who]);
        let settings = Settings {
            seed: self.script.seed,
            max_registry_pulls: self.script.registry_pulls,
            ..Settings::default()
        };
        self.controllers[who] = Controller {
            life: old.life + 1,
            engine: Some(Engine::new(settings)),
            started: self.now,
            skew: old.skew,
            ..Controller::default()
        };
        let life = self.controllers[who].life;
        self.note(|| format!("controller {who} begins"));
        for source in SourceKey::ALL {
            self.controllers[who].watches[source as usize].broken = true;
        }
        self.mend_watches();
        let wait = self.rng.below(LEASE_RETRY);
        self.after(wait, Event::Lease(who, life));
    }

    /// A process is killed; another one begins after a while.
    pub fn crash(&mut self, who: usize, wait: u64) {
        if self.controllers[who].engine.take().is_none() {
            return;
        }
        let life = self.controllers[who].life;
        if self.rng.percent(30)
            && let Some(lease) = &mut self.api.lease
            && lease.holder == Some((who, life))
        {
            // It was asked to end, and gave the Lease back.
            lease.holder = None;
        }
        self.controllers[who].life += 1;
        self.break_links(Side::Client, |link| link.who == who && link.life == life);
        self.after(wait, Event::ControllerStarts(who));
    }

    /// Does this process run, and may it do something now? What comes while it stands still comes
    /// when it goes on.
    pub fn awake(&mut self, who: usize, life: u32, event: impl FnOnce() -> Event) -> bool {
        let controller = &self.controllers[who];
        if controller.engine.is_none() || controller.life != life {
            return false;
        }
        if controller.paused_until > self.now {
            self.put_off(controller.paused_until, event());
            return false;
        }
        true
    }

    // === watches

    /// Tells whoever watches.
    pub fn changed(&mut self, key: &Key) {
        for who in 0..self.controllers.len() {
            let running = self.controllers[who].engine.is_some();
            if running && !self.controllers[who].watches[key.0 as usize].broken {
                let resource = self.api.now.get(key).cloned();
                self.change_told(who, key, resource);
            }
        }
    }

    fn change_told(&mut self, who: usize, key: &Key, resource: Option<Resource>) {
        let told = &mut self.controllers[who].watches[key.0 as usize].told;
        let event = match resource {
            Some(resource) => {
                let event = api::applied(&key.1, &resource);
                let before = told.insert(key.1.clone(), resource.clone());
                if before.is_some_and(|before| api::same(&before, &resource)) {
                    return;
                }
                event
            }
            None if told.remove(&key.1).is_none() => return,
            None => api::deleted(key),
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
            for source in SourceKey::ALL {
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
            return;
        }
        watch.broken = false;
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
        let gone: Vec<Key> = gone.map(|key| (source, key.clone())).collect();
        for (key, resource) in then {
            self.change_told(who, &key, Some(resource));
        }
        for key in gone {
            self.change_told(who, &key, None);
        }
        self.push(who, source, EngineEvent::Synced(source.source()));
        for (key, resource) in since {
            self.change_told(who, &key, resource);
        }
    }

    // === the engine

    /// Something is told to an engine, unless its process has ended.
    pub fn tell(&mut self, who: usize, life: u32, event: EngineEvent) {
        if self.awake(who, life, || {
            Event::Tell(who, life, Box::new(event.clone()))
        }) {
            self.engine_told(who, event);
        }
    }

    /// It wakes by itself.
    pub fn engine_wakes(&mut self, who: usize, life: u32, at: u64) {
        if self.awake(who, life, || Event::EngineWake(who, life, at))
            && self.controllers[who].wake == Some(at)
        {
            self.controllers[who].wake = None;
            self.poll_engine(who);
        }
    }

    /// Now.
    pub fn engine_told(&mut self, who: usize, event: EngineEvent) {
        self.note(|| format!("c{who} <- {}", brief(&event)));
        self.heard(who, &event);
        let now = self.controllers[who].now(self.now);
        if let Some(engine) = &mut self.controllers[who].engine {
            engine.handle(now, event);
        }
        self.poll_engine(who);
    }

    fn poll_engine(&mut self, who: usize) {
        let now = self.controllers[who].now(self.now);
        for round in 0.. {
            if round >= MOST_POLLS {
                let told = format!("engine {who} does not come to rest");
                return self.broken("livelock", told);
            }
            let Some(engine) = &mut self.controllers[who].engine else {
                return;
            };
            let mut out = Vec::new();
            engine.poll(now, &mut out);
            let next = engine.next_wakeup();
            if out.is_empty() && next.is_none_or(|at| at > now.tick) {
                return self.wake_engine(who, next);
            }
            for command in out {
                self.carry_out(who, command);
            }
        }
    }

    fn wake_engine(&mut self, who: usize, next: Option<Tick>) {
        let controller = &mut self.controllers[who];
        let at = next.map(|tick| controller.started + tick.0 - 1);
        if controller.wake != at {
            controller.wake = at;
            let life = controller.life;
            if let Some(at) = at {
                self.at(at, Event::EngineWake(who, life, at));
            }
        }
    }

    fn carry_out(&mut self, who: usize, command: Command) {
        match command {
            Command::StartBatch(batch) => {
                self.check_batch(who, &batch);
                self.start_call(who, &batch);
            }
            Command::CancelPulls(cancel) => self.cancel_call(who, &cancel),
            Command::WriteStatus {
                key,
                resource_version,
                status,
            } => {
                self.check_status(who, &key, &status);
                self.write(who, Write::Status(key, resource_version, status));
            }
            Command::ClearAnnotation {
                key,
                annotation,
                value,
            } => self.write(who, Write::Clear(key, annotation, value)),
            Command::NodeTransition {
                node, transition, ..
            } => {
                let text = format!("{node} {transition:?}");
                self.absorb_bytes(text.as_bytes());
                self.note(|| format!("c{who} event {text}"));
            }
            Command::EmitEvent {
                key,
                reason,
                message,
                ..
            } => {
                self.absorb_bytes(message.as_bytes());
                self.note(|| format!("c{who} event {key} {reason}: {message}"));
            }
            Command::SetFinalizer { key, uid, present } => {
                self.write(who, Write::Finalizer(key, uid, present));
            }
            Command::RaiseTerm { seen_term } => {
                let controller = &mut self.controllers[who];
                controller.seen_term = controller.seen_term.max(seen_term);
                let life = controller.life;
                self.after(1, Event::Lease(who, life));
            }
        }
    }

    // === writes

    fn write(&mut self, who: usize, write: Write) {
        self.note(|| format!("c{who} -> {}", told(&write)));
        let most = if self.is(Trouble::ApiSlow) {
            20_000
        } else {
            30
        };
        let latency = self.rng.between(1, most);
        let life = self.controllers[who].life;
        self.after(latency, Event::Write(who, life, Box::new(write)));
    }

    /// A write reaches the API server, which may or may not do it, and may or may not say so.
    pub fn write_arrives(&mut self, who: usize, life: u32, write: &Write) {
        let (Write::Status(key, ..) | Write::Clear(key, ..) | Write::Finalizer(key, ..)) = write;
        let (key, name) = (key.clone(), key.to_string());
        if self.hits(Trouble::Conflicts, 40)
            && let Some(object) = self.api.cache(&name).cloned()
        {
            self.put(
                (SourceKey::Caches, name.clone()),
                Resource::Cache(Box::new(object)),
            );
        }
        let failed = || WriteError::Failed("the server is currently unable".to_owned());
        let refused = self.is(Trouble::ApiUnreachable(who)) || self.hits(Trouble::WritesFail, 60);
        let mut result = if refused {
            Err(failed())
        } else {
            self.stored(&name, write)
        };
        let mut wait = self.rng.between(1, 20);
        if self.hits(Trouble::AnswersLost, 50) {
            result = Err(failed());
            wait += 5_000;
        }
        self.note(|| format!("write of c{who} to {name}: {result:?}"));
        let answer = match write {
            Write::Status(..) => {
                EngineEvent::StatusWritten(key, result.map(Option::unwrap_or_default))
            }
            Write::Clear(..) => EngineEvent::AnnotationCleared(key, result),
            Write::Finalizer(..) => EngineEvent::FinalizerWritten(key, result),
        };
        self.after(wait, Event::Tell(who, life, Box::new(answer)));
    }

    /// What the API server does with a write. The new version; none where nothing was to do.
    fn stored(&mut self, name: &str, write: &Write) -> Result<Option<String>, WriteError> {
        let Some(mut object) = self.api.cache(name).cloned() else {
            return Err(WriteError::Gone);
        };
        match write {
            Write::Status(_, version, status) => {
                if object.version.to_string() != *version {
                    return Err(WriteError::Conflict);
                }
                self.store_status(&mut object, status);
            }
            Write::Clear(_, annotation, value) => {
                let known = match *annotation {
                    PURGE_ANNOTATION => &mut object.purge,
                    REFRESH_ANNOTATION => &mut object.refresh,
                    _ => return Ok(None),
                };
                if known.as_ref() != Some(value) {
                    return Ok(None);
                }
                *known = None;
            }
            Write::Finalizer(_, uid, present) => {
                if object.uid.to_string() != *uid {
                    return Err(WriteError::Gone);
                }
                if object.finalizer == *present {
                    return Ok(None);
                }
                object.finalizer = *present;
                if object.deleting && !present {
                    self.remove_resource(&(SourceKey::Caches, name.to_owned()));
                    return Ok(Some(object.version.to_string()));
                }
            }
        }
        self.put(
            (SourceKey::Caches, name.to_owned()),
            Resource::Cache(Box::new(object)),
        );
        let version = self
            .api
            .cache(name)
            .map(|object| object.version.to_string());
        Ok(version)
    }

    fn store_status(&mut self, object: &mut Object, status: &ImageCacheStatus) {
        let json = serde_json::to_vec(status).unwrap_or_default();
        self.absorb_bytes(&json);
        // As the API server gives it back.
        object.status = serde_json::from_slice(&json).unwrap_or_default();
        if object.status != *status {
            let told = "a status reads otherwise than it was written".to_owned();
            self.broken("status survives storage", told);
        }
        let names = status
            .applied_images
            .iter()
            .map(|applied| applied.name.clone());
        object.ever_applied.extend(names);
    }

    // === the Lease

    /// A controller looks at the Lease, and takes or renews it where that is right.
    pub fn lease_round(&mut self, who: usize, life: u32) {
        if !self.awake(who, life, || Event::Lease(who, life)) {
            return;
        }
        let wait = LEASE_RETRY + self.rng.below(200);
        self.after(wait, Event::Lease(who, life));
        if self.is(Trouble::ApiUnreachable(who)) || self.hits(Trouble::WritesFail, 30) {
            let late = self.now > self.controllers[who].renewed + RENEW_LIMIT;
            if late {
                self.stand_down(who);
            }
            return;
        }
        match self.evaluate(who, life) {
            Some(term) => {
                self.api.lease = Some(Lease {
                    holder: Some((who, life)),
                    term,
                    renewed: self.now,
                });
                self.controllers[who].renewed = self.now;
                if self.controllers[who].term != Some(term) {
                    self.controllers[who].term = Some(term);
                    self.engine_told(who, EngineEvent::Leadership(Some(term)));
                }
            }
            None => self.stand_down(who),
        }
    }

    /// The term to lead in, if it may lead.
    fn evaluate(&mut self, who: usize, life: u32) -> Option<u64> {
        let now = self.now;
        let controller = &mut self.controllers[who];
        let last = controller.observed.map_or(0, |(known, _)| known.term);
        let seen = controller.seen_term.max(last);
        let Some(lease) = self.api.lease else {
            return Some(seen + 1);
        };
        if controller.observed.is_none_or(|(known, _)| known != lease) {
            controller.observed = Some((lease, now));
        }
        let since = controller.observed.map_or(now, |(_, at)| at);
        if lease.holder == Some((who, life)) {
            return Some(if lease.term < seen {
                seen + 1
            } else {
                lease.term
            });
        }
        let free = lease.holder.is_none() || now - since >= LEASE_DURATION;
        free.then(|| lease.term.max(seen) + 1)
    }

    fn stand_down(&mut self, who: usize) {
        if self.controllers[who].term.take().is_some() {
            self.engine_told(who, EngineEvent::Leadership(None));
        }
    }
}

fn told(write: &Write) -> String {
    match write {
        Write::Status(key, version, status) => format!(
            "status of {key} over {version}: {}",
            serde_json::to_string(status).unwrap_or_default()
        ),
        Write::Clear(key, annotation, value) => format!("clear {annotation}={value:?} of {key}"),
        Write::Finalizer(key, _, on) => format!("finalizer of {key}: {on}"),
    }
}

fn brief(event: &EngineEvent) -> String {
    match event {
        EngineEvent::CacheApplied(object) => format!(
            "applied {} version {} refresh {:?} purge {:?} spec {}",
            object.key,
            object.resource_version,
            object.refresh,
            object.purge,
            serde_json::to_string(&object.spec).unwrap_or_default()
        ),
        other => format!("{other:?}"),
    }
}
