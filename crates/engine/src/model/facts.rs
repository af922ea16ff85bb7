//! The facts of a Node that decisions depend on, kept small, and whether the node is eligible.

use std::sync::Arc;

use kubefledged_api_types::names::{EXCLUDE_LABEL, HOSTNAME_LABEL};

use super::{gate::GateFacts, texts::Texts};
use crate::vocabulary::{Ineligible, NodeFacts, Taint, Tick};

/// The kubelet sets it while the node's disk is nearly full.
const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// Taints of nodes that will go soon or have no room for anything more.
const BARRING_TAINTS: [&str; 8] = [
    DISK_PRESSURE,
    "node.kubernetes.io/out-of-service",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// Taints that the `DaemonSet` controller lets every pod tolerate
/// (kubernetes.io/docs/concepts/workloads/controllers/daemonset).
const TOLERATED_TAINTS: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    DISK_PRESSURE,
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/network-unavailable",
];

/// Whether the pullers' `DaemonSet` makes a pod for a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePlacement {
    /// It does, or that is not known.
    #[default]
    Selected,
    /// It does not tolerate a taint, which may go.
    NotTolerated,
    /// It does not select the node.
    NotSelected,
}

impl NodePlacement {
    /// Does it make a pod?
    pub fn is_selected(self) -> bool {
        self == Self::Selected
    }
}

/// The facts of one Node. A text that stands on many nodes is kept once.
#[derive(Debug)]
pub struct Facts {
    labels: Box<[(Arc<str>, Arc<str>)]>,
    /// Taints that keep pods away, but for those that every pod of a `DaemonSet` tolerates.
    pub taints: Box<[Taint]>,
    /// The kubelet says that the disk is full, and may already remove images and pods.
    pub disk_pressure: bool,
    /// Whether the node may get images, if it gets a puller.
    pub eligible: Result<(), Ineligible>,
    /// Whether a puller could run there. Removals stay pending for such a node while it does not answer.
    pub runs_puller: bool,
    /// What the pullers' `DaemonSet` says of it.
    pub placement: NodePlacement,
    /// What the Node says of its gate.
    pub gate: GateFacts,
    /// Since when the node is unfit for a moment; `None`: it is eligible, or barred for good.
    pub unfit_since: Option<Tick>,
}

impl Facts {
    /// Keeps the labels and decides about eligibility. `before`: facts of the same node until now. Its labels rarely change.
    pub fn new(facts: NodeFacts, before: Option<&Self>, texts: &mut Texts) -> Self {
        let eligible = eligibility(&facts);
        let runs_puller = linux_kubelet(&facts).is_ok();
        let known = before.map_or(&[][..], |before| &before.labels);
        let mut share = |known: Option<&Arc<str>>, text: &str| match known {
            Some(known) if **known == *text => known.clone(),
            _ => texts.share(text),
        };
        let labels = facts.labels.iter().enumerate().map(|(at, (key, value))| {
            let known = known.get(at);
            let key = share(known.map(|(key, _)| key), key);
            (key, share(known.map(|(_, value)| value), value))
        });
        Self {
            labels: labels.collect(),
            disk_pressure: facts.taints.iter().any(|taint| taint.key == DISK_PRESSURE),
            taints: facts.taints.into_iter().filter(keeps_pods_away).collect(),
            eligible,
            runs_puller,
            placement: NodePlacement::default(),
            gate: GateFacts::default(),
            unfit_since: None,
        }
    }

    /// Notes since when the node is unfit for a moment. `before`: facts of the same node until now.
    pub fn continue_from(&mut self, before: Option<&Self>, now: Tick) {
        let since = before.and_then(|before| before.unfit_since);
        self.unfit_since = self.is_unfit().then(|| since.unwrap_or(now));
    }

    /// Is the node unfit for a moment? It is not ready, or a taint says that it is in trouble or about to go. A
    /// person's decision, such as a cordon, is none of that.
    fn is_unfit(&self) -> bool {
        matches!(
            self.eligible,
            Err(Ineligible::NotReady | Ineligible::Tainted)
        )
    }

    /// Could the node become eligible without another label or another operating system?
    pub fn is_candidate(&self) -> bool {
        self.eligible.is_ok() || self.is_unfit() || self.eligible == Err(Ineligible::Cordoned)
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self
            .labels
            .binary_search_by(|(known, _)| (**known).cmp(key));
        at.ok().map(|at| &*self.labels[at].1)
    }

    /// Value of a label, to be kept; empty without it.
    pub fn shared_label(&self, key: &str) -> Arc<str> {
        let at = self
            .labels
            .binary_search_by(|(known, _)| (**known).cmp(key));
        at.map_or_else(|_| Arc::from(""), |at| self.labels[at].1.clone())
    }

    /// Value of the label `kubernetes.io/hostname`, which `status.failures` shows.
    pub fn hostname(&self) -> Option<&str> {
        self.label(HOSTNAME_LABEL)
    }
}

fn keeps_pods_away(taint: &Taint) -> bool {
    let hard = matches!(&*taint.effect, "NoSchedule" | "NoExecute");
    hard && !TOLERATED_TAINTS.contains(&&*taint.key)
}

/// Every decision about eligibility ends here.
fn eligibility(facts: &NodeFacts) -> Result<(), Ineligible> {
    linux_kubelet(facts)?;
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
        .any(|taint| BARRING_TAINTS.contains(&&*taint.key))
    {
        return Err(Ineligible::Tainted);
    }
    Ok(())
}

/// Is it a Linux node with a kubelet of its own?
fn linux_kubelet(facts: &NodeFacts) -> Result<(), Ineligible> {
    let label = |name: &str| facts.labels.get(name).map(String::as_str);
    if matches!(label("type"), Some("virtual-kubelet" | "kwok"))
        || label("liqo.io/type") == Some("virtual-node")
        || label("eks.amazonaws.com/compute-type") == Some("fargate")
    {
        return Err(Ineligible::Virtual);
    }
    if label("kubernetes.io/os").is_some_and(|os| os != "linux") {
        return Err(Ineligible::OtherSystem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_key(key: &str) -> Taint {
        Taint {
            key: key.to_owned(),
            ..Taint::default()
        }
    }

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
        Facts::new(facts, None, &mut Texts::default()).eligible
    }

    #[test]
    fn a_ready_linux_node_is_eligible_and_every_other_node_has_a_reason() {
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
    fn taints_of_disk_pressure_shutdown_and_autoscalers_make_a_node_ineligible() {
        for taint in BARRING_TAINTS {
            let barred = of(&[], |facts| facts.taints = vec![of_key(taint)]);
            assert_eq!(barred, Err(Ineligible::Tainted), "{taint}");
        }
        let other = ["dedicated", "node-role.kubernetes.io/control-plane"];
        assert_eq!(of(&[], |f| f.taints = other.map(of_key).to_vec()), Ok(()));
    }
}
