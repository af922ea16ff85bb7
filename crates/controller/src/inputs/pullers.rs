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

use super::{
    Input, lean,
    starting::{Reach, Starting},
};

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
    terminating: Option<bool>,
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

/// Converts `EndpointSlices` to events. Keeps pullers by slice and by node, and the puller that was sent for each node.
pub struct Pullers {
    slices: BTreeMap<Arc<str>, BTreeSet<NodeName>>,
    nodes: BTreeMap<NodeName, Known>,
    starting: Starting,
    /// The first list is complete: a pod that comes now is new.
    listed: bool,
}

/// The pullers of a node.
#[derive(Debug, Default)]
struct Known {
    endpoints: Vec<(Arc<str>, Endpoint)>,
    /// Pods that are not called: they were ready, were there before the first list, or are being called already.
    called: BTreeSet<Arc<str>>,
    /// A pod that is not ready and answers.
    answers: Option<Arc<str>>,
    sent: Option<Puller>,
}

/// A puller, as a slice has it.
#[derive(Clone, Debug)]
struct Endpoint {
    puller: Puller,
    ready: bool,
}

impl Input for Pullers {
    type Object = LeanSlice;
    type Key = Arc<str>;

    fn key(&self, object: &LeanSlice) -> Option<Arc<str>> {
        object.metadata.name.as_deref().map(Arc::from)
    }

    fn applied(&mut self, object: LeanSlice, events: &mut Vec<Event>) {
        if let Some(slice) = self.key(&object) {
            self.replace(&slice, endpoints(object), events);
        }
    }

    fn deleted(&mut self, key: &Arc<str>, events: &mut Vec<Event>) {
        self.replace(key, Vec::new(), events);
        self.slices.remove(key);
    }

    fn listed(&mut self) {
        self.listed = true;
    }

    async fn more(&mut self, events: &mut Vec<Event>) {
        let (node, puller) = self.starting.next().await;
        if let Some(known) = self.nodes.get_mut(&node) {
            known.answers = Some(puller.instance);
            self.tell(&node, events);
        }
    }
}

impl Pullers {
    /// `reach`: says whether a puller answers at an address.
    pub fn new(reach: Reach) -> Self {
        Self {
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
            starting: Starting::new(reach),
            listed: false,
        }
    }

    /// Updates only the nodes of this slice, because thousands of slices change while thousands of pullers are
    /// replaced.
    fn replace(
        &mut self,
        slice: &Arc<str>,
        now: Vec<(NodeName, Endpoint)>,
        events: &mut Vec<Event>,
    ) {
        let nodes: BTreeSet<NodeName> = now.iter().map(|(node, _)| node.clone()).collect();
        let before = self.slices.insert(slice.clone(), nodes.clone());
        let touched: BTreeSet<NodeName> = before.into_iter().flatten().chain(nodes).collect();
        for node in &touched {
            if let Some(known) = self.nodes.get_mut(node) {
                known.endpoints.retain(|(other, _)| other != slice);
            }
        }
        for (node, endpoint) in now {
            let known = self.nodes.entry(node).or_default();
            known.endpoints.push((slice.clone(), endpoint));
        }
        for node in &touched {
            self.tell(node, events);
        }
    }

    /// Sends the puller of a node if it is another one, and calls those that start.
    fn tell(&mut self, node: &NodeName, events: &mut Vec<Event>) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        known.forget();
        let chosen = known.choose();
        for puller in known.new_ones() {
            if self.listed && chosen.is_none() {
                self.starting.call(node.clone(), puller);
            }
        }
        if chosen != known.sent {
            known.sent.clone_from(&chosen);
            events.push(Event::PullerChanged(node.clone(), chosen));
        }
        if known.endpoints.is_empty() {
            self.nodes.remove(node);
        }
    }
}

impl Known {
    /// Forgets pods that are gone, and what was heard from one that is ready: from then on the kubelet knows better.
    fn forget(&mut self) {
        let endpoints = self.endpoints.iter().map(|(_, endpoint)| endpoint);
        let is_there = |instance: &Arc<str>| {
            let mut all = endpoints.clone();
            all.any(|endpoint| endpoint.puller.instance == *instance)
        };
        let is_ready = |instance: &Arc<str>| {
            let mut ready = endpoints.clone().filter(|endpoint| endpoint.ready);
            ready.any(|endpoint| endpoint.puller.instance == *instance)
        };
        self.called.retain(is_there);
        let answers = self.answers.take();
        self.answers = answers.filter(|instance| is_there(instance) && !is_ready(instance));
    }

