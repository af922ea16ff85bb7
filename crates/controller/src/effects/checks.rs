//! How many images a node is asked about in one call: as many as it answers in time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubefledged_engine::NodeName;

/// At first, and at most: the engine asks about so many at a time.
const MOST: usize = 512;
/// A late answer makes the next question smaller by so much.
const LESS: usize = 8;
/// An answer that is faster than this makes the next question twice as large.
const FAST: Duration = Duration::from_secs(3);

/// Of the nodes that are asked about fewer images than [`MOST`].
#[derive(Debug, Default)]
pub struct Sizes(Mutex<HashMap<NodeName, usize>>);

impl Sizes {
    fn slow(&self) -> MutexGuard<'_, HashMap<NodeName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images to ask about in the next call.
    pub fn of(&self, node: &NodeName) -> usize {
        self.slow().get(node).copied().unwrap_or(MOST)
    }

    /// A call about so many was not answered in time. False: it can be no smaller.
    pub fn late(&self, node: &NodeName, asked: usize) -> bool {
        if asked <= 1 {
            return false;
        }
        self.slow().insert(node.clone(), (asked / LESS).max(1));
        true
    }

    /// A call about so many was answered.
    pub fn answered(&self, node: &NodeName, asked: usize, took: Duration) {
        let mut slow = self.slow();
        if let Some(size) = slow.get_mut(node)
            && took < FAST
            && asked >= *size
        {
            *size *= 2;
            if *size >= MOST {
                slow.remove(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_node_is_asked_about_less_until_it_is_fast_again() {
        let sizes = Sizes::default();
        let node = NodeName("n1".into());
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
        assert!(sizes.slow().is_empty());
        assert!(!sizes.late(&node, 1));
    }
}
