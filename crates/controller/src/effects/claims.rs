//! Terms that pullers claim to have seen. A single node may lie, or be wrong: more than one must claim
//! a term before it is believed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kubefledged_engine::NodeName;
use kubefledged_process::log::Pace;
use tokio::time::Instant;

use crate::lease::HIGHEST_TERM;

/// How long what a puller said counts. Every node is looked at more often, by default.
const FRESH: Duration = Duration::from_secs(600);
/// Between two log lines about claims that are not believed.
const QUIET: Duration = Duration::from_secs(60);

/// What pullers said of terms.
#[derive(Debug)]
pub struct Claims {
    said: Mutex<Said>,
    pace: Pace,
}

#[derive(Debug, Default)]
struct Said {
    /// Nodes whose puller has seen a term above ours.
    above: BTreeMap<NodeName, (u64, Instant)>,
    /// The last two nodes whose puller had seen no later term.
    content: [Option<(NodeName, Instant)>; 2],
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            pace: Pace::new(1, QUIET),
        }
    }
}

impl Claims {
    /// The puller of this node has seen `claimed` in a call of `term`. The term to lead above, where
    /// that is believed now: two nodes claim it, or a single one where no other answers.
    pub fn heard(&self, node: &NodeName, claimed: u64, term: u64, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed <= term {
            said.above.remove(node);
            let [first, second] = &mut said.content;
            let known = first.as_ref().is_some_and(|(known, _)| known == node);
            if !known {
                *second = first.take();
            }
            *first = Some((node.clone(), now));
            return None;
        }
        if claimed <= HIGHEST_TERM {
            said.above.insert(node.clone(), (claimed, now));
        }
        let believed = said.believed(now).filter(|believed| *believed > term);
        if believed.is_none()
            && let Some(unlogged) = self.pace.due(now)
        {
            let node = &*node.0;
            tracing::warn!(
                node,
                claimed,
                term,
                unlogged,
                "a puller claims to have seen a later leader and no other does: it is not believed; if it \
                 refuses work, delete its pod"
            );
        }
        believed
    }
}

impl Said {
    fn believed(&mut self, now: Instant) -> Option<u64> {
        let fresh = |at: Instant| now.duration_since(at) < FRESH;
        self.above.retain(|_, (_, at)| fresh(*at));
        let mut terms: Vec<u64> = self.above.values().map(|(term, _)| *term).collect();
        terms.sort_unstable();
        match &terms[..] {
            [] => None,
            [only] => {
                let claims = |node: &NodeName| self.above.contains_key(node);
                let mut content = self.content.iter().flatten();
                let other = content.any(|(node, at)| fresh(*at) && !claims(node));
                (!other).then_some(*only)
            }
            [.., second, _] => Some(*second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn one_puller_among_others_is_not_believed_and_two_are_in_what_both_claim() {
        let claims = Claims::default();
        let now = Instant::now();
        assert_eq!(claims.heard(&node("calm"), 3, 3, now), None);
        for claimed in [4, 5, 2_147_483_646] {
            assert_eq!(claims.heard(&node("rogue"), claimed, 3, now), None);
        }
        assert_eq!(claims.heard(&node("other"), 9, 3, now), Some(5));
        assert_eq!(claims.heard(&node("third"), 9, 5, now), Some(9));
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_puller_that_answers_is_believed() {
        let claims = Claims::default();
        let now = Instant::now();
        assert_eq!(claims.heard(&node("only"), 1, 1, now), None);
        assert_eq!(claims.heard(&node("only"), 7, 1, now), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_long_ago_does_not_count() {
        let claims = Claims::default();
        let now = Instant::now();
        assert_eq!(claims.heard(&node("calm"), 3, 3, now), None);
        assert_eq!(claims.heard(&node("a"), 9, 3, now), None);
        assert_eq!(claims.heard(&node("calm"), 3, 3, now + FRESH / 2), None);
        let later = now + FRESH;
        assert_eq!(
            claims.heard(&node("b"), 9, 3, later),
            None,
            "a is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_puller_that_no_longer_claims_it_does_not_count() {
        let claims = Claims::default();
        let now = Instant::now();
        assert_eq!(claims.heard(&node("c"), 3, 3, now), None);
        assert_eq!(claims.heard(&node("a"), 9, 3, now), None);
        assert_eq!(claims.heard(&node("a"), 3, 3, now), None);
        assert_eq!(claims.heard(&node("b"), 9, 3, now), None);
    }
}
