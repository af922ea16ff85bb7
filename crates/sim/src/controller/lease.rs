//! Which controller leads: the Lease, and the terms that it counts.

use std::time::Duration;

use kubefledged_engine::Event as EngineEvent;

use crate::{
    api::Lease,
    script::Trouble,
    world::{Event, World},
};

/// A Lease that does not change for so long is free.
const DURATION: u64 = 10_000;
/// A leader that cannot renew for so long stands down.
const RENEW_LIMIT: u64 = 7_000;
/// Between looks at the Lease.
pub const RETRY: u64 = 2_000;

impl World {
    /// A controller looks at the Lease, and takes or renews it where that is right.
    pub fn lease_round(&mut self, who: usize, life: u32) {
        if !self.awake(who, life, || Event::Lease(who, life)) {
            return;
        }
        let wait = RETRY + self.rng.below(200);
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
                self.check_term(who, term);
                self.api.lease = Some(Lease {
                    holder: Some((who, life)),
                    term,
                    renewed: self.now,
                });
                self.controllers[who].renewed = self.now;
                let engine = self.controllers[who].engine.as_ref();
                if let Some(known) = engine.and_then(|engine| engine.known_budgets(usize::MAX)) {
                    self.api.budgets = known;
                } else if !self.api.budgets.is_empty() && !self.controllers[who].leads() {
                    let known = self.api.budgets.clone();
                    self.engine_told(who, EngineEvent::BudgetsKnown(known));
                }
                if self.controllers[who].term != Some(term) {
                    self.controllers[who].term = Some(term);
                    self.controllers[who].disturbed = self.now;
                    self.engine_told(who, EngineEvent::Leadership(Some(term)));
                }
            }
            None => self.stand_down(who),
        }
    }

    /// The puller of a node has seen this term: the Lease is taken above it, if it is believed.
    pub fn term_claimed(&mut self, who: usize, node: usize, claimed: u64, term: u64) {
        let now = self.now;
        let controller = &mut self.controllers[who];
        controller.heard.insert(node, now);
        let now = Duration::from_millis(now);
        if let Some(seen) = controller.claims.heard(&node, claimed, term, now)
            && seen > controller.seen_term
        {
            // The next look at the Lease takes it: there is one for each controller, and each makes the next.
            controller.seen_term = seen;
            self.check_claim(who, node, seen);
        }
    }

    /// The term to lead in, if it may lead.
    fn evaluate(&mut self, who: usize, life: u32) -> Option<u64> {
        let now = self.now;
        let controller = &mut self.controllers[who];
        let last = controller.observed.map_or(0, |(known, _)| known.term);
        let time = Duration::from_millis(now);
        let seen = controller.rises.towards(controller.seen_term, last, time);
        if seen > last {
            controller.rises.rose(time);
        }
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
        let free = lease.holder.is_none() || now - since >= DURATION;
        free.then(|| lease.term.max(seen) + 1)
    }

    fn stand_down(&mut self, who: usize) {
        if self.controllers[who].term.take().is_some() {
            self.engine_told(who, EngineEvent::Leadership(None));
        }
    }
}
