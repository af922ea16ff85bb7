//! Watches the pullers' `DaemonSet`: on which nodes pullers run. Other nodes are not counted.

use std::collections::BTreeMap;

use k8s_openapi::{api::apps::v1::DaemonSet, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use kubefledged_api_types::NodeSelector;
use kubefledged_engine::{Event, Placement, Toleration};
use serde::Deserialize;

use super::{Input, lean};

/// The part of a `DaemonSet` that is read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = DaemonSet)]
pub struct LeanDaemonSet {
    #[serde(deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    spec: LeanSpec,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanSpec {
    template: LeanTemplate,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanTemplate {
    spec: LeanPod,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanPod {
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    affinity: Option<LeanAffinity>,
    #[serde(default)]
    tolerations: Vec<LeanToleration>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanAffinity {
    node_affinity: Option<LeanNodeAffinity>,
}

#[derive(Clone, Debug, Deserialize)]
struct LeanNodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LeanToleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
}

/// Converts the `DaemonSet` to events. Keeps the placement that was sent last.
#[derive(Debug, Default)]
pub struct Placements(Option<Placement>);

impl Input for Placements {
    type Object = LeanDaemonSet;
    type Key = String;

    fn key(&self, object: &LeanDaemonSet) -> Option<String> {
        object.metadata.name.clone()
    }

    fn applied(&mut self, object: LeanDaemonSet, events: &mut Vec<Event>) {
        let placement = Some(placement(object.spec.template.spec));
        if self.0 != placement {
            self.0.clone_from(&placement);
            events.push(Event::PullersPlaced(placement.map(Box::new)));
        }
    }

    fn deleted(&mut self, _: &String, events: &mut Vec<Event>) {
        self.0 = None;
        events.push(Event::PullersPlaced(None));
    }
}

fn placement(pod: LeanPod) -> Placement {
    let affinity = pod.affinity.and_then(|affinity| affinity.node_affinity);
    let tolerations = pod.tolerations.into_iter().map(|toleration| {
        let LeanToleration {
            key,
            operator,
            value,
            effect,
        } = toleration;
        Toleration {
            key,
            operator,
            value,
            effect,
        }
    });
    Placement {
        node_selector: pod.node_selector,
        required: affinity.and_then(|affinity| affinity.required),
        tolerations: tolerations.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_placement_is_sent_once_and_a_rollout_sends_nothing() {
        let set = |image: &str, pool: &str| -> LeanDaemonSet {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "kubefledged-puller"},
                "spec": {"template": {"spec": {
                    "containers": [{"name": "puller", "image": image}],
                    "nodeSelector": {"pool": pool},
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}],
                    }}},
                    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                }}},
            }))
            .unwrap()
        };
        let (mut input, mut events) = (Placements::default(), Vec::new());
        input.applied(set("puller:1", "a"), &mut events);
        input.applied(set("puller:2", "a"), &mut events);
        assert_eq!(events.len(), 1);
        let Event::PullersPlaced(Some(placed)) = &events[0] else {
            panic!("{events:?}");
        };
        assert_eq!(placed.node_selector["pool"], "a");
        assert_eq!(
            placed.required.as_ref().unwrap().node_selector_terms.len(),
            1
        );
        assert_eq!(placed.tolerations[0].key, "dedicated");
        input.applied(set("puller:2", "b"), &mut events);
        input.deleted(&"kubefledged-puller".to_owned(), &mut events);
        assert!(
            matches!(events[2], Event::PullersPlaced(None)),
            "{events:?}"
        );
    }
}
