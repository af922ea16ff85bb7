//! `nodeSelector` and `nodeAffinity`, compiled. They select the nodes that the Kubernetes scheduler
//! would select.

use std::{collections::BTreeMap, sync::Arc};

use kubefledged_api_types::{
    CacheSpecEntry, NodeSelector, NodeSelectorOperator as Operator, NodeSelectorRequirement,
    NodeSelectorTerm,
};

use super::facts::{Facts, NodePlacement};
use crate::vocabulary::{NodeName, Placement, Taint, Toleration};

/// A compiled node selector of one list.
#[derive(Debug, Default)]
pub struct Selector {
    labels: Vec<(Arc<str>, Arc<str>)>,
    /// The node must match one of them; `None`: no affinity is required.
    terms: Option<Vec<Term>>,
}

/// The node must match all requirements; a term without requirements matches no node.
#[derive(Debug)]
struct Term {
    labels: Vec<Requirement>,
    names: Vec<Requirement>,
}

#[derive(Debug)]
struct Requirement {
    key: Arc<str>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
    Greater(i64),
    Less(i64),
    /// The requirement is malformed. Like the scheduler, we let its term match no node.
    Never,
}

impl Selector {
    /// Compiles the selectors of a list.
    pub fn new(entry: &CacheSpecEntry) -> Self {
        let affinity = entry.node_affinity.as_ref();
        Self::of(
            &entry.node_selector,
            affinity.and_then(|a| a.required.as_ref()),
        )
    }

    /// Compiles a `nodeSelector` and the required terms of a `nodeAffinity`.
    fn of(labels: &BTreeMap<String, String>, required: Option<&NodeSelector>) -> Self {
        Self {
            labels: labels
                .iter()
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
            terms: required.map(|r| r.node_selector_terms.iter().map(Term::new).collect()),
        }
    }

    /// Does it select this node?
    pub fn matches(&self, name: &NodeName, facts: &Facts) -> bool {
        let labels = self.labels.iter();
        labels
            .into_iter()
            .all(|(key, value)| facts.label(key) == Some(value))
            && self
                .terms
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(name, facts)))
    }
}

/// Which nodes get a puller, compiled.
#[derive(Debug)]
pub struct PullerSelector {
    selector: Selector,
    tolerations: Vec<Toleration>,
}

impl PullerSelector {
    /// Compiles the placement of a pod template.
    pub fn new(placement: &Placement) -> Self {
        Self {
            selector: Selector::of(&placement.node_selector, placement.required.as_ref()),
            tolerations: placement.tolerations.clone(),
        }
    }

    /// Notes whether the `DaemonSet` controller makes a pod for this node. `placement`: `None` where that is not known.
    pub fn place(placement: Option<&Self>, name: &NodeName, facts: &mut Facts) {
        facts.placement = match placement {
            Some(known) if !known.selector.matches(name, facts) => NodePlacement::NotSelected,
            Some(known) if !known.tolerates(facts) => NodePlacement::NotTolerated,
            _ => NodePlacement::Selected,
        };
    }

    fn tolerates(&self, facts: &Facts) -> bool {
        let tolerated = |taint: &Taint| self.tolerations.iter().any(|t| tolerates(t, taint));
        facts.taints.iter().all(tolerated)
    }
}

/// As the scheduler compares them. An operator that is not known here may tolerate.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let Toleration {
        key,
        operator,
        value,
        effect,
    } = toleration;
    let same = match operator.as_str() {
        "" | "Equal" => *value == taint.value,
        _ => true,
    };
    (effect.is_empty() || *effect == taint.effect) && (key.is_empty() || *key == taint.key) && same
}

impl Term {
    fn new(term: &NodeSelectorTerm) -> Self {
        let field = |requirement: &NodeSelectorRequirement| {
            let known = requirement.key == "metadata.name"
                && matches!(requirement.operator, Operator::In | Operator::NotIn);
            if known {
                Requirement::new(requirement)
            } else {
                Requirement::never()
            }
        };
        Self {
            labels: term
                .match_expressions
                .iter()
                .map(Requirement::new)
                .collect(),
            names: term.match_fields.iter().map(field).collect(),
        }
    }

    fn matches(&self, name: &NodeName, facts: &Facts) -> bool {
        let empty = self.labels.is_empty() && self.names.is_empty();
        !empty
            && self
                .labels
                .iter()
                .all(|requirement| requirement.test.holds(facts.label(&requirement.key)))
            && self
                .names
                .iter()
                .all(|requirement| requirement.test.holds(Some(&name.0)))
    }
}

impl Requirement {
    fn new(requirement: &NodeSelectorRequirement) -> Self {
        let values = || {
            requirement
                .values
                .iter()
                .map(|value| value.as_str().into())
                .collect()
        };
        let number = || match requirement.values.as_slice() {
            [value] => value.parse::<i64>().ok(),
            _ => None,
        };
        let test = match requirement.operator {
            Operator::In => Test::In(values()),
            Operator::NotIn => Test::NotIn(values()),
            Operator::Exists => Test::Exists,
            Operator::DoesNotExist => Test::DoesNotExist,
            Operator::Gt => number().map_or(Test::Never, Test::Greater),
            Operator::Lt => number().map_or(Test::Never, Test::Less),
        };
        Self {
            key: requirement.key.as_str().into(),
            test,
        }
    }

