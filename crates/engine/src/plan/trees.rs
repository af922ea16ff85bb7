//! Who takes an image from whom. A node that has it serves a group of nodes that pass it on while they receive it.
//!
//! Layers are two stripes, even and odd ones, and each stripe has a binary tree of its own over the whole group. A node
//! has children in one of both trees only and is a leaf in the other: so no node sends more than twice half of an image
//! while it receives the whole of it, and all lines are in use in both directions (`SplitStream`, Castro and others,
//! 2003). With one tree for everything, half of the nodes would send twice what they receive, and the rest nothing.

use crate::ids::NodeIdx;

/// A node, and from whom it takes even and odd layers.
pub type Joined = (NodeIdx, [NodeIdx; 2]);

/// Divides the nodes that take an image among those that have it. No node gets more than two children.
pub fn trees(roots: &[NodeIdx], takers: &[NodeIdx]) -> Vec<Joined> {
    let mut joined = Vec::with_capacity(takers.len());
    for (at, root) in roots.iter().enumerate() {
        let from = at * takers.len() / roots.len();
        let to = (at + 1) * takers.len() / roots.len();
        join(*root, &takers[from..to], &mut joined);
    }
    joined
}

/// Both trees of one group.
fn join(root: NodeIdx, group: &[NodeIdx], joined: &mut Vec<Joined>) {
    let even = || group.iter().step_by(2).copied();
    let odd = || group.iter().skip(1).step_by(2).copied();
    // In each tree those who pass its stripe on come first: they are enough for all.
    let orders: [Vec<NodeIdx>; 2] = [even().chain(odd()).collect(), odd().chain(even()).collect()];
    let evens = group.len().div_ceil(2);
    for (at, node) in group.iter().enumerate() {
        let (half, evenly) = (at / 2, at % 2 == 0);
        let positions = if evenly {
            [half, group.len() - evens + half]
        } else {
            [evens + half, half]
        };
        let parent = |stripe: usize| match positions[stripe] {
            0 => root,
            position => orders[stripe][(position - 1) / 2],
        };
        joined.push((*node, [parent(0), parent(1)]));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ids::Index;

    fn nodes(range: std::ops::Range<usize>) -> Vec<NodeIdx> {
        range.map(NodeIdx::from_index).collect()
    }

    /// Children of each node, over both stripes.
    fn children(joined: &[Joined]) -> BTreeMap<NodeIdx, usize> {
        let mut children = BTreeMap::new();
        for parent in joined.iter().flat_map(|(_, parents)| parents) {
            *children.entry(*parent).or_default() += 1;
        }
        children
    }

    #[test]
    fn one_node_takes_everything_from_the_one_that_has_it() {
        let [root, node] = [7, 3].map(NodeIdx::from_index);
        assert_eq!(trees(&[root], &[node]), [(node, [root, root])]);
    }

    #[test]
    fn no_node_has_more_than_two_children_and_each_has_them_in_one_stripe() {
        for (roots, takers) in [(1, 2), (1, 3), (1, 7), (3, 64), (2, 5), (5, 5), (1, 2600)] {
            let joined = trees(&nodes(0..roots), &nodes(roots..roots + takers));
            assert_eq!(joined.len(), takers);
            let most = children(&joined).into_values().max();
            assert_eq!(most, Some(2), "{takers} of {roots}");
            for node in nodes(roots..roots + takers) {
                let in_stripe = |stripe: usize| joined.iter().any(|(_, by)| by[stripe] == node);
                assert!(!(in_stripe(0) && in_stripe(1)), "{node:?} of {takers}");
            }
        }
    }

    #[test]
    fn every_stripe_reaches_every_node_in_few_steps() {
        let joined: BTreeMap<NodeIdx, [NodeIdx; 2]> =
            trees(&nodes(0..1), &nodes(1..2601)).into_iter().collect();
        for start in joined.keys() {
            for stripe in 0..2 {
                let (mut at, mut steps) = (*start, 0);
                while let Some(parents) = joined.get(&at) {
                    (at, steps) = (parents[stripe], steps + 1);
                    assert!(steps <= 12, "the depth of a binary tree over 2,600 nodes");
                }
                assert_eq!(at.index(), 0);
            }
        }
    }
}
