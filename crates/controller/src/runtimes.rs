//! Which container runtime the kubelet of each node uses, as its Node says. A puller that uses another one would
//! fill a runtime from which no pod starts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use kubefledged_engine::NodeName;

/// Runtimes that call themselves in CRI as the kubelet calls them.
const KNOWN: [&str; 3] = ["containerd", "cri-o", "docker"];

/// The kubelets' runtimes by node. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct KubeletRuntimes(Arc<Mutex<BTreeMap<NodeName, &'static str>>>);

impl KubeletRuntimes {
    /// Notes `status.nodeInfo.containerRuntimeVersion` of a node, such as `containerd://2.2.9`. Only the name counts:
    /// the version changes before the kubelet says so.
    pub fn note(&self, node: &NodeName, version: &str) {
        let name = version.split("://").next().unwrap_or_default();
        let known = KNOWN.into_iter().find(|known| *known == name);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(known) => all.insert(node.clone(), known),
            None => all.remove(node),
        };
    }

    /// Forgets a node.
    pub fn forget(&self, node: &NodeName) {
        self.note(node, "");
    }

    /// The kubelet's runtime, if the puller of the node uses another one.
    pub fn other_than(&self, node: &NodeName, pullers: &str) -> Option<&'static str> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kubelets = *all.get(node)?;
        (KNOWN.contains(&pullers) && pullers != kubelets).then_some(kubelets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_runtime_than_the_kubelets_is_told_and_another_version_is_not() {
        let runtimes = KubeletRuntimes::default();
        let node = NodeName("n1".into());
        assert_eq!(runtimes.other_than(&node, "containerd"), None);
        runtimes.note(&node, "cri-o://1.34.0");
        assert_eq!(runtimes.other_than(&node, "containerd"), Some("cri-o"));
        assert_eq!(runtimes.other_than(&node, "cri-o"), None);
        assert_eq!(runtimes.other_than(&node, "something else"), None);
        runtimes.note(&node, "simulated://1");
        assert_eq!(runtimes.other_than(&node, "containerd"), None);
    }
}
