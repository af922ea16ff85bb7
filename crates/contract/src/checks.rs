//! How many images a node is asked about in one call of a check: as many as it answers in time. Pure, like
//! [`terms`](crate::terms).

use std::{collections::BTreeMap, time::Duration};

/// Time limit of one piece of a check.
pub const PIECE_LIMIT: Duration = Duration::from_secs(15);
/// Time limit of a whole check: the engine counts a check of a minute as lost.
pub const CHECK_LIMIT: Duration = Duration::from_secs(50);
/// At first, and at most: the engine asks about so many at a time.
const MOST: usize = 512;
/// A late answer makes the next question smaller by so much.
const LESS: usize = 8;
/// An answer that is faster than this makes the next question twice as large.
const FAST: Duration = Duration::from_secs(3);

/// Sizes of the nodes that are asked about fewer images than [`MOST`].
#[derive(Debug)]
pub struct PieceSizes<N>(BTreeMap<N, usize>);

impl<N> Default for PieceSizes<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Clone + Ord> PieceSizes<N> {
    /// Images to ask about in the next call.
    pub fn of(&self, node: &N) -> usize {
        self.0.get(node).copied().unwrap_or(MOST)
    }

    /// A call about so many was not answered in time. False: it can be no smaller.
    pub fn late(&mut self, node: &N, asked: usize) -> bool {
        if asked <= 1 {
            return false;
        }
        self.0.insert(node.clone(), (asked / LESS).max(1));
        true
    }

    /// A call about so many was answered.
    pub fn answered(&mut self, node: &N, asked: usize, took: Duration) {
        if let Some(size) = self.0.get_mut(node)
            && took < FAST
            && asked >= *size
        {
            *size *= 2;
            if *size >= MOST {
                self.0.remove(node);
            }
        }
    }
}

/// Has a check that takes so long already time for another piece?
pub fn has_time(took: Duration) -> bool {
    took + PIECE_LIMIT <= CHECK_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_node_is_asked_about_less_until_it_is_fast_again() {
        let mut sizes = PieceSizes::default();
        let node = "n1";
        assert_eq!(sizes.of(&node), MOST);
        assert!(sizes.late(&node, 512));
        assert!(sizes.late(&node, 64));
        assert_eq!(sizes.of(&node), 8);
        sizes.answered(&node, 8, FAST * 2);
        assert_eq!(sizes.of(&node), 8, "it is as slow as before");
        sizes.answered(&node, 3, Duration::ZERO);
        assert_eq!(sizes.of(&node), 8, "less was asked than it can");
        for _ in 0..6 {
            let asked = sizes.of(&node);
            sizes.answered(&node, asked, Duration::ZERO);
        }
        assert_eq!(sizes.of(&node), MOST);
        assert!(sizes.0.is_empty());
        assert!(!sizes.late(&node, 1));
    }
}
