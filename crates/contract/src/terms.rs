//! Which terms pullers are believed to have seen, and how fast the leader's term rises towards them. A single node
//! may lie, or be wrong. Pure: the controller and the simulation bring their own names of nodes and their own time.

use std::{collections::BTreeMap, ops::Add, time::Duration};

/// The highest term that is believed and written. The Lease counts to 2147483647; whatever says more than
/// this was edited by hand or is a lie, and counts as no term.
pub const HIGHEST_TERM: u64 = 2_000_000_000;
/// A term rises by so much at first because pullers claim a higher one, or because the Lease that we hold
/// says so.
pub const RISE: u64 = 1_000;
/// Before the second rise because pullers claim a higher term. Pause and step double with each rise up to
/// [`LONGEST_PAUSE`]: a Lease that was deleted is made up for within minutes, and two nodes that agree on
/// a lie make the leader begin anew once an hour.
pub const RISE_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause between two rises.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// After so long without a rise the pause and the step are the first ones again.
const CALM: Duration = Duration::from_secs(24 * 3600);
/// How long the claim of a puller counts. It refuses calls meanwhile, and is called more often.
pub const CLAIM_AGE: Duration = Duration::from_secs(600);
/// How long it counts that a puller had seen no higher term, however seldom nodes are checked.
const CONTENT_AGE: Duration = Duration::from_secs(24 * 3600);

/// The term, or 0 where it is above [`HIGHEST_TERM`].
pub fn sane(term: u64) -> u64 {
    if term <= HIGHEST_TERM { term } else { 0 }
}

/// What the pullers of nodes `N` said of terms, at times `T`.
#[derive(Debug)]
pub struct Claims<N, T> {
    /// Nodes whose puller has seen a term above ours.
    above: BTreeMap<N, (u64, T)>,
    /// The last two nodes whose puller had seen no later term.
    content: [Option<(N, T)>; 2],
}

impl<N, T> Default for Claims<N, T> {
    fn default() -> Self {
        Self {
            above: BTreeMap::new(),
            content: [None, None],
        }
    }
}

impl<N, T> Claims<N, T>
where
    N: Clone + Ord,
    T: Add<Duration, Output = T> + Copy + PartialOrd,
{
    /// The puller of this node has seen `claimed` in a call of `term`. The term to lead above, where
    /// that is believed now: two nodes claim it, or a single one where no other answers.
    pub fn heard(&mut self, node: &N, claimed: u64, term: u64, now: T) -> Option<u64> {
        if claimed <= term {
            self.above.remove(node);
            let [first, second] = &mut self.content;
            let known = first.as_ref().is_some_and(|(known, _)| known == node);
            if !known {
                *second = first.take();
            }
            *first = Some((node.clone(), now));
            return None;
        }
        if claimed <= HIGHEST_TERM {
            self.above.insert(node.clone(), (claimed, now));
        }
        self.believed(now).filter(|believed| *believed > term)
    }

    fn believed(&mut self, now: T) -> Option<u64> {
        self.above.retain(|_, (_, at)| now < *at + CLAIM_AGE);
        let mut terms: Vec<u64> = self.above.values().map(|(term, _)| *term).collect();
        terms.sort_unstable();
        match &terms[..] {
            [] => None,
            [only] => {
                let mut content = self.content.iter().flatten();
                let other = content
                    .any(|(node, at)| now < *at + CONTENT_AGE && !self.above.contains_key(node));
                (!other).then_some(*only)
            }
            [.., second, _] => Some(*second),
        }
    }
}

/// Lets the term rise towards what pullers claim: by [`RISE`] at most and then not for [`RISE_PAUSE`], both
/// doubled with each further rise.
#[derive(Clone, Copy, Debug)]
pub struct Rises<T> {
    /// The last one, and for how long there is no other one.
    last: Option<(T, Duration)>,
}

