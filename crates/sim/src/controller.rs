//! A controller: a real engine and the process around it.

mod lease;
mod watches;
mod writes;

use std::{collections::BTreeMap, time::Duration};

use kubefledged_api_types::Timestamp;
use kubefledged_api_types::WorkloadAccess;
use kubefledged_contract::terms::{Claims, Rises};
use kubefledged_engine::{Command, Engine, Event as EngineEvent, Now, Settings, Tick};

use self::watches::Watch;
pub use self::writes::Write;
use crate::{
    api::Lease,
    network::{Checks, Side},
    rules::View,
    script::SourceKey,
    world::{Event, World},
};

/// When the World begins, in seconds since 1970.
pub const DAWN: i64 = 1_800_000_000;
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
    /// When it last began, went on, or heard anew of pullers.
    pub disturbed: u64,
    /// What it was told and what it asked for.
    pub view: View,
    term: Option<u64>,
    renewed: u64,
    observed: Option<(Lease, u64)>,
    seen_term: u64,
    rises: Rises<Duration>,
    claims: Claims<usize, Duration>,
    /// When the puller of each node last said anything of terms.
    pub heard: BTreeMap<usize, u64>,
    /// Checks that are asked in pieces.
    pub checks: Checks,
    watches: [Watch; 4],
    wake: Option<u64>,
}

impl Controller {
    /// Does it know in which term the last leader led?
    pub fn knows_the_lease(&self) -> bool {
        self.engine.is_some() && self.observed.is_some()
    }

    /// Does it lead, as far as it knows?
    pub fn leads(&self) -> bool {
        self.engine.is_some() && self.term.is_some()
    }

    /// Its clocks.
    pub fn now(&self, world: u64) -> Now {
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
            gate: self.gate_settings(),
            workloads: WorkloadAccess::enabled("ns", []),
            peers: self.peer_settings(),
            ..Settings::default()
        };
        self.controllers[who] = Controller {
            life: old.life + 1,
            engine: Some(Engine::new(settings)),
            started: self.now,
            disturbed: self.now,
            skew: old.skew,
            ..Controller::default()
        };
        let life = self.controllers[who].life;
        self.note(|| format!("controller {who} begins"));
        for source in SourceKey::ALL {
            self.controllers[who].watches[source as usize].broken = true;
        }
        self.mend_watches();
        let wait = self.rng.below(lease::RETRY);
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
        if matches!(event, EngineEvent::Leadership(None)) {
            self.unwatch_workloads(who);
        }
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
            // Calls have no connections here.
            Command::KeepConnection { .. } => {}
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
            Command::RemoveTaints { node, uid, taints } => {
                self.check_untaint(who, &node, &taints);
                self.write(who, Write::Untaint(node, uid, taints));
            }
            Command::WriteNodeCondition {
                node,
                uid,
                condition,
            } => {
                self.check_condition(who, &node, condition.reason);
                self.write(who, Write::Condition(node, uid, condition));
            }
            Command::Watch(all) => self.watch_workloads(who, &all),
            Command::SetFinalizer { key, uid, present } => {
                self.write(who, Write::Finalizer(key, uid, present));
            }
        }
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
