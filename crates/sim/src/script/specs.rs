//! What users write into their objects.

use std::time::Duration;

use kubefledged_api_types::{
    CacheSpecEntry, DeletionPolicy, GoDuration, ImageCacheSpec, ImagePullPolicy, NodeAffinity,
    NodeSelector, NodeSelectorOperator, NodeSelectorRequirement, NodeSelectorTerm, NodeShare,
    PullSecretReference, RefreshSpec, Retention,
};

use super::{ROBOT, ZONES, generate::Day};
use crate::registry::NAMES;

impl Day {
    /// What a user writes.
    pub(super) fn spec(&mut self) -> ImageCacheSpec {
        let lists = self.rng.between(1, 2);
        ImageCacheSpec {
            removal_policy: None,
            cache_spec: (0..lists).map(|_| self.list()).collect(),
            image_pull_secrets: match self.rng.below(4) {
                0 => Vec::new(),
                1 => secrets(&["wrong", "right"]),
                2 => secrets(&["missing", "malformed", "right"]),
                _ => secrets(&["right"]),
            },
            refresh: match self.rng.below(6) {
                0 => Some(seconds(120)),
                1 => Some(seconds(0)),
                _ => None,
            },
            max_concurrent_nodes: self.share(20),
            require_nodes: None,
            min_ready_nodes: self.share(20),
            service_account_name: self.rng.percent(20).then(|| ROBOT.to_owned()),
            deletion_policy: self.rng.percent(30).then_some(DeletionPolicy::Purge),
            retention: self.rng.percent(30).then_some(Retention::Pinned),
            // See `gate`.
            node_gate: None,
            node_gate_timeout: None,
            suspend: self.rng.percent(4),
        }
    }

    fn share(&mut self, percent: u64) -> Option<NodeShare> {
        let share = *self
            .rng
            .pick(&[NodeShare::Count(1), NodeShare::Percent(50)]);
        self.rng.percent(percent).then_some(share)
    }

    fn list(&mut self) -> CacheSpecEntry {
        let count = self.rng.between(1, 3);
        let mut images: Vec<String> = Vec::new();
        for _ in 0..count {
            // The sandbox image is a rare mistake.
            let most = if self.rng.percent(3) {
                NAMES.len()
            } else {
                NAMES.len() - 1
            };
            let name = NAMES[self.rng.index(most)].to_owned();
            if !images.contains(&name) {
                images.push(name);
            }
        }
        let zone = *self.rng.pick(&ZONES);
        CacheSpecEntry {
            images,
            // See `workloads`.
            images_from: Vec::new(),
            keep_previous: None,
            retain_for: None,
            node_selector: match self.rng.below(3) {
                0 => [("zone".to_owned(), zone.to_owned())].into(),
                _ => std::collections::BTreeMap::new(),
            },
            image_pull_policy: match self.rng.below(4) {
                0 => Some(ImagePullPolicy::Always),
                1 => Some(ImagePullPolicy::IfNotPresent),
                _ => None,
            },
            priority: self.rng.percent(20).then_some(5),
            node_affinity: self.rng.percent(15).then(|| not_in(zone)),
            pull_deadline: match self.rng.below(10) {
                0 => Some(GoDuration(Duration::from_secs(180))),
                _ => None,
            },
        }
    }
}

fn seconds(seconds: u64) -> RefreshSpec {
    let interval = Some(GoDuration(Duration::from_secs(seconds)));
    RefreshSpec { interval }
}

/// Any other zone.
fn not_in(zone: &str) -> NodeAffinity {
    let other = NodeSelectorRequirement {
        key: "zone".to_owned(),
        operator: NodeSelectorOperator::NotIn,
        values: vec![zone.to_owned()],
    };
    let term = NodeSelectorTerm {
        match_expressions: vec![other],
        ..NodeSelectorTerm::default()
    };
    let required = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
    NodeAffinity { required }
}

fn secrets(names: &[&str]) -> Vec<PullSecretReference> {
    let reference = |name: &&str| PullSecretReference {
        name: (*name).to_owned(),
    };
    names.iter().map(reference).collect()
}
