//! The gate of one node: what its Node object says of it, what was decided, and the writes to the object.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kubefledged_api_types::{GateReason, Timestamp};

use super::{backoff, texts::Texts};
use crate::{
    ids::{NodeIdx, Stamp},
    vocabulary::{NodeFacts, Now, PlacedTaint, Tick},
};

/// Most writes to Nodes in flight, on all nodes together.
const MAX_WRITES: usize = 64;
/// How long a write that was answered counts although the watch does not show it.
const UNSEEN: Duration = Duration::from_secs(60);
/// Back-off after writes that failed.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Back-off after conflicts: the watch brings the newer Node soon.
const CONFLICT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Back-off of writes that somebody undoes, for example a controller that does not know yet that it no longer leads.
const REPEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a Node object says of its gate.
#[derive(Debug, Default)]
pub struct GateFacts {
    /// `metadata.uid`: another Node of the same name has another one.
    pub uid: Arc<str>,
    /// When this process saw the Node first.
    seen_at: Tick,
    /// How old the Node was then.
    age: Duration,
    /// The gate's taints on it. Empty: it has none, or the controller removes none.
    pub taints: Box<[PlacedTaint]>,
    /// Reason of its condition `ImagesCached`; `None`: it has no such condition, or one that makes no sense.
    pub condition: Option<GateReason>,
}

impl GateFacts {
    /// Reads a Node. `before`: what was known of the node of this name; `key`: that of the gate's taint.
    pub fn new(
        facts: &NodeFacts,
        before: Option<&Self>,
        key: Option<&str>,
        texts: &mut Texts,
        now: Now,
    ) -> Self {
        let same = before.filter(|before| *before.uid == *facts.uid);
        let created = facts.created.map_or(now.wall, |created| created);
        let (seen_at, age) = same.map_or_else(
            || (now.tick, between(created, now.wall)),
            |same| (same.seen_at, same.age),
        );
        let taints = facts.taints.iter().enumerate();
        let gating = taints.filter(|(_, taint)| Some(&*taint.key) == key);
        let condition = facts.images_cached.as_ref();
        Self {
            uid: same.map_or_else(|| facts.uid.as_str().into(), |same| same.uid.clone()),
            seen_at,
            age,
            taints: gating
                .map(|(index, taint)| PlacedTaint {
                    index,
                    key: texts.share(&taint.key),
                    effect: texts.share(&taint.effect),
                })
                .collect(),
            condition: condition.and_then(|known| GateReason::parse(&known.status, &known.reason)),
        }
    }

    /// When a time-out that counts from the creation of the Node is over. A Node that seems to be created in the future,
    /// because clocks differ, counts as created when it was seen first.
    pub fn deadline(&self, timeout: Duration) -> Tick {
        self.seen_at.after(timeout.saturating_sub(self.age))
    }
}

/// Time between two points of the wall clock, at least zero.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0))
}

/// The gate of one node.
#[derive(Debug, Default)]
pub struct Gate {
    /// Older observations release nothing, because the Node or its taint is newer; `None`: any observation of the term
    /// will do.
    pub since: Option<Stamp>,
    /// What was decided last; `None`: nothing yet.
    pub reason: Option<GateReason>,
    /// Writes to the Node.
    pub writer: GateWriter,
}

/// What a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateWrite {
    /// It removes the gate's taints.
    Taints,
    /// It sets the condition to this reason.
    Condition(GateReason),
}

/// Something that was written and that the watch has not shown yet.
#[derive(Clone, Copy, Debug)]
struct Unseen {
    write: GateWrite,
    until: Tick,
}

/// The write that was carried out last.
#[derive(Clone, Copy, Debug)]
struct Last {
    write: GateWrite,
    at: Tick,
    /// How many times in a row it was carried out again.
    repeats: u32,
}

impl Last {
    /// The write that follows `before`. One that was undone long ago counts as a new one.
    fn after(before: Option<Self>, write: GateWrite, now: Tick) -> Self {
        let same = before.filter(|last| last.write == write && last.at.after(2 * REPEAT.1) > now);
        Self {
            write,
            at: now,
            repeats: same.map_or(0, |last| last.repeats.saturating_add(1)),
        }
    }

    /// When this write may be carried out again: for the first time at once.
    fn again(&self) -> Tick {
        match self.repeats {
            0 => self.at,
            repeats => self.at.after(backoff::wait(REPEAT.0, REPEAT.1, repeats, 0)),
        }
    }
}

/// Writes to one Node: at most one is in flight.
#[derive(Debug, Default)]
pub struct GateWriter {
    in_flight: Option<GateWrite>,
    last: Option<Last>,
    /// Writes that failed in a row.
    failures: u32,
    /// No write begins before this; `None`: it may begin now.
    not_before: Option<Tick>,
    taints: Option<Unseen>,
    condition: Option<Unseen>,
    /// An Event has reported that the node was released without images.
    pub reported: bool,
}

