//! Timers: what is due although nothing happens. Each thing that waits has one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{CacheIdx, NodeIdx, RegistryId},
    model::peers::SwarmKey,
    vocabulary::{BatchId, Tick},
};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Plan a node again.
    Node(NodeIdx),
    /// Write to a Node object.
    Gate(NodeIdx),
    /// Decide about a cache again.
    Cache(CacheIdx),
    /// A registry's budget has grown, and nodes wait for it.
    Registry(RegistryId),
    /// A batch had no outcome for so long that its pulls count as long.
    Long(BatchId),
    /// A batch showed no sign of life for so long that it is lost.
    Lost(BatchId),
    /// Nodes that wait for an image have waited for long, or who fetches it for them makes no progress.
    Peers(SwarmKey),
}

/// All timers.
#[derive(Debug, Default)]
pub struct Timers {
    queue: BTreeSet<(Tick, Timer)>,
    set: BTreeMap<Timer, Tick>,
}

impl Timers {
    /// Sets a timer anew; `None` takes it away.
    pub fn set(&mut self, timer: Timer, at: Option<Tick>) {
        let old = match at {
            Some(at) => self.set.insert(timer, at),
            None => self.set.remove(&timer),
        };
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.queue.remove(&(old, timer));
        }
        if let Some(at) = at {
            self.queue.insert((at, timer));
        }
    }

    /// When this timer is due; `None`: it is not set.
    pub fn at(&self, timer: Timer) -> Option<Tick> {
        self.set.get(&timer).copied()
    }

    /// Takes the next timer that is due.
    pub fn due(&mut self, now: Tick) -> Option<Timer> {
        let (at, timer) = self.queue.first().copied()?;
        if at > now {
            return None;
        }
        self.set(timer, None);
        Some(timer)
    }

    /// When the next timer is due.
    pub fn next(&self) -> Option<Tick> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes all timers away.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.set.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Index;

    #[test]
    fn a_timer_set_again_is_due_once_at_its_last_time() {
        let mut timers = Timers::default();
        timers.set(Timer::Node(NodeIdx::from_index(1)), Some(Tick(5)));
        timers.set(Timer::Node(NodeIdx::from_index(1)), Some(Tick(9)));
        timers.set(Timer::Cache(CacheIdx::from_index(1)), Some(Tick(7)));
        timers.set(Timer::Cache(CacheIdx::from_index(2)), Some(Tick(1)));
        timers.set(Timer::Cache(CacheIdx::from_index(2)), None);
        assert_eq!(timers.next(), Some(Tick(7)));
        assert_eq!(timers.due(Tick(6)), None);
        assert_eq!(
            timers.due(Tick(10)),
            Some(Timer::Cache(CacheIdx::from_index(1)))
        );
        assert_eq!(
            timers.due(Tick(10)),
            Some(Timer::Node(NodeIdx::from_index(1)))
        );
        assert_eq!(timers.due(Tick(10)), None);
        assert_eq!(timers.next(), None);
    }
}
