//! When a node has become warm, and when it cannot: told on the turn, never again while it stays so.

use std::time::Duration;

use crate::{
    Command, Engine, NodeTurn, Now, Tick,
    cell::{Cell, CellState},
    node::NodeIdx,
};

/// Nodes that people are told of at once. A wave that fails everywhere is the `ImageCache`'s to tell.
const MOST: u32 = 20;
/// One more is told after so long.
const PAUSE: Duration = Duration::from_secs(3);

/// How a node stands with all caches together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Nobody has looked since this leader began.
    #[default]
    New,
    /// It gets no images.
    Out,
    /// It misses some.
    Cold,
    /// It holds all that is wanted there.
    Warm,
    /// It misses some that could not be pulled.
    Stuck,
}

/// How many more turns are told.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    since: Tick,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: MOST,
            since: Tick(0),
        }
    }
}

impl Budget {
    fn take(&mut self, now: Tick) -> bool {
        while self.left < MOST && self.since.after(PAUSE) <= now {
            self.left += 1;
            self.since = self.since.after(PAUSE);
        }
        if self.left == MOST {
            self.since = now;
        }
        let told = self.left > 0;
        self.left = self.left.saturating_sub(1);
        told
    }
}

impl Engine {
    /// Call it when the node was assessed anew.
    pub(crate) fn node_turned(&mut self, idx: NodeIdx, now: Now) {
        let node = &self.nodes[idx];
        let (before, joined) = (node.mood, node.joined > 0);
        let mood = self.mood(idx);
        if mood == before {
            return;
        }
        let node = &mut self.nodes[idx];
        node.mood = mood;
        match (before, mood) {
            (_, Mood::New | Mood::Out) => node.cold_since = None,
            (Mood::Out, _) => node.cold_since = Some(now.tick),
            (Mood::New, _) if joined => node.cold_since = Some(now.tick),
            _ => {}
        }
        let Some(name) = node.name.clone() else {
            return;
        };
        let turn = match mood {
            Mood::Warm => {
                let since = node.cold_since.take();
                let after = since.map(|since| Duration::from_millis(now.tick.0 - since.0));
                if after.is_none() && before != Mood::Stuck {
                    return;
                }
                NodeTurn::Warm { after }
            }
            Mood::Stuck => match self.stuck(idx, now) {
                Some(turn) => turn,
                None => return,
            },
            _ => return,
        };
        self.outbox.push(Command::NodeTurned {
            node: name,
            turn,
            tell: self.node_turns.take(now.tick),
        });
    }

    fn mood(&self, idx: NodeIdx) -> Mood {
        if self.nodes[idx].eligibility().is_err() {
            return Mood::Out;
        }
        let cells = || self.caches.values().map(|cache| &cache.cells[idx]);
        let is = |state| move |cell: &Cell| cell.state == state;
        if cells().any(is(CellState::Failed)) {
            return Mood::Stuck;
        }
        let wanting = cells().filter(|cell| cell.state != CellState::Out);
        match wanting
            .map(|cell| cell.state == CellState::Ready)
            .reduce(|a, b| a && b)
        {
            Some(true) => Mood::Warm,
            Some(false) => Mood::Cold,
            // Nothing is wanted: there is nothing to tell.
            None => self.nodes[idx].mood,
        }
    }

    fn stuck(&self, idx: NodeIdx, now: Now) -> Option<NodeTurn> {
        let scene = self.scene(idx);
        let failed = |at| {
            let pairs = self.pairs(at, idx, &scene, now);
            pairs.filter(|pair| pair.state == CellState::Failed)
        };
        let caches = self.cache_index.iter();
        let mut rows = caches.flat_map(|(key, at)| failed(*at).map(move |pair| (key, pair)));
        let (cache, first) = rows.next()?;
        let (reason, message) = first.failure?;
        Some(NodeTurn::Stuck {
            cache: cache.clone(),
            image: first.reference,
            reason,
            message,
            more: rows.count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_turns_at_once_is_told_of_by_a_few_nodes() {
        let mut budget = Budget::default();
        let told = (0..5000).filter(|_| budget.take(Tick(1000))).count();
        assert_eq!(told, 20);
        assert!(!budget.take(Tick(3999)) && budget.take(Tick(4000)));
        assert!(!budget.take(Tick(4001)));
        let told = (0..5000).filter(|_| budget.take(Tick(1_000_000))).count();
        assert_eq!(told, 20);
    }
}
