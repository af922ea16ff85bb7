//! Node affinity in the shape of a PersistentVolume's: terms are alternatives, the requirements of
//! a term hold together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which nodes a list is for, beyond `nodeSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct NodeAffinity {
    /// What a node must fulfil. Not set: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<NodeSelector>,
}

/// Alternatives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    /// A node must fulfil at least one of these terms.
    #[schemars(length(min = 1, max = 16))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// One alternative. A term without any requirement matches no node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.matchFields) || self.matchFields.all(f, f.key == 'metadata.name')",
    "fieldPath": ".matchFields",
    "message": "metadata.name is the only field: match labels by matchExpressions",
}]))]
pub struct NodeSelectorTerm {
    /// Requirements on the node's labels; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Requirements on the node's fields; all must hold. The only field is metadata.name, with the
    /// operators In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
        "fieldPath": ".values",
        "message": "In and NotIn need at least one value",
    },
    {
        "rule": "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",
        "fieldPath": ".values",
        "message": "Exists and DoesNotExist take no values: remove them",
    },
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
    /// In, NotIn, Exists, DoesNotExist, Gt or Lt.
    pub operator: NodeSelectorOperator,
    /// In and NotIn: at least one value. Exists and DoesNotExist: none. Gt and Lt: one integer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub values: Vec<String>,
}

/// How a label relates to the values.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub enum NodeSelectorOperator {
    /// It has one of them.
    In,
    /// It has none of them, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is an integer and greater.
    Gt,
    /// It is an integer and less.
    Lt,
}
