//! The pullers, from the `EndpointSlices` of their headless Service. During a roll-out a node has
//! two pods, and an endpoint may stand in two slices: they are merged by the pod's UID, and only
//! a difference is told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kubefledged_engine::{Event, NodeName, Puller};

use super::Input;

/// Ready pullers by slice, and what was told of each node.
#[derive(Debug, Default)]
pub struct Pullers {
    slices: BTreeMap<String, Vec<(NodeName, Puller)>>,
    told: BTreeMap<NodeName, Puller>,
}

impl Input for Pullers {
    type Object = EndpointSlice;
    type Key = String;

    fn key(&self, object: &EndpointSlice) -> Option<String> {
        Some(object.name_any())
    }

    fn applied(&mut self, object: EndpointSlice, tell: &mut Vec<Event>) {
        self.slices.insert(object.name_any(), ready(&object));
        self.tell_differences(tell);
    }

    fn deleted(&mut self, key: &String, tell: &mut Vec<Event>) {
        self.slices.remove(key);
        self.tell_differences(tell);
    }
}

impl Pullers {
    fn tell_differences(&mut self, tell: &mut Vec<Event>) {
        let mut now: BTreeMap<NodeName, Puller> = BTreeMap::new();
        for (node, puller) in self.slices.values().flatten() {
            // Of two ready pods the one that is in use stays.
            let in_use = self.told.get(node) == Some(puller);
            if in_use || !now.contains_key(node) {
                now.insert(node.clone(), puller.clone());
            }
        }
        for node in self.told.keys().filter(|node| !now.contains_key(*node)) {
            tell.push(Event::PullerChanged(node.clone(), None));
        }
        for (node, puller) in &now {
            if self.told.get(node) != Some(puller) {
                tell.push(Event::PullerChanged(node.clone(), Some(puller.clone())));
            }
        }
        self.told = now;
    }
}

/// The ready pullers of one slice.
pub(crate) fn ready(slice: &EndpointSlice) -> Vec<(NodeName, Puller)> {
    let ports = slice.ports.iter().flatten();
    let Some(port) = ports
        .filter(|port| port.name.as_deref() == Some("grpc"))
        .find_map(|port| u16::try_from(port.port?).ok())
    else {
        return Vec::new();
    };
    slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false))
        .filter_map(|endpoint| {
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let instance: Arc<str> = endpoint.target_ref.as_ref()?.uid.as_deref()?.into();
            let node = NodeName(endpoint.node_name.as_deref()?.into());
            let address = SocketAddr::new(address, port);
            Some((node, Puller { instance, address }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, endpoints: &[(&str, &str, bool)]) -> EndpointSlice {
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

    fn tell(pullers: &mut Pullers, slice: EndpointSlice) -> Vec<String> {
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
            tell(&mut pullers, slice("s", &[("n1", "a", true)])),
            ["n1 a"]
        );
        assert!(tell(&mut pullers, slice("t", &[("n1", "a", true)])).is_empty());
        assert!(
            tell(
                &mut pullers,
                slice("s", &[("n1", "b", true), ("n1", "a", true)])
            )
            .is_empty()
        );
        assert!(tell(&mut pullers, slice("t", &[])).is_empty());
        assert_eq!(
            tell(
                &mut pullers,
                slice("s", &[("n1", "b", true), ("n1", "a", false)])
            ),
            ["n1 b"]
        );
        assert_eq!(tell(&mut pullers, slice("s", &[])), ["n1 none"]);
    }
}
