//! Writes to Nodes for the node gate: our taint is removed, our condition is set. Everything else of a Node stays as it
//! is, also what changed since the watch brought it.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use kubefledged_api_types::names::IMAGES_CACHED_CONDITION;
use kubefledged_engine::{ConditionWrite, Event, NodeName, PlacedTaint, WriteError};
use serde_json::{Value, json};

use super::objects::{Objects, limited, params};
use crate::inputs::nodes::LeanNode;

impl Objects {
    /// Removes taints, if this Node still has them at these places. Another list of taints is a conflict.
    pub async fn remove_taints(&self, node: NodeName, uid: &str, taints: &[PlacedTaint]) -> Event {
        let patch = serde_json::from_value(removal(uid, taints));
        let result = match patch {
            Ok(patch) => self.patch_node(&node, "", &Patch::Json::<()>(patch)).await,
            Err(error) => Err(WriteError::Failed(error.to_string())),
        };
        Event::NodeWritten(node, result)
    }

    /// Sets the condition `ImagesCached` of this Node. It is merged by its type: conditions of others stay.
    pub async fn write_node_condition(
        &self,
        node: NodeName,
        uid: &str,
        condition: ConditionWrite,
    ) -> Event {
        let patch = Patch::Strategic(merge(uid, &condition));
        let result = self.patch_node(&node, "status", &patch).await;
        Event::NodeWritten(node, result)
    }

    async fn patch_node<P: serde::Serialize + std::fmt::Debug>(
        &self,
        node: &NodeName,
        subresource: &str,
        patch: &Patch<P>,
    ) -> Result<(), WriteError> {
        let api: Api<LeanNode> = Api::all(self.client().clone());
        let params: PatchParams = params();
        let written = if subresource.is_empty() {
            limited(api.patch(&node.0, &params, patch)).await
        } else {
            limited(api.patch_subresource(subresource, &node.0, &params, patch)).await
        };
        written.map(drop).map_err(|refused| match refused.code {
            // A test of the patch failed, or the taint is gone.
            422 => {
                tracing::info!(%node, error = refused.message, "the Node has changed, or a policy refused the write; trying again");
                WriteError::Conflict
            }
            404 | 409 => refused.into(),
            _ => {
                tracing::warn!(%node, error = refused.message, "cannot write the Node, trying again");
                refused.into()
            }
        })
    }
}

/// A JSON patch: the taints must be where they were seen, on the Node on which they were seen. The last one goes first,
/// because each removal moves those behind it.
fn removal(uid: &str, taints: &[PlacedTaint]) -> Value {
    let mut operations = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    for PlacedTaint { index, key, effect } in taints {
        for (field, value) in [("key", key), ("effect", effect)] {
            let path = format!("/spec/taints/{index}/{field}");
            operations.push(json!({"op": "test", "path": path, "value": &**value}));
        }
    }
    let removals = taints.iter().rev();
    operations.extend(removals.map(|taint| {
        let path = format!("/spec/taints/{}", taint.index);
        json!({"op": "remove", "path": path})
    }));
    Value::Array(operations)
}

/// A strategic merge patch. With the UID it is refused for another Node of the same name.
fn merge(uid: &str, condition: &ConditionWrite) -> Value {
    let at = condition.at.to_string();
    let mut written = json!({
        "type": IMAGES_CACHED_CONDITION,
        "status": condition.reason.status(),
        "reason": condition.reason.as_str(),
        "message": condition.message,
        "lastHeartbeatTime": at,
    });
    if condition.transition {
        written["lastTransitionTime"] = json!(at);
    }
    json!({"metadata": {"uid": uid}, "status": {"conditions": [written]}})
}

#[cfg(test)]
mod tests {
    use kubefledged_api_types::{GateReason, Timestamp};

    use super::*;

    fn placed(index: usize, effect: &str) -> PlacedTaint {
        PlacedTaint {
            index,
            key: "k".into(),
            effect: effect.into(),
        }
    }

    #[test]
    fn a_taint_is_removed_only_where_it_was_seen_and_the_last_one_first() {
        let patch = removal("u", &[placed(1, "NoSchedule"), placed(3, "NoExecute")]);
        let expected = json!([
            {"op": "test", "path": "/metadata/uid", "value": "u"},
            {"op": "test", "path": "/spec/taints/1/key", "value": "k"},
            {"op": "test", "path": "/spec/taints/1/effect", "value": "NoSchedule"},
            {"op": "test", "path": "/spec/taints/3/key", "value": "k"},
            {"op": "test", "path": "/spec/taints/3/effect", "value": "NoExecute"},
            {"op": "remove", "path": "/spec/taints/3"},
            {"op": "remove", "path": "/spec/taints/1"},
        ]);
        assert_eq!(patch, expected);
    }

    #[test]
    fn the_time_of_the_last_transition_stays_where_the_status_does() {
        let condition = |transition| ConditionWrite {
            reason: GateReason::PullFailed,
            message: "m".into(),
            at: Timestamp(1_700_000_000),
            transition,
        };
        let written = merge("u", &condition(true))["status"]["conditions"][0].clone();
        assert_eq!(written["status"], "False");
        assert_eq!(written["lastTransitionTime"], "2023-11-14T22:13:20Z");
        let written = merge("u", &condition(false))["status"]["conditions"][0].clone();
        assert_eq!(written.get("lastTransitionTime"), None);
    }
}
