//! Node objects as the API server has them, for the tests of the node gate.

use kubefledged_api_types::{NodeGate, names::IMAGES_NOT_CACHED_TAINT};

use super::*;

/// A Node object, and how often it was written.
#[derive(Default)]
pub(super) struct Object {
    pub(super) facts: NodeFacts,
    /// Writes that were carried out.
    pub(super) writes: usize,
    /// Writes that were tried.
    pub(super) tries: usize,
    /// The API server refuses writes.
    pub(super) refuses: bool,
    /// The watch brings nothing.
    pub(super) unseen: bool,
}

/// Settings with both halves of the gate on.
pub(super) fn gated() -> Settings {
    Settings {
        gate: GateSettings {
            condition: true,
            taint: Some(IMAGES_NOT_CACHED_TAINT.into()),
            ..GateSettings::default()
        },
        ..Settings::default()
    }
}

/// Images that nodes wait for.
pub(super) fn required(names: &[&str]) -> ImageCacheSpec {
    ImageCacheSpec {
        node_gate: Some(NodeGate::Required),
        ..images(names)
    }
}

impl Harness {
    /// A leader that gates nodes, with a cache of these images. No node is there yet.
    pub(super) fn gating(spec: ImageCacheSpec) -> Self {
        let mut harness = Self::with(gated(), &[]);
        harness.create(spec);
        harness.lead();
        harness
    }

    /// A Node joins with the gate's taint among others, and without a puller.
    pub(super) fn join_tainted(&mut self, name: &str) {
        let keys = ["other/first", IMAGES_NOT_CACHED_TAINT, "other/last"];
        let facts = NodeFacts {
            taints: keys.map(|key| taint(key, "NoSchedule")).to_vec(),
            uid: format!("uid-{name}"),
            created: Some(self.now.wall),
            ..facts(&[])
        };
        self.put_node(name, facts);
    }

    /// Stores a Node as it is now.
    pub(super) fn put_node(&mut self, name: &str, facts: NodeFacts) {
        let object = self.gated.entry(name.to_owned()).or_default();
        object.facts = facts.clone();
        self.handle(Event::NodeApplied(node(name), facts));
        self.run();
    }

    /// A Node joins, and its puller becomes ready after so many seconds.
    pub(super) fn join_with_puller(&mut self, name: &str, after: u64) {
        self.join_tainted(name);
        self.wait(after);
        self.puller(name);
        self.run();
    }

    pub(super) fn object(&mut self, name: &str) -> &mut Object {
        self.gated.get_mut(name).unwrap()
    }

    /// Does the node still carry the gate's taint?
    pub(super) fn is_tainted(&self, name: &str) -> bool {
        let mut taints = self.gated[name].facts.taints.iter();
        taints.any(|taint| taint.key == IMAGES_NOT_CACHED_TAINT)
    }

    /// Reason of the node's condition; empty: it has none.
    pub(super) fn gate_reason(&self, name: &str) -> &str {
        let condition = self.gated[name].facts.images_cached.as_ref();
        condition.map_or("", |condition| &condition.reason)
    }

    pub(super) fn untaint(&mut self, name: &NodeName, uid: &str, taints: &[PlacedTaint]) {
        self.write_node(name, uid, |facts| {
            for placed in taints.iter().rev() {
                let known = facts.taints.get(placed.index);
                if known
                    .is_none_or(|known| known.key != *placed.key || known.effect != *placed.effect)
                {
                    return Err(WriteError::Conflict);
                }
                facts.taints.remove(placed.index);
            }
            Ok(())
        });
    }

    pub(super) fn condition_written(
        &mut self,
        name: &NodeName,
        uid: &str,
        condition: &ConditionWrite,
    ) {
        let before = self.gate_reason(&name.0).to_owned();
        let reason = condition.reason;
        self.log
            .push(format!("condition {name} {}", reason.as_str()));
        self.write_node(name, uid, |facts| {
            let known = facts.images_cached.as_ref();
            let known = known.and_then(|known| GateReason::parse(&known.status, &known.reason));
            let same = known.is_some_and(|known| known.status() == reason.status());
            assert_eq!(condition.transition, !same, "{before}");
            facts.images_cached = Some(NodeCondition {
                status: reason.status().to_owned(),
                reason: reason.as_str().to_owned(),
            });
            Ok(())
        });
    }

    fn write_node(
        &mut self,
        name: &NodeName,
        uid: &str,
        change: impl FnOnce(&mut NodeFacts) -> Result<(), WriteError>,
    ) {
        let object = self.gated.get_mut(&*name.0).unwrap();
        object.tries += 1;
        let mut facts = object.facts.clone();
        let result = if object.refuses {
            Err(WriteError::Failed("as planned".to_owned()))
        } else if facts.uid != uid {
            Err(WriteError::Conflict)
        } else {
            change(&mut facts)
        };
        if result.is_ok() {
            object.writes += 1;
            object.facts = facts.clone();
        }
        let seen = result.is_ok() && !object.unseen;
        self.handle(Event::NodeWritten(name.clone(), result));
        if seen {
            self.handle(Event::NodeApplied(name.clone(), facts));
        }
    }
}
