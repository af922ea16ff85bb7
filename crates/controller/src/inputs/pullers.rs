//! Finds the pullers in the `EndpointSlices` of their headless Service. During a rollout a node may have two
//! pods, and an endpoint may be in two slices. They are merged by the pod's UID, and only changes are sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{
    api::discovery::v1::EndpointSlice, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use kubefledged_engine::{Event, NodeName, Puller};
use serde::Deserialize;

use super::{Input, lean};

/// The part of an `EndpointSlice` that is read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = EndpointSlice)]
pub struct LeanSlice {
    #[serde(deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    endpoints: Option<Vec<LeanEndpoint>>,
    ports: Option<Vec<LeanPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanEndpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: LeanConditions,
    node_name: Option<String>,
    target_ref: Option<LeanTarget>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LeanConditions {
    ready: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanTarget {
    uid: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanPort {
    name: Option<String>,
    port: Option<u16>,
}

/// Converts `EndpointSlices` to events. Keeps ready pullers by slice and by node, and the puller that was
/// sent for each node.
#[derive(Debug, Default)]
pub struct Pullers {
    slices: BTreeMap<Arc<str>, BTreeSet<NodeName>>,
    nodes: BTreeMap<NodeName, Known>,
}

/// The pullers of a node.
#[derive(Debug, Default)]
struct Known {
    ready: Vec<(Arc<str>, Puller)>,
    sent: Option<Puller>,
}

impl Input for Pullers {
    type Object = LeanSlice;
    type Key = Arc<str>;

    fn key(&self, object: &LeanSlice) -> Option<Arc<str>> {
        object.metadata.name.as_deref().map(Arc::from)
    }

    fn applied(&mut self, object: LeanSlice, events: &mut Vec<Event>) {
        if let Some(slice) = self.key(&object) {
            self.replace(&slice, ready(object), events);
        }
    }

    fn deleted(&mut self, key: &Arc<str>, events: &mut Vec<Event>) {
        self.replace(key, Vec::new(), events);
        self.slices.remove(key);
    }
}

impl Pullers {
    /// Updates only the nodes of this slice, because thousands of slices change while thousands of pullers are
    /// replaced.
    fn replace(&mut self, slice: &Arc<str>, now: Vec<(NodeName, Puller)>, events: &mut Vec<Event>) {
        let nodes: BTreeSet<NodeName> = now.iter().map(|(node, _)| node.clone()).collect();
        let before = self.slices.insert(slice.clone(), nodes.clone());
        let touched: BTreeSet<NodeName> = before.into_iter().flatten().chain(nodes).collect();
        for node in &touched {
            if let Some(known) = self.nodes.get_mut(node) {
                known.ready.retain(|(other, _)| other != slice);
            }
        }
        for (node, puller) in now {
            let known = self.nodes.entry(node).or_default();
            known.ready.push((slice.clone(), puller));
        }
        for node in touched {
            let Some(known) = self.nodes.get_mut(&node) else {
                continue;
            };
            let chosen = known.choose();
            let gone = chosen.is_none();
            if chosen != known.sent {
                known.sent.clone_from(&chosen);
                events.push(Event::PullerChanged(node.clone(), chosen));
            }
            if gone {
                self.nodes.remove(&node);
            }
        }
    }
}

impl Known {
    /// Chooses the puller of a node. Of two ready pods, the one in use stays.
    fn choose(&self) -> Option<Puller> {
        let mut pullers = self.ready.iter().map(|(_, puller)| puller);
        let in_use = pullers
            .clone()
            .find(|puller| self.sent.as_ref() == Some(puller));
        in_use.or_else(|| pullers.next()).cloned()
    }
}

/// Returns the ready pullers of one slice.
pub(crate) fn ready(slice: LeanSlice) -> Vec<(NodeName, Puller)> {
    let mut ports = slice.ports.into_iter().flatten();
    let grpc = ports.find(|port| port.name.as_deref() == Some("grpc"));
    let Some(port) = grpc.and_then(|port| port.port) else {
        return Vec::new();
    };
    slice
        .endpoints
        .into_iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.ready != Some(false))
        .filter_map(|endpoint| {
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let instance: Arc<str> = endpoint.target_ref?.uid?.into();
            let node = NodeName(endpoint.node_name?.into());
            let address = SocketAddr::new(address, port);
            Some((node, Puller { instance, address }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, endpoints: &[(&str, &str, bool)]) -> LeanSlice {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(node, uid, ready)| {
                serde_json::json!({
                    "addresses": ["10.0.0.1"], "nodeName": node,
                    "conditions": {"ready": ready}, "targetRef": {"uid": uid},
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "addressType": "IPv4",
            "ports": [{"name": "grpc", "port": 7443}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn apply(pullers: &mut Pullers, slice: LeanSlice) -> Vec<String> {
        let mut events = Vec::new();
        pullers.applied(slice, &mut events);
        events
            .into_iter()
            .map(|event| match event {
                Event::PullerChanged(node, puller) => {
                    format!(
                        "{node} {}",
                        puller.map_or("none".to_owned(), |p| p.instance.to_string())
                    )
                }
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn only_differences_are_told_and_a_roll_out_moves_from_pod_to_pod() {
        let mut pullers = Pullers::default();
        assert_eq!(
            apply(&mut pullers, slice("s", &[("n1", "a", true)])),
            ["n1 a"]
        );
        assert!(apply(&mut pullers, slice("t", &[("n1", "a", true)])).is_empty());
        assert!(
            apply(
                &mut pullers,
                slice("s", &[("n1", "b", true), ("n1", "a", true)])
            )
            .is_empty()
        );
        assert!(apply(&mut pullers, slice("t", &[])).is_empty());
        assert_eq!(
            apply(
                &mut pullers,
                slice("s", &[("n1", "b", true), ("n1", "a", false)])
            ),
            ["n1 b"]
        );
        assert_eq!(apply(&mut pullers, slice("s", &[])), ["n1 none"]);
    }

    #[test]
    fn an_endpoint_that_moves_between_slices_is_never_gone() {
        let mut pullers = Pullers::default();
        apply(
            &mut pullers,
            slice("s", &[("n1", "a", true), ("n2", "b", true)]),
        );
        assert!(apply(&mut pullers, slice("t", &[("n2", "b", true)])).is_empty());
        assert!(apply(&mut pullers, slice("s", &[("n1", "a", true)])).is_empty());
        let mut events = Vec::new();
        pullers.deleted(&"t".into(), &mut events);
        assert_eq!(events.len(), 1);
        assert!(matches!(&events[0], Event::PullerChanged(node, None) if &*node.0 == "n2"));
        assert_eq!(pullers.nodes.len(), 1);
    }
}
