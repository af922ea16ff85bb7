//! What is due when nothing happens: one alarm per thing that waits.

use std::collections::{BTreeMap, BTreeSet};

use crate::{BatchId, Tick, cache::CacheIdx, node::NodeIdx, registry::RegistryId};

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// A node is planned again.
    Node(NodeIdx),
    /// A cache is looked at again.
    Cache(CacheIdx),
    /// A registry's budget has grown, and somebody waits for it.
    Registry(RegistryId),
    /// A batch was silent for so long that its pulls count as long.
    Long(BatchId),
    /// A batch has lost its effect.
    Lost(BatchId),
}

/// All alarms.
#[derive(Debug, Default)]
pub struct Alarms {
    queue: BTreeSet<(Tick, Alarm)>,
    set: BTreeMap<Alarm, Tick>,
}

impl Alarms {
    /// Sets an alarm anew, or takes it away.
    pub fn set(&mut self, alarm: Alarm, at: Option<Tick>) {
        let old = match at {
            Some(at) => self.set.insert(alarm, at),
            None => self.set.remove(&alarm),
        };
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.queue.remove(&(old, alarm));
        }
        if let Some(at) = at {
            self.queue.insert((at, alarm));
        }
    }

    /// When this one rings.
    pub fn at(&self, alarm: Alarm) -> Option<Tick> {
        self.set.get(&alarm).copied()
    }

    /// The next one that is due.
    pub fn due(&mut self, now: Tick) -> Option<Alarm> {
        let (at, alarm) = self.queue.first().copied()?;
        if at > now {
            return None;
        }
        self.set(alarm, None);
        Some(alarm)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Tick> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// None is left.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.set.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_set_again_rings_once_at_its_last_time_and_one_taken_away_never() {
        let mut alarms = Alarms::default();
        alarms.set(Alarm::Node(1), Some(Tick(5)));
        alarms.set(Alarm::Node(1), Some(Tick(9)));
        alarms.set(Alarm::Cache(1), Some(Tick(7)));
        alarms.set(Alarm::Cache(2), Some(Tick(1)));
        alarms.set(Alarm::Cache(2), None);
        assert_eq!(alarms.next(), Some(Tick(7)));
        assert_eq!(alarms.due(Tick(6)), None);
        assert_eq!(alarms.due(Tick(10)), Some(Alarm::Cache(1)));
        assert_eq!(alarms.due(Tick(10)), Some(Alarm::Node(1)));
        assert_eq!(alarms.due(Tick(10)), None);
        assert_eq!(alarms.next(), None);
    }
}
