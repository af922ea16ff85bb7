//! What a Node is, kept small, and whether it may get images.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    Timestamp,
    names::{EXCLUDE_LABEL, HOSTNAME_LABEL},
};

use crate::{NodeFacts, node::Stamp};

/// Taints of nodes that are about to go or must not get anything more.
const BARRING_TAINTS: [&str; 8] = [
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/out-of-service",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// Why a node gets no images now. It is neither awaited nor a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ineligible {
    /// There is a puller, but no such Node (yet).
    Unknown,
    /// Its label says so.
    Excluded,
    /// No kubelet of its own: a virtual node.
    Virtual,
    /// Not Linux.
    OtherSystem,
    /// Its Ready condition is not True.
    NotReady,
    /// Cordoned.
    Cordoned,
    /// Under disk pressure, shutting down or chosen for removal.
    Tainted,
}

/// The facts of one Node. Equal texts of all nodes are one text in memory.
#[derive(Debug)]
pub struct Facts {
    labels: Box<[(Arc<str>, Arc<str>)]>,
    /// May it get images?
    pub eligible: Result<(), Ineligible>,
    /// Could a puller run there at all? Such nodes owe removals while they do not answer.
    pub runs_puller: bool,
}

impl Facts {
    /// Keeps what decisions need.
    pub fn new(facts: NodeFacts, texts: &mut Texts) -> Self {
        let eligible = eligibility(&facts);
        let runs_puller = home(&facts).is_ok();
        let labels = facts.labels.into_iter();
        Self {
            labels: labels
                .map(|(k, v)| (texts.share(&k), texts.share(&v)))
                .collect(),
            eligible,
            runs_puller,
        }
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self
            .labels
            .binary_search_by(|(known, _)| (**known).cmp(key));
        at.ok().map(|at| &*self.labels[at].1)
    }

    /// As it stands in `status.failures`.
    pub fn hostname(&self) -> Option<&str> {
        self.label(HOSTNAME_LABEL)
    }
}

/// The one question that everything asks.
fn eligibility(facts: &NodeFacts) -> Result<(), Ineligible> {
    home(facts)?;
    if facts
        .labels
        .get(EXCLUDE_LABEL)
        .is_some_and(|v| v != "false")
    {
        return Err(Ineligible::Excluded);
    }
    if !facts.ready {
        return Err(Ineligible::NotReady);
    }
    if facts.unschedulable {
        return Err(Ineligible::Cordoned);
    }
    if facts
        .taints
        .iter()
        .any(|key| BARRING_TAINTS.contains(&&**key))
    {
        return Err(Ineligible::Tainted);
    }
    Ok(())
}

/// A Linux node with a kubelet of its own.
fn home(facts: &NodeFacts) -> Result<(), Ineligible> {
    let label = |name: &str| facts.labels.get(name).map(String::as_str);
    if label("type") == Some("virtual-kubelet")
        || label("eks.amazonaws.com/compute-type") == Some("fargate")
    {
        return Err(Ineligible::Virtual);
    }
    if label("kubernetes.io/os").is_some_and(|os| os != "linux") {
        return Err(Ineligible::OtherSystem);
    }
    Ok(())
}

/// Texts that stand on many nodes, each kept once. What no node has any more goes by and by:
/// autoscaled nodes come with new names all day.
#[derive(Debug, Default)]
pub struct Texts {
    known: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

impl Texts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(1024) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let text: Arc<str> = text.into();
        self.known.insert(text.clone());
        text
    }
}

/// When a batch with a given stamp began, to a sixty-fourth of the check interval.
#[derive(Debug, Default)]
pub struct Clock(VecDeque<(Stamp, Timestamp)>);

/// Many check intervals.
const MOST_MARKS: usize = 4096;

impl Clock {
    /// From this stamp on it is `now`.
    pub fn mark(&mut self, stamp: Stamp, now: Timestamp, check_interval: Duration) {
        let step = i64::try_from(check_interval.as_secs() / 64)
            .unwrap_or(0)
            .max(1);
        if self.0.back().is_some_and(|(_, last)| now.0 < last.0 + step) {
            return;
        }
        if self.0.len() == MOST_MARKS {
            self.0.pop_front();
        }
        self.0.push_back((stamp, now));
    }

    /// Not later than the stamp's batch began.
    pub fn at(&self, stamp: Stamp) -> Option<Timestamp> {
        let after = self.0.partition_point(|(known, _)| *known <= stamp);
        let mark = self.0.get(after.saturating_sub(1))?;
        Some(mark.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)], change: impl FnOnce(&mut NodeFacts)) -> Result<(), Ineligible> {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut facts = NodeFacts {
            labels: labels.collect(),
            ready: true,
            ..NodeFacts::default()
        };
        change(&mut facts);
        Facts::new(facts, &mut Texts::default()).eligible
    }

    #[test]
    fn a_ready_linux_node_is_eligible_and_everything_else_has_its_word() {
        assert_eq!(of(&[("kubernetes.io/os", "linux")], |_| {}), Ok(()));
        let excluded = Err(Ineligible::Excluded);
        assert_eq!(of(&[(EXCLUDE_LABEL, "true")], |_| {}), excluded);
        assert_eq!(of(&[(EXCLUDE_LABEL, "")], |_| {}), excluded);
        assert_eq!(of(&[(EXCLUDE_LABEL, "false")], |_| {}), Ok(()));
        assert_eq!(
            of(&[("type", "virtual-kubelet")], |_| {}),
            Err(Ineligible::Virtual)
        );
        let fargate = [("eks.amazonaws.com/compute-type", "fargate")];
        assert_eq!(of(&fargate, |_| {}), Err(Ineligible::Virtual));
        let windows = [("kubernetes.io/os", "windows")];
        assert_eq!(of(&windows, |_| {}), Err(Ineligible::OtherSystem));
        assert_eq!(of(&[], |f| f.ready = false), Err(Ineligible::NotReady));
        assert_eq!(
            of(&[], |f| f.unschedulable = true),
            Err(Ineligible::Cordoned)
        );
    }

    #[test]
    fn taints_of_disk_shutdown_and_autoscalers_bar_and_no_other_taint_does() {
        for taint in BARRING_TAINTS {
            let barred = of(&[], |facts| facts.taints = vec![taint.to_owned()]);
            assert_eq!(barred, Err(Ineligible::Tainted), "{taint}");
        }
        let other = ["dedicated", "node-role.kubernetes.io/control-plane"];
        assert_eq!(
            of(&[], |f| f.taints = other.map(str::to_owned).to_vec()),
            Ok(())
        );
    }

    #[test]
    fn texts_of_nodes_that_are_gone_do_not_stay() {
        let mut texts = Texts::default();
        for name in 0..10_000 {
            let labels = [("host".to_owned(), name.to_string())];
            let facts = NodeFacts {
                labels: labels.into(),
                ..NodeFacts::default()
            };
            drop(Facts::new(facts, &mut texts));
        }
        assert!(texts.known.len() < 2100, "{}", texts.known.len());
    }

    #[test]
    fn a_stamp_is_never_later_than_its_batch() {
        let mut clock = Clock::default();
        assert_eq!(clock.at(3), None);
        for stamp in 1..100 {
            clock.mark(
                stamp,
                Timestamp(i64::from(stamp) * 2),
                Duration::from_secs(640),
            );
        }
        assert_eq!(clock.at(1), Some(Timestamp(2)));
        assert_eq!(clock.at(5), Some(Timestamp(2)));
        assert_eq!(clock.at(6), Some(Timestamp(12)));
        assert_eq!(clock.at(99), Some(Timestamp(192)));
    }
}
