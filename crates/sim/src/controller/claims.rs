//! Terms that pullers claim to have seen, believed by the rule of the controller's `effects/claims.rs`: what
//! two nodes claim, or a single one where no other answers.

use std::collections::BTreeMap;

/// How long what a puller said counts, in ms.
const FRESH: u64 = 600_000;

/// What the pullers of nodes said of terms.
#[derive(Debug, Default)]
pub struct Claims {
    /// Nodes whose puller has seen a term above that of the call, and when it said so.
    above: BTreeMap<usize, (u64, u64)>,
    /// When a puller last said that it had seen no later term, by node.
    content: BTreeMap<usize, u64>,
}

impl Claims {
    /// The puller of this node has seen `claimed` in a call of `term`. Returns the term to lead above, if it
    /// is believed now.
    pub fn heard(&mut self, node: usize, claimed: u64, term: u64, now: u64) -> Option<u64> {
        if claimed <= term {
            self.above.remove(&node);
            self.content.insert(node, now);
            return None;
        }
        self.above.insert(node, (claimed, now));
        self.believed(now).filter(|believed| *believed > term)
    }

    fn believed(&mut self, now: u64) -> Option<u64> {
        let fresh = |at: u64| now.saturating_sub(at) < FRESH;
        self.above.retain(|_, (_, at)| fresh(*at));
        let mut terms: Vec<u64> = self.above.values().map(|(term, _)| *term).collect();
        terms.sort_unstable();
        match &terms[..] {
            [] => None,
            [only] => {
                let claims = |node: &usize| self.above.contains_key(node);
                let mut content = self.content.iter();
                let other = content.any(|(node, at)| fresh(*at) && !claims(node));
                (!other).then_some(*only)
            }
            [.., second, _] => Some(*second),
        }
    }

    /// Did any puller but that of this node answer lately?
    pub fn others_answer(&self, node: usize, now: u64) -> bool {
        let above = self.above.iter().map(|(node, (_, at))| (node, at));
        let mut heard = above.chain(&self.content);
        heard.any(|(other, at)| *other != node && now.saturating_sub(*at) < FRESH)
    }
}
