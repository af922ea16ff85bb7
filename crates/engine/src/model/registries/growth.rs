//! How large a registry's budget is. As TCP's window (RFC 5681) it doubles while that brings more, halves when it was too
//! much, and then grows slowly near the last limit.
//!
//! - It *doubles* in sixteen steps of at least [`STEP`] each, while nodes wait for it and good answers come. Two rounds in a row
//!   that brought hardly more in the same time end that, and are taken back.
//! - It *halves* when the registry asks for fewer requests, or fails more often than before. It doubles again up to its *knee*,
//!   which is a little below what was too much.
//! - Beyond the knee it *grows* by one in [`GROW_PAUSE`]. After [`RETRY`] the knee is forgotten.

use std::time::Duration;

use crate::{
    ids::NodeIdx,
    vocabulary::{KnownBudget, Tick},
};

/// Every registry is trusted to bear so many pulls at a time.
const TRUSTED: u32 = 16;
/// The budget is halved at most once in this time, unless a pull is refused that began after that.
const HALVE_PAUSE: Duration = Duration::from_secs(5);
/// The budget grows by one in this time, whatever is answered.
const GROW_PAUSE: Duration = Duration::from_secs(10);
/// Shortest time between two steps. A refusal needs some of it to arrive, so it bounds how many there are.
const STEP: Duration = Duration::from_millis(125);
/// Steps from a budget to its double.
const STEPS: u32 = 16;
/// A round must bring a quarter more than the best one before it.
const RISE_PERCENT: u64 = 125;
/// So many rounds in a row that bring no more are enough.
const FLAT_ROUNDS: u32 = 2;
/// After this time without a refusal the knee is forgotten, because limits change.
const RETRY: Duration = Duration::from_secs(300);
/// Failures are counted for so long at least, and over so many answers.
const WINDOW: Duration = Duration::from_secs(1);
const LEAST_ANSWERS: u32 = 16;
/// A smaller share of failures is none.
const FAILING_PERCENT: u32 = 10;

/// The size of one budget.
#[derive(Debug)]
pub struct Growth {
    ceiling: u32,
    limit: u32,
    /// So many pulls at a time the registry bears: it has answered them well.
    proven: u32,
    /// Beyond this the budget grows slowly, and since when; `None`: no limit was met.
    knee: Option<(u32, Tick)>,
    /// When the budget grew last; `None`: it was never used.
    grown: Option<Tick>,
    /// When it was halved last; `None`: never.
    halved: Option<Tick>,
    /// The round of doubling that is under way.
    round: Option<Round>,
    /// What the best round brought.
    best: Option<Best>,
    failures: Failures,
}

/// How a pull began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Began {
    /// When.
    pub at: Tick,
    /// Pulls that were under way then, if it was not proven that the registry bears so many.
    pub unproven: Option<u32>,
}

/// A budget doubles.
#[derive(Debug)]
struct Round {
    since: Tick,
    /// The budget at its beginning.
    from: u32,
    /// When the budget grew last.
    stepped: Tick,
    /// Good answers since then.
    answers: u32,
    /// What the good answers brought, in bytes.
    amount: u64,
}

/// The best round, and how many rounds since then were no better.
#[derive(Clone, Copy, Debug)]
struct Best {
    /// Bytes in a second.
    rate: u64,
    /// The budget at its end.
    limit: u32,
    flat: u32,
}

/// How often pulls fail.
#[derive(Debug, Default)]
struct Failures {
    since: Option<Tick>,
    answers: u32,
    failed: u32,
    /// The first node whose pull failed.
    node: Option<NodeIdx>,
    /// Another node's failed too.
    agreed: bool,
    /// Share in the window before, in per cent.
    before: u32,
}

impl Growth {
    /// A budget that nothing is known of.
    pub fn new(start: u32, ceiling: u32) -> Self {
        Self {
            ceiling,
            limit: start,
            proven: TRUSTED,
            knee: None,
            grown: None,
            halved: None,
            round: None,
            best: None,
            failures: Failures::default(),
        }
    }

    /// As it was used last.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// What it never exceeds.
    pub fn ceiling(&self) -> u32 {
        self.ceiling
    }

    /// Did the registry answer so many pulls at a time?
    pub fn is_proven(&self, pulls: u32) -> bool {
        pulls <= self.proven
    }

    /// When it grows next without an answer.
    pub fn grows_at(&self) -> Option<Tick> {
        let grows = self.limit < self.ceiling;
        grows.then(|| self.grown.unwrap_or_default().after(GROW_PAUSE))
    }

    /// Its size now.
    pub fn limit_at(&self, now: Tick) -> u32 {
        self.slowly(now).0
    }

    /// Lets it grow for the time that has passed since it was first used.
    pub fn grow(&mut self, now: Tick) {
        if let Some((_, since)) = self.knee.as_mut().filter(|_| self.grown.is_none()) {
            *since = now;
        }
        let (limit, grown) = self.slowly(now);
        (self.limit, self.grown) = (limit, Some(grown));
    }

    /// Its size now, and when it grew last.
    fn slowly(&self, now: Tick) -> (u32, Tick) {
        let (mut limit, mut grown) = (self.limit, self.grown.unwrap_or(now));
        while limit < self.ceiling && grown.after(GROW_PAUSE) <= now {
            limit += 1;
            grown = grown.after(GROW_PAUSE);
        }
        if limit >= self.ceiling {
            grown = now;
        }
        (limit, grown)
    }

    /// How far it doubles.
    fn top(&self, now: Tick) -> u32 {
        let knee = self.knee.filter(|(_, since)| since.after(RETRY) > now);
        knee.map_or(self.ceiling, |(knee, _)| knee.min(self.ceiling))
    }