impl GateWriter {
    /// Is a write in flight?
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// When this write may begin, if that is later than now.
    pub fn waits(&self, write: GateWrite, now: Tick) -> Option<Tick> {
        let repeated = self.last.filter(|last| last.write == write);
        let again = repeated.map(|last| last.again());
        self.not_before.max(again).filter(|at| *at > now)
    }

    /// Are the gate's taints on the Node, as far as is known?
    pub fn tainted(&self, facts: &GateFacts, now: Tick) -> bool {
        !facts.taints.is_empty() && self.taints.is_none_or(|unseen| unseen.until <= now)
    }

    /// The reason of the Node's condition, as far as is known; `None`: it has none.
    pub fn condition(&self, facts: &GateFacts, now: Tick) -> Option<GateReason> {
        match self.condition {
            Some(Unseen {
                write: GateWrite::Condition(reason),
                until,
            }) if until > now => Some(reason),
            _ => facts.condition,
        }
    }

    /// Notes that the watch has brought the Node.
    pub fn seen(&mut self, facts: &GateFacts) {
        self.taints = self.taints.filter(|_| !facts.taints.is_empty());
        let shown = facts.condition.map(GateWrite::Condition);
        self.condition = self.condition.filter(|unseen| Some(unseen.write) != shown);
    }

    /// Begins a write.
    pub fn begin(&mut self, write: GateWrite) {
        self.in_flight = Some(write);
    }

    /// Takes the write that is in flight; it was carried out. The watch may have shown it before the answer came.
    pub fn done(&mut self, facts: &GateFacts, now: Tick) -> Option<GateWrite> {
        let write = self.in_flight.take()?;
        let until = now.after(UNSEEN);
        let unseen = Some(Unseen { write, until });
        match write {
            GateWrite::Taints => self.taints = unseen,
            GateWrite::Condition(_) => self.condition = unseen,
        }
        self.seen(facts);
        self.last = Some(Last::after(self.last, write, now));
        (self.failures, self.not_before) = (0, None);
        Some(write)
    }

    /// The write that is in flight failed.
    pub fn failed(&mut self, conflict: bool, now: Tick, spread: u64) {
        if self.in_flight.take().is_none() {
            return;
        }
        self.failures += 1;
        let (first, most) = if conflict {
            CONFLICT_RETRY
        } else {
            WRITE_RETRY
        };
        let wait = backoff::wait(first, most, self.failures, spread);
        self.not_before = Some(now.after(wait));
    }
}

/// Must the condition be written? What changes nothing for whoever waits is not: a pull that begins, and images that
/// are missing after the node was released, because an edit of a cache would otherwise rewrite every Node twice.
pub fn must_write(known: Option<GateReason>, reason: GateReason) -> bool {
    let Some(known) = known else {
        return true;
    };
    if known.status() != reason.status() {
        return true;
    }
    let fails = |reason| reason == GateReason::PullFailed;
    known != reason
        && if reason.holds() {
            fails(known) != fails(reason)
        } else {
            !reason.is_fail_open()
        }
}

/// Writes to all Nodes.
#[derive(Debug, Default)]
pub struct GateWrites {
    in_flight: BTreeSet<NodeIdx>,
    /// Nodes that wait for a place. Those that are released come first: pods wait for them.
    waiting: BTreeSet<(bool, NodeIdx)>,
}

impl GateWrites {
    /// Takes a place for a write. `holds`: the node is held, and not released. False: there is no place, and the node
    /// waits for one.
    pub fn take(&mut self, node: NodeIdx, holds: bool) -> bool {
        let free = self.in_flight.len() < MAX_WRITES;
        self.stop_waiting(node);
        if free {
            self.in_flight.insert(node);
        } else {
            self.waiting.insert((holds, node));
        }
        free
    }

    fn stop_waiting(&mut self, node: NodeIdx) {
        for holds in [false, true] {
            self.waiting.remove(&(holds, node));
        }
    }

    /// Gives the place of a node back, and returns a node that waits for one.
    pub fn give_back(&mut self, node: NodeIdx) -> Option<NodeIdx> {
        self.in_flight.remove(&node);
        self.waiting.pop_first().map(|(_, next)| next)
    }

    /// Forgets a node that is gone, and returns a node that waits for its place.
    pub fn forget(&mut self, node: NodeIdx) -> Option<NodeIdx> {
        self.stop_waiting(node);
        let held = self.in_flight.contains(&node);
        held.then(|| self.give_back(node)).flatten()
    }

    /// Forgets all writes, because a term begins.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::NodeCondition;

    fn facts(age: i64) -> GateFacts {
        let facts = NodeFacts {
            uid: "u".into(),
            created: Some(Timestamp(1000 - age)),
            images_cached: Some(NodeCondition {
                status: "True".into(),
                reason: "ImagesCached".into(),
            }),
            ..NodeFacts::default()
        };
        let now = Now {
            tick: Tick(5000),
            wall: Timestamp(1000),
        };
        GateFacts::new(&facts, None, None, &mut Texts::default(), now)
    }

