//! Lists that the calls to many nodes have in common: those that were used last are kept once, however many calls wait for their
//! turn.

use std::{collections::VecDeque, sync::Arc};

/// Lists that are compared with the next one. Nodes that are asked for the same come one after the other.
const RECENT: usize = 8;

/// The last lists, the one that was used last first.
#[derive(Debug)]
pub struct Lists<T> {
    recent: VecDeque<Arc<[T]>>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self {
            recent: VecDeque::new(),
        }
    }
}

impl<T: Eq> Lists<T> {
    /// The list; the same memory for the same list.
    pub fn share(&mut self, list: Vec<T>) -> Arc<[T]> {
        let known = self.recent.iter().position(|known| **known == *list);
        let known = known.and_then(|at| self.recent.remove(at));
        let list = known.unwrap_or_else(|| list.into());
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(list.clone());
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lists_are_one_and_only_the_last_ones_are_kept() {
        let mut lists = Lists::default();
        let first = lists.share(vec![1, 2]);
        assert!(Arc::ptr_eq(&first, &lists.share(vec![1, 2])));
        assert_eq!(*lists.share(vec![1]), [1]);
        for other in 0..100 {
            lists.share(vec![other]);
            assert!(
                Arc::ptr_eq(&first, &lists.share(vec![1, 2])),
                "it is in use"
            );
        }
        for other in 0..100 {
            lists.share(vec![other]);
        }
        assert_eq!((lists.recent.len(), Arc::strong_count(&first)), (RECENT, 1));
    }
}