    /// A pull that brought so many bytes was answered well. `waits`: nodes wait for the budget.
    pub fn answered(&mut self, now: Tick, bytes: u64, began: Began, waits: bool) {
        self.grow(now);
        self.failures.add_answer(now);
        let proven = began.unproven.unwrap_or(0).min(self.limit);
        self.proven = self.proven.max(proven);
        let top = self.top(now);
        if self
            .knee
            .is_some_and(|(_, since)| since.after(RETRY) <= now)
        {
            (self.knee, self.best) = (None, None);
        }
        if !waits {
            // Another wave may have other images.
            (self.round, self.best) = (None, None);
            return;
        }
        if self.limit >= top {
            self.round = None;
            return;
        }
        let limit = self.limit;
        let round = self.round.get_or_insert_with(|| Round::begin(limit, now));
        round.answers += 1;
        round.amount = round.amount.saturating_add(bytes);
        let step = (round.from / STEPS).max(1);
        if round.answers < step || round.stepped.after(STEP) > now {
            return;
        }
        if limit < round.from.saturating_mul(2) {
            (round.answers, round.stepped) = (0, now);
            self.limit = (limit + step).min(top);
            self.grown = Some(now);
            return;
        }
        let rate = round.rate(now);
        self.round = None;
        self.judge(rate, now);
    }

    /// A round is over.
    fn judge(&mut self, rate: u64, now: Tick) {
        let reached = Best {
            rate,
            limit: self.limit,
            flat: 0,
        };
        let rises = |best: &Best| rate >= best.rate.saturating_mul(RISE_PERCENT) / 100;
        match &mut self.best {
            Some(best) if !rises(best) => {
                best.flat += 1;
                if best.flat == FLAT_ROUNDS {
                    self.limit = best.limit;
                    self.knee = Some((best.limit, now));
                }
            }
            best => *best = Some(reached),
        }
    }

    /// The registry asked for fewer requests while so many pulls were under way.
    pub fn refused(&mut self, now: Tick, in_flight: u32, began: Began) {
        // A pull that began before the budget was halved says nothing of the half, except what was too much before.
        let paused = |at: Tick| at.after(HALVE_PAUSE) > now && began.at <= at;
        let paused = self.halved.is_some_and(paused);
        let unproven = began.unproven.filter(|pulls| !self.is_proven(*pulls));
        if paused && unproven.is_none() {
            return;
        }
        let under_way = match in_flight {
            0 => self.limit,
            some => some.min(self.limit),
        };
        let level = unproven.unwrap_or(under_way);
        let mut knee = (level - (level / 8).max(1).min(level)).max(1);
        if paused {
            // Of many pulls that reach it at once the registry refuses any: not less than the half is blamed.
            let known = self.knee.map_or(knee, |(known, _)| known);
            knee = knee.max(self.limit).min(known);
        } else {
            self.limit = (under_way / 2).max(1);
            (self.halved, self.grown) = (Some(now), Some(now));
        }
        self.knee = Some((knee, now));
        self.limit = self.limit.min(knee);
        self.proven = self.proven.min(knee);
        (self.round, self.best) = (None, None);
    }

    /// A pull failed because of the registry. `alone`: no other node pulls from it.
    pub fn failed(&mut self, now: Tick, node: NodeIdx, alone: bool, in_flight: u32) {
        self.failures.add_failure(now, node, alone);
        if self.failures.rise(now) {
            self.refused(now, in_flight, Began::default());
        }
    }

    /// What a new leader is told; `None`: nothing that it would not find out with its first pulls.
    pub fn known(&self, start: u32) -> Option<KnownBudget> {
        let known = KnownBudget {
            limit: self.limit.min(self.proven.max(start)),
            knee: self.knee.map(|(knee, _)| knee),
        };
        (known.limit != start || known.knee.is_some()).then_some(known)
    }

    /// Goes on from what the leader before knew. Its time begins when it is used, which may be hours later.
    pub fn restore(&mut self, known: KnownBudget) {
        self.limit = known.limit.clamp(1, self.ceiling);
        self.proven = self.limit;
        self.knee = known.knee.map(|knee| (knee.max(1), Tick(0)));
        (self.grown, self.round, self.best) = (None, None, None);
    }
}

impl Round {
    fn begin(limit: u32, now: Tick) -> Self {
        Self {
            since: now,
            from: limit,
            stepped: now,
            answers: 0,
            amount: 0,
        }
    }

    /// Bytes in a second.
    fn rate(&self, now: Tick) -> u64 {
        self.amount.saturating_mul(1000) / now.0.saturating_sub(self.since.0).max(1)
    }
}

impl Failures {
    fn add_answer(&mut self, now: Tick) {
        self.since.get_or_insert(now);
        self.answers += 1;
        if self.failed == 0 && self.is_over(now) {
            *self = Self::default();
        }
    }

    fn add_failure(&mut self, now: Tick, node: NodeIdx, alone: bool) {
        self.since.get_or_insert(now);
        self.answers += 1;
        self.failed += 1;
        let first = *self.node.get_or_insert(node);
        self.agreed |= alone || first != node;
    }

    fn is_over(&self, now: Tick) -> bool {
        let long = self.since.is_some_and(|since| since.after(WINDOW) <= now);
        long && self.answers >= LEAST_ANSWERS
    }

    /// Do clearly more pulls fail than before, on more than one node?
    fn rise(&mut self, now: Tick) -> bool {
        if !self.is_over(now) {
            return false;
        }
        let share = self.failed * 100 / self.answers;
        let rises = self.agreed && share >= FAILING_PERCENT && share >= 2 * self.before;
        *self = Self {
            before: share,
            ..Self::default()
        };
        rises
    }
}

#[cfg(test)]
mod tests;