    #[test]
    fn a_deadline_counts_from_the_creation_and_never_from_a_time_to_come() {
        let timeout = Duration::from_secs(600);
        assert_eq!(facts(0).deadline(timeout), Tick(605_000));
        assert_eq!(facts(400).deadline(timeout), Tick(205_000));
        assert_eq!(facts(86_400).deadline(timeout), Tick(5000));
        // The API server's clock is ahead of ours.
        assert_eq!(facts(-300).deadline(timeout), Tick(605_000));
    }

    #[test]
    fn a_write_counts_until_the_watch_shows_it_and_then_the_watch_counts() {
        let (mut writer, now) = (GateWriter::default(), Tick(0));
        let released = facts(0);
        writer.begin(GateWrite::Condition(GateReason::Pulling));
        assert!(writer.is_busy() && writer.done(&released, now).is_some());
        let known = |writer: &GateWriter, at| writer.condition(&released, Tick(at));
        assert_eq!(known(&writer, 59_999), Some(GateReason::Pulling));
        assert_eq!(known(&writer, 60_000), Some(GateReason::ImagesCached));
        let mut seen = facts(0);
        seen.condition = Some(GateReason::Pulling);
        writer.seen(&seen);
        assert_eq!(known(&writer, 1), Some(GateReason::ImagesCached));
    }

    #[test]
    fn a_write_that_the_watch_showed_before_its_answer_counts_no_longer() {
        let (mut writer, now) = (GateWriter::default(), Tick(0));
        let shown = facts(0);
        assert!(shown.taints.is_empty());
        writer.begin(GateWrite::Taints);
        writer.seen(&shown);
        assert_eq!(writer.done(&shown, now), Some(GateWrite::Taints));
        let mut tainted = facts(0);
        tainted.taints = vec![PlacedTaint {
            index: 0,
            key: "k".into(),
            effect: "NoSchedule".into(),
        }]
        .into();
        writer.seen(&tainted);
        assert!(writer.tainted(&tainted, Tick(1)));
    }

    #[test]
    fn a_write_that_somebody_undoes_is_repeated_at_once_and_then_after_pauses_that_grow_to_a_minute()
     {
        let (mut writer, facts) = (GateWriter::default(), facts(0));
        let [pulling, failed] =
            [GateReason::Pulling, GateReason::PullFailed].map(GateWrite::Condition);
        let mut write = |at: Tick| {
            writer.begin(pulling);
            writer.done(&facts, at);
            assert_eq!(writer.waits(failed, at), None, "only this write waits");
            writer.waits(pulling, at)
        };
        let mut now = Tick(0);
        assert_eq!(write(now), None);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let next = write(now).unwrap();
            pauses.push(next.0 - now.0);
            now = next;
        }
        assert!(pauses[0] <= 1250 && pauses.is_sorted(), "{pauses:?}");
        assert!((45_000..=75_000).contains(&pauses[7]), "{pauses:?}");
        // What was undone long ago is as new.
        assert_eq!(write(now.after(3 * REPEAT.1)), None);
    }

    #[test]
    fn a_condition_is_written_for_what_matters_to_whoever_waits() {
        use GateReason as R;
        for (known, reason, expected) in [
            (None, R::ImagesCached, true),
            (Some(R::Pulling), R::ImagesCached, true),
            (Some(R::ImagesMissing), R::Pulling, false),
            (Some(R::Pulling), R::PullFailed, true),
            (Some(R::PullFailed), R::Pulling, true),
            (Some(R::Pulling), R::PullerUnavailable, true),
            (Some(R::Pulling), R::ReleasedByTimeout, true),
            (Some(R::ImagesCached), R::ReleasedByTimeout, false),
            (Some(R::ReleasedByTimeout), R::ImagesCached, true),
            (Some(R::NothingToCache), R::ImagesCached, true),
            (Some(R::ImagesCached), R::ImagesCached, false),
        ] {
            assert_eq!(must_write(known, reason), expected, "{known:?} {reason:?}");
        }
    }

    #[test]
    fn so_many_writes_are_in_flight_and_the_next_node_takes_the_place_of_one_that_is_done() {
        use crate::ids::Index;
        let mut writes = GateWrites::default();
        let node = NodeIdx::from_index;
        assert!((0..MAX_WRITES).all(|index| writes.take(node(index), true)));
        for (index, holds) in [(100, true), (101, true), (102, false), (100, true)] {
            assert!(!writes.take(node(index), holds));
        }
        assert_eq!(writes.forget(node(101)), None);
        // A node that is released goes before one that is held.
        assert_eq!(writes.give_back(node(3)), Some(node(102)));
        assert!(writes.take(node(102), false));
        assert_eq!(writes.give_back(node(4)), Some(node(100)));
        assert_eq!(writes.give_back(node(5)), None);
    }
}
