//! Node affinity with the same fields as that of a PersistentVolume. A node must match at least one
//! term, and it matches a term if all requirements of the term hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Limits a list to nodes, in addition to `nodeSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct NodeAffinity {
    /// Terms that a node must match. Not set: every node matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<NodeSelector>,
}

/// A list of terms. A node matches if it matches at least one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    /// Terms, of which a node must match at least one.
    #[schemars(length(min = 1, max = 16))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// One term. A node matches it if all its requirements hold. A term without requirements matches
/// no node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.matchFields) || self.matchFields.all(f, f.key == 'metadata.name')",
    "fieldPath": ".matchFields",
    "message": "metadata.name is the only field: match labels by matchExpressions",
}]))]
pub struct NodeSelectorTerm {
    /// Requirements on the node's labels. All of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Requirements on the node's fields. All of them must hold. The only supported field is
    /// metadata.name, and the only supported operators are In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// A rule of the schema for requirements with operators and values.
pub(crate) fn some_values_for_in() -> Value {
    json!({
        "rule": "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
        "fieldPath": ".values",
        "message": "In and NotIn need at least one value",
    })
}

/// Another one.
pub(crate) fn no_values_for_exists() -> Value {
    json!({
        "rule": "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",
        "fieldPath": ".values",
        "message": "Exists and DoesNotExist take no values: remove them",
    })
}

/// One requirement on a label or a field of a node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    some_values_for_in(),
    no_values_for_exists(),
    {
        "rule": "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && size(self.values) == 1 && self.values[0].matches(r'^-?\\d+$'))",
        "fieldPath": ".values",
        "message": "Gt and Lt need exactly one value, an integer such as \"4\"",
    },
]))]
pub struct NodeSelectorRequirement {
    /// Key of the label, or name of the field.
    #[schemars(length(max = 317))]
    pub key: String,
    /// How the label or field is compared with `values`: In, NotIn, Exists, DoesNotExist, Gt or Lt.
    pub operator: NodeSelectorOperator,
    /// Values to compare with. In and NotIn need at least one value, Exists and DoesNotExist take
    /// none, Gt and Lt need exactly one integer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub values: Vec<String>,
}

/// Compares a label or field of a node with the values of a requirement.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub enum NodeSelectorOperator {
    /// The label exists and its value is one of the values.
    In,
    /// The label does not exist, or its value is none of the values.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
    /// The label's value is an integer greater than the value.
    Gt,
    /// The label's value is an integer less than the value.
    Lt,
}