    /// Pods that are seen for the first time and are not ready.
    fn new_ones(&mut self) -> Vec<Puller> {
        let endpoints = self.endpoints.iter().map(|(_, endpoint)| endpoint);
        let new = endpoints.filter(|endpoint| {
            self.called.insert(endpoint.puller.instance.clone()) && !endpoint.ready
        });
        new.map(|endpoint| endpoint.puller.clone()).collect()
    }

    /// Chooses the puller of a node. Of two pods, the one in use stays.
    fn choose(&self) -> Option<Puller> {
        let usable = |endpoint: &&Endpoint| {
            endpoint.ready || self.answers.as_ref() == Some(&endpoint.puller.instance)
        };
        let endpoints = self.endpoints.iter().map(|(_, endpoint)| endpoint);
        let mut pullers = endpoints.filter(usable).map(|endpoint| &endpoint.puller);
        let in_use = pullers
            .clone()
            .find(|puller| self.sent.as_ref() == Some(puller));
        in_use.or_else(|| pullers.next()).cloned()
    }
}

/// Returns the ready pullers of one slice.
pub(crate) fn ready(slice: LeanSlice) -> Vec<(NodeName, Puller)> {
    let endpoints = endpoints(slice).into_iter();
    let ready = endpoints.filter(|(_, endpoint)| endpoint.ready);
    ready
        .map(|(node, endpoint)| (node, endpoint.puller))
        .collect()
}

/// The pullers of one slice that do not end.
fn endpoints(slice: LeanSlice) -> Vec<(NodeName, Endpoint)> {
    let mut ports = slice.ports.into_iter().flatten();
    let grpc = ports.find(|port| port.name.as_deref() == Some("grpc"));
    let Some(port) = grpc.and_then(|port| port.port) else {
        return Vec::new();
    };
    slice
        .endpoints
        .into_iter()
        .flatten()
        .filter_map(|endpoint| {
            let LeanConditions { ready, terminating } = endpoint.conditions;
            let ready = ready != Some(false);
            if !ready && terminating == Some(true) {
                return None;
            }
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let instance: Arc<str> = endpoint.target_ref?.uid?.into();
            let node = NodeName(endpoint.node_name?.into());
            let address = SocketAddr::new(address, port);
            let puller = Puller { instance, address };
            Some((node, Endpoint { puller, ready }))
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

    /// At none of the addresses anybody answers.
    fn pullers() -> Pullers {
        Pullers::new(Arc::new(|_| Box::pin(async { false })))
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
        let mut pullers = pullers();
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

    #[tokio::test]
    async fn a_pod_that_starts_is_used_as_soon_as_it_answers_and_later_as_the_kubelet_says() {
        let mut pullers = Pullers::new(Arc::new(|_| Box::pin(async { true })));
        // Who was not ready before the first list is left to the kubelet.
        apply(&mut pullers, slice("s", &[("n0", "old", false)]));
        pullers.listed();
        let one = |ready| slice("t", &[("n1", "new", ready)]);
        assert!(apply(&mut pullers, one(false)).is_empty());
        let mut events = Vec::new();
        pullers.more(&mut events).await;
        assert!(matches!(&events[..], [Event::PullerChanged(node, Some(_))] if &*node.0 == "n1"));
        assert!(apply(&mut pullers, one(false)).is_empty());
        assert!(apply(&mut pullers, one(true)).is_empty());
        assert_eq!(apply(&mut pullers, one(false)), ["n1 none"]);
        assert_eq!(apply(&mut pullers, one(true)), ["n1 new"]);
        assert!(apply(&mut pullers, slice("s", &[])).is_empty());
        assert_eq!(pullers.nodes.len(), 1);
    }

    #[test]
    fn an_endpoint_that_moves_between_slices_is_never_gone() {
        let mut pullers = pullers();
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