impl<T> Default for Rises<T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<T> Rises<T>
where
    T: Add<Duration, Output = T> + Copy + PartialOrd,
{
    /// The highest term to lead above: `base`, or more where pullers `claim` more and it is time.
    pub fn towards(&self, claim: u64, base: u64, now: T) -> u64 {
        let claim = sane(claim);
        let early = self.last.is_some_and(|(at, pause)| now < at + pause);
        if claim <= base || early {
            return base;
        }
        let steps = self.next_pause(now).as_secs() / RISE_PAUSE.as_secs();
        claim.min(base + RISE * steps)
    }

    /// Notes that somebody leads in a term that rose so.
    pub fn rose(&mut self, now: T) {
        self.last = Some((now, self.next_pause(now)));
    }

    fn next_pause(&self, now: T) -> Duration {
        let last = self.last.filter(|(at, _)| now < *at + CALM);
        last.map_or(RISE_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type OfNodes = Claims<&'static str, Duration>;

    const NOW: Duration = Duration::from_secs(3600);

    #[test]
    fn one_puller_among_others_is_not_believed_and_two_are_in_what_both_claim() {
        let mut claims = OfNodes::default();
        assert_eq!(claims.heard(&"calm", 3, 3, NOW), None);
        for claimed in [4, 5, 2_147_483_646] {
            assert_eq!(claims.heard(&"rogue", claimed, 3, NOW), None);
        }
        assert_eq!(claims.heard(&"other", 9, 3, NOW), Some(5));
        assert_eq!(claims.heard(&"third", 9, 5, NOW), Some(9));
    }

    #[test]
    fn the_only_puller_that_answers_is_believed() {
        let mut claims = OfNodes::default();
        assert_eq!(claims.heard(&"only", 1, 1, NOW), None);
        assert_eq!(claims.heard(&"only", 7, 1, NOW), Some(7));
    }

    #[test]
    fn a_claim_of_long_ago_does_not_count() {
        let mut claims = OfNodes::default();
        assert_eq!(claims.heard(&"calm", 3, 3, NOW), None);
        assert_eq!(claims.heard(&"a", 9, 3, NOW), None);
        let later = NOW + CLAIM_AGE;
        assert_eq!(claims.heard(&"b", 9, 3, later), None, "a is forgotten");
    }

    #[test]
    fn one_puller_is_not_believed_because_the_others_are_checked_seldom() {
        let mut claims = OfNodes::default();
        assert_eq!(claims.heard(&"calm", 3, 3, NOW), None);
        let next = NOW + 6 * CLAIM_AGE;
        assert_eq!(claims.heard(&"rogue", 9, 3, next), None);
        let gone = NOW + CONTENT_AGE;
        assert_eq!(claims.heard(&"only", 9, 3, gone), Some(9));
    }

    #[test]
    fn a_puller_that_no_longer_claims_it_does_not_count() {
        let mut claims = OfNodes::default();
        assert_eq!(claims.heard(&"c", 3, 3, NOW), None);
        assert_eq!(claims.heard(&"a", 9, 3, NOW), None);
        assert_eq!(claims.heard(&"a", 3, 3, NOW), None);
        assert_eq!(claims.heard(&"b", 9, 3, NOW), None);
    }

    #[test]
    fn pullers_raise_the_term_by_a_bounded_step_and_after_a_pause() {
        let mut rises = Rises::default();
        assert_eq!(rises.towards(7, 3, NOW), 7);
        assert_eq!(rises.towards(500_000, 3, NOW), 3 + RISE);
        assert_eq!(rises.towards(u64::MAX, 3, NOW), 3, "it cannot be");
        rises.rose(NOW);
        assert_eq!(rises.towards(7, 3, NOW + RISE_PAUSE / 2), 3);
        assert_eq!(rises.towards(7, 3, NOW + RISE_PAUSE), 7);
    }

    #[test]
    fn pullers_that_agree_on_a_lie_make_a_leader_begin_anew_once_an_hour_at_most() {
        let (mut rises, mut term, mut begun) = (Rises::default(), 3, 0);
        let day = 24 * 60;
        for minute in 0..day {
            let now = NOW + RISE_PAUSE * minute;
            let next = rises.towards(HIGHEST_TERM, term, now);
            if next > term {
                (term, begun) = (next, begun + 1);
                rises.rose(now);
            }
        }
        assert!(begun <= 24 + 6, "{begun}");
        assert!(term <= RISE * u64::from(day) * 2, "{term}");
        let calm = NOW + RISE_PAUSE * day + CALM;
        let next = rises.towards(HIGHEST_TERM, term, calm);
        assert_eq!(next, term + RISE, "it begins anew with small steps");
    }
}
