//! The node gate in the World: Nodes with taints and conditions, and the writes to them.

use std::{collections::BTreeMap, sync::Arc};

use kubefledged_api_types::{Timestamp, names::IMAGES_NOT_CACHED_TAINT};
use kubefledged_engine::{
    Event as EngineEvent, GateSettings, NodeCondition, NodeFacts, NodeName, Taint, WriteError,
};

use crate::{
    api::Resource,
    controller::{DAWN, Write},
    registry::PAUSE,
    runtime::Runtime,
    script::{Action, SourceKey, Trouble},
    world::{Event, World},
};

/// Key of a taint that somebody else sets and removes.
pub const OTHERS: &str = "example.com/others";
/// Key of a taint that nobody removes.
const LASTING: &str = "example.com/lasting";
/// `--node-gate-timeout`, in seconds.
const TIMEOUT: u64 = 300;

/// What the node gate did and has to do.
#[derive(Debug, Default)]
pub struct Gates {
    /// When writes to each Node were asked for.
    pub writes: BTreeMap<NodeName, Vec<u64>>,
    /// Since when each node is held although it is not to be, in the eyes of this controller.
    pub held_since: BTreeMap<(usize, NodeName), u64>,
    /// Since when nothing has been wrong.
    pub quiet_since: Option<u64>,
    /// Since when nothing has been wrong with the API server.
    pub api_since: Option<u64>,
}

/// A taint that keeps pods away.
pub fn taint(key: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

impl World {
    /// The API server's clock.
    pub fn wall(&self) -> Timestamp {
        Timestamp(DAWN + i64::try_from(self.now / 1000).unwrap_or(i64::MAX))
    }

    /// Flags of the controllers.
    pub fn gate_settings(&self) -> GateSettings {
        GateSettings {
            condition: self.script.gated,
            taint: self.script.gated.then(|| IMAGES_NOT_CACHED_TAINT.into()),
            timeout: std::time::Duration::from_secs(TIMEOUT),
        }
    }

    /// Taints of a Node that joins.
    pub fn first_taints(&self) -> Vec<Taint> {
        let all = [LASTING, IMAGES_NOT_CACHED_TAINT, OTHERS];
        let all = all.into_iter().filter(|_| self.script.gated);
        all.map(taint).collect()
    }

    /// What people and machines do to Nodes that matters to the gate.
    pub fn act_on_gate(&mut self, action: &Action) {
        match *action {
            Action::Rejoin(node, wiped) => self.rejoin(node, wiped),
            Action::Taint(node, on) => self.facts(node, |facts| {
                facts.taints.retain(|taint| taint.key != OTHERS);
                if on {
                    facts.taints.insert(0, taint(OTHERS));
                }
            }),
            Action::Retaint(node) => self.facts(node, |facts| {
                facts
                    .taints
                    .retain(|taint| taint.key != IMAGES_NOT_CACHED_TAINT);
                facts.taints.push(taint(IMAGES_NOT_CACHED_TAINT));
            }),
            Action::DropCondition(node) => self.facts(node, |facts| facts.images_cached = None),
            _ => {}
        }
    }

    /// A machine that left comes back as another Node.
    fn rejoin(&mut self, node: usize, wiped: bool) {
        if self.nodes[node].facts.is_some() {
            return;
        }
        if wiped {
            let flavor = self.nodes[node].runtime.flavor;
            let pause = self.registries.manifest(PAUSE);
            self.nodes[node].runtime = Runtime::new(flavor, &pause);
            self.nodes[node].left = false;
        }
        self.join(node);
    }

    /// A write to a Node reaches the API server.
    pub fn node_write_arrives(&mut self, who: usize, life: u32, write: &Write) {
        let (Write::Untaint(name, uid, _) | Write::Condition(name, uid, _)) = write else {
            return;
        };
        let (result, wait) = self.answered(who, |world| world.node_written(name, uid, write));
        self.note(|| format!("write of c{who} to {name}: {result:?}"));
        let answer = EngineEvent::NodeWritten(name.clone(), result);
        self.after(wait, Event::Tell(who, life, Box::new(answer)));
    }

    /// What the API server does with a write to a Node.
    fn node_written(
        &mut self,
        name: &NodeName,
        uid: &Arc<str>,
        write: &Write,
    ) -> Result<(), WriteError> {
        let index = self.nodes.iter().position(|node| node.name == *name);
        let Some((index, before)) = index.and_then(|at| Some((at, self.nodes[at].facts.clone()?)))
        else {
            return Err(WriteError::Gone);
        };
        if *before.uid != **uid || self.hits(Trouble::Conflicts, 40) {
            return Err(WriteError::Conflict);
        }
        let mut facts = before.clone();
        change(&mut facts, write)?;
        self.check_others(name, &before, &facts);
        let text = format!("{facts:?}");
        self.absorb_bytes(text.as_bytes());
        self.nodes[index].facts = Some(facts.clone());
        self.put((SourceKey::Nodes, name.to_string()), Resource::Node(facts));
        Ok(())
    }
}

/// As the JSON patch and the strategic merge patch of the real effects do.
fn change(facts: &mut NodeFacts, write: &Write) -> Result<(), WriteError> {
    match write {
        Write::Untaint(_, _, taints) => {
            for placed in taints.iter().rev() {
                let known = facts.taints.get(placed.index);
                let same = known.is_some_and(|known| {
                    *known.key == *placed.key && *known.effect == *placed.effect
                });
                if !same {
                    return Err(WriteError::Conflict);
                }
                facts.taints.remove(placed.index);
            }
        }
        Write::Condition(_, _, condition) => {
            facts.images_cached = Some(NodeCondition {
                status: condition.reason.status().to_owned(),
                reason: condition.reason.as_str().to_owned(),
            });
        }
        _ => {}
    }
    Ok(())
}