    fn never() -> Self {
        Self {
            key: "".into(),
            test: Test::Never,
        }
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[Arc<str>]| value.is_some_and(|v| values.iter().any(|k| **k == *v));
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => among(values),
            Self::NotIn(values) => !among(values),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::Greater(than) => number().is_some_and(|number| number > *than),
            Self::Less(than) => number().is_some_and(|number| number < *than),
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_api_types::{NodeAffinity, NodeSelector};

    use super::*;
    use crate::{model::texts::Texts, vocabulary::NodeFacts};

    /// Does a node n1 with these labels match these terms?
    fn matches(terms: &str, labels: &[(&str, &str)]) -> bool {
        let entry = CacheSpecEntry {
            node_affinity: Some(NodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: serde_json::from_str(terms).unwrap(),
                }),
            }),
            ..CacheSpecEntry::default()
        };
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let facts = NodeFacts {
            labels: labels.collect(),
            ..NodeFacts::default()
        };
        let facts = Facts::new(facts, None, &mut Texts::default());
        Selector::new(&entry).matches(&NodeName("n1".into()), &facts)
    }

    fn label(operator: &str, values: &str, labels: &[(&str, &str)]) -> bool {
        let need = format!(r#"{{"key": "k", "operator": "{operator}", "values": {values}}}"#);
        matches(&format!(r#"[{{"matchExpressions": [{need}]}}]"#), labels)
    }

    #[test]
    fn each_operator_means_what_it_means_to_the_scheduler() {
        let (a, none): (&[_], &[_]) = (&[("k", "a")], &[]);
        assert!(label("In", r#"["a", "b"]"#, a) && !label("In", r#"["b"]"#, a));
        assert!(!label("In", r#"["a"]"#, none));
        assert!(label("NotIn", r#"["b"]"#, a) && !label("NotIn", r#"["a"]"#, a));
        assert!(
            label("NotIn", r#"["a"]"#, none),
            "also where the label is not there"
        );
        assert!(label("Exists", "[]", a) && !label("Exists", "[]", none));
        assert!(label("DoesNotExist", "[]", none) && !label("DoesNotExist", "[]", a));
    }

    #[test]
    fn gt_and_lt_compare_integers_and_match_nothing_else() {
        let five: &[_] = &[("k", "5")];
        assert!(label("Gt", r#"["4"]"#, five) && !label("Gt", r#"["5"]"#, five));
        assert!(label("Lt", r#"["6"]"#, five) && !label("Lt", r#"["5"]"#, five));
        assert!(label("Lt", r#"["10"]"#, five), "numbers, not texts");
        assert!(!label("Gt", r#"["4"]"#, &[("k", "five")]) && !label("Gt", r#"["4"]"#, &[]));
        assert!(!label("Gt", r#"["x"]"#, five) && !label("Gt", r#"["1", "2"]"#, five));
    }

    #[test]
    fn terms_are_alternatives_and_the_requirements_of_one_hold_together() {
        let both = r#"[{"matchExpressions": [
            {"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]}]"#;
        assert!(!matches(both, &[("k", "")]) && matches(both, &[("k", ""), ("l", "")]));
        let either = r#"[{"matchExpressions": [{"key": "k", "operator": "Exists"}]},
            {"matchExpressions": [{"key": "l", "operator": "Exists"}]}]"#;
        assert!(matches(either, &[("l", "")]) && !matches(either, &[]));
    }

    #[test]
    fn a_node_is_named_by_its_field_and_no_other_field_is_known() {
        let name = |operator: &str, value: &str, field: &str| {
            let need =
                format!(r#"{{"key": "{field}", "operator": "{operator}", "values": ["{value}"]}}"#);
            matches(
                &format!(r#"[{{"matchFields": [{need}]}}]"#),
                &[("metadata.name", "n2")],
            )
        };
        assert!(name("In", "n1", "metadata.name") && !name("In", "n2", "metadata.name"));
        assert!(name("NotIn", "n2", "metadata.name") && !name("NotIn", "n1", "metadata.name"));
        assert!(!name("In", "n1", "spec.name") && !name("Exists", "", "metadata.name"));
    }

    #[test]
    fn an_empty_term_and_no_terms_match_nothing_and_no_affinity_matches_everything() {
        assert!(!matches("[{}]", &[]) && !matches("[]", &[]));
        let facts = Facts::new(NodeFacts::default(), None, &mut Texts::default());
        let all = Selector::new(&CacheSpecEntry::default());
        assert!(all.matches(&NodeName("n1".into()), &facts));
    }

    #[test]
    fn node_selector_and_affinity_hold_together() {
        let mut entry: CacheSpecEntry = serde_json::from_str(
            r#"{"images": [], "nodeSelector": {"a": "1"}, "nodeAffinity": {"required":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "b", "operator": "Exists"}]}]}}}"#,
        )
        .unwrap();
        let facts = |labels: &[&str]| {
            let labels = labels.iter().map(|k| ((*k).to_owned(), "1".to_owned()));
            let facts = NodeFacts {
                labels: labels.collect(),
                ..NodeFacts::default()
            };
            Facts::new(facts, None, &mut Texts::default())
        };
        let n1 = NodeName("n1".into());
        assert!(Selector::new(&entry).matches(&n1, &facts(&["a", "b"])));
        assert!(!Selector::new(&entry).matches(&n1, &facts(&["a"])));
        assert!(!Selector::new(&entry).matches(&n1, &facts(&["b"])));
        entry.node_affinity = Some(NodeAffinity::default());
        assert!(Selector::new(&entry).matches(&n1, &facts(&["a"])));
    }
}
