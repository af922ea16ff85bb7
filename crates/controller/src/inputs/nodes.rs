//! Watches Nodes and reads only a part of them. A Node has 10 to 15 KiB, most of it images and addresses,
//! which change with every heartbeat. An event is sent only if a fact changed that decisions need.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use kubefledged_api_types::{Timestamp, names::IMAGES_CACHED_CONDITION};
use kubefledged_engine::{Event, NodeCondition, NodeFacts, NodeName, Taint};
use serde::Deserialize;

use super::{Input, lean};
use crate::runtimes::KubeletRuntimes;

/// The part of a Node that is read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Node)]
pub struct LeanNode {
    #[serde(deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: LeanSpec,
    #[serde(default)]
    status: LeanStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LeanSpec {
    unschedulable: bool,
    taints: Vec<LeanTaint>,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanTaint {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    effect: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeanStatus {
    conditions: Vec<LeanCondition>,
    node_info: LeanInfo,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeanInfo {
    container_runtime_version: String,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(default)]
    reason: String,
}

/// Converts Nodes to events. Keeps the facts that were sent last.
#[derive(Debug, Default)]
pub struct Nodes {
    sent: BTreeMap<NodeName, NodeFacts>,
    kubelets: KubeletRuntimes,
}

impl Nodes {
    /// It notes the kubelets' runtimes here.
    pub fn new(kubelets: KubeletRuntimes) -> Self {
        let sent = BTreeMap::new();
        Self { sent, kubelets }
    }
}

impl Input for Nodes {
    type Object = LeanNode;
    type Key = NodeName;

    fn key(&self, object: &LeanNode) -> Option<NodeName> {
        Some(NodeName(object.metadata.name.as_deref()?.into()))
    }

    fn applied(&mut self, object: LeanNode, events: &mut Vec<Event>) {
        let Some(name) = self.key(&object) else {
            return;
        };
        let runtime = &object.status.node_info.container_runtime_version;
        self.kubelets.note(&name, runtime);
        let facts = facts(object);
        if self.sent.get(&name) != Some(&facts) {
            self.sent.insert(name.clone(), facts.clone());
            events.push(Event::NodeApplied(name, facts));
        }
    }

    fn deleted(&mut self, key: &NodeName, events: &mut Vec<Event>) {
        self.sent.remove(key);
        self.kubelets.forget(key);
        events.push(Event::NodeDeleted(key.clone()));
    }
}

fn facts(node: LeanNode) -> NodeFacts {
    let conditions = node.status.conditions;
    let ready = |c: &LeanCondition| c.type_ == "Ready" && c.status == "True";
    let created = node.metadata.creation_timestamp;
    NodeFacts {
        ready: conditions.iter().any(ready),
        unschedulable: node.spec.unschedulable,
        taints: node
            .spec
            .taints
            .into_iter()
            .map(|LeanTaint { key, value, effect }| Taint { key, value, effect })
            .collect(),
        labels: node.metadata.labels.unwrap_or_default(),
        uid: node.metadata.uid.unwrap_or_default(),
        created: created.map(|created| Timestamp(created.0.as_second())),
        images_cached: conditions
            .into_iter()
            .find(|c| c.type_ == IMAGES_CACHED_CONDITION)
            .map(|LeanCondition { status, reason, .. }| NodeCondition { status, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, heartbeat: &str) -> LeanNode {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "labels": {"tier": "backend"}},
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
            "status": {
                "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}],
                "images": [{"names": ["x"], "sizeBytes": 1}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_tells_which_one_it_is_how_old_it_is_and_what_our_condition_says() {
        let node: LeanNode = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "uid": "u1", "creationTimestamp": "2023-11-14T22:13:20Z"},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
                {"type": "kubefledged.io/ImagesCached", "status": "False", "reason": "Pulling"},
            ]},
        }))
        .unwrap();
        let facts = facts(node);
        assert_eq!((facts.ready, &*facts.uid), (true, "u1"));
        assert_eq!(facts.created, Some(Timestamp(1_700_000_000)));
        let condition = facts.images_cached.unwrap();
        assert_eq!(
            (&*condition.status, &*condition.reason),
            ("False", "Pulling")
        );
    }

    #[test]
    fn a_heartbeat_tells_nothing_and_a_changed_fact_does() {
        let mut nodes = Nodes::default();
        let mut events = Vec::new();
        nodes.applied(node("True", "1"), &mut events);
        assert_eq!(events.len(), 1);
        nodes.applied(node("True", "2"), &mut events);
        assert_eq!(events.len(), 1);
        nodes.applied(node("Unknown", "2"), &mut events);
        assert!(
            matches!(&events[1], Event::NodeApplied(_, facts) if !facts.ready && facts.taints[0].key == "a")
        );
    }
}
