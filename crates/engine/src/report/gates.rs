//! The node gate: what is written to Node objects. What is wrong there is written, whoever made it so; a new leader
//! decides nothing as warm before it has checked the node.

use kubefledged_api_types::GateReason;

use super::causes::plural;
use crate::{
    commit::{Engine, timers::Timer},
    ids::{IdSet, ImageId, NodeIdx},
    model::{
        Model,
        cache::Cache,
        gate::{GateWrite, must_write},
    },
    plan::{context::NodeView, pairs::SILENT},
    vocabulary::{
        CacheKey, Command, ConditionWrite, MissingImage, NodeName, NodeTransition, Now, WriteError,
    },
};

impl Engine {
    /// Decides whether a node is held, and writes what is wrong on its Node object. Call it when the node's statuses
    /// were computed anew.
    pub(crate) fn advance_gate(&mut self, idx: NodeIdx, now: Now) {
        let model = &mut self.model;
        if !model.settings.gate.is_on() {
            return;
        }
        let mut rows = model.caches.values().map(|cache| cache.row(idx).gate);
        let reason = rows.try_fold(GateReason::NothingToCache, |all, one| Some(all.max(one?)));
        let node = &mut model.nodes[idx];
        node.gate.reason = reason;
        let Some(reason) = reason.filter(|_| !node.gate.writer.is_busy()) else {
            return;
        };
        let Some(write) = due(model, idx, reason, now) else {
            return;
        };
        let node = &mut model.nodes[idx];
        if let Some(at) = node.gate.writer.waits(write, now.tick) {
            self.agenda.timers.set(Timer::Gate(idx), Some(at));
        } else if model.gate_writes.take(idx, reason.holds()) {
            node.gate.writer.begin(write);
            let command = command(model, idx, write, now);
            self.agenda.outbox.extend(command);
        }
    }

    /// A write to a Node was answered.
    pub(crate) fn node_written(
        &mut self,
        now: Now,
        name: &NodeName,
        result: Result<(), WriteError>,
    ) {
        let Some(idx) = self.model.nodes.find(name) else {
            return;
        };
        if !self.model.nodes[idx].gate.writer.is_busy() {
            return;
        }
        let next = self.model.gate_writes.give_back(idx);
        self.agenda.nodes.extend(next);
        self.agenda.nodes.insert(idx);
        match result {
            Ok(()) => self.gate_written(idx, now),
            Err(error) => {
                let node = &mut self.model.nodes[idx];
                let spread = node.spread(self.model.settings.seed, b"gate");
                let conflict = error == WriteError::Conflict;
                node.gate.writer.failed(conflict, now.tick, spread);
            }
        }
    }

    /// Notes what was written. An Event tells once that the node was held and is released without its images.
    fn gate_written(&mut self, idx: NodeIdx, now: Now) {
        let node = &mut self.model.nodes[idx];
        let Some(facts) = &node.facts else {
            return;
        };
        let writer = &mut node.gate.writer;
        let known = writer.condition(&facts.gate, now.tick);
        let reason = match writer.done(&facts.gate, now.tick) {
            Some(GateWrite::Taints) => node.gate.reason,
            // A condition that was not there held nobody that we know of.
            Some(GateWrite::Condition(reason)) => {
                Some(reason).filter(|_| known.is_some_and(GateReason::holds))
            }
            None => None,
        };
        let Some(reason) = reason.filter(|reason| reason.is_fail_open() && !writer.reported) else {
            return;
        };
        writer.reported = true;
        let Some(node) = node.name.clone() else {
            return;
        };
        let (first, more) = missing(&self.model, idx, now);
        self.agenda.outbox.push(Command::NodeTransition {
            node,
            transition: NodeTransition::Released {
                reason,
                first,
                more,
            },
            emit: self.releases.take(now.tick),
        });
    }
}

/// The write that the Node needs first; `None`: it is as it must be.
fn due(model: &Model, idx: NodeIdx, reason: GateReason, now: Now) -> Option<GateWrite> {
    let node = &model.nodes[idx];
    let facts = &node.facts.as_ref()?.gate;
    let writer = &node.gate.writer;
    if !reason.holds() && writer.tainted(facts, now.tick) {
        return Some(GateWrite::Taints);
    }
    let known = writer.condition(facts, now.tick);
    let wrong = model.settings.gate.condition && must_write(known, reason);
    wrong.then_some(GateWrite::Condition(reason))
}

fn command(model: &Model, idx: NodeIdx, write: GateWrite, now: Now) -> Option<Command> {
    let node = &model.nodes[idx];
    let facts = &node.facts.as_ref()?.gate;
    let (node, uid, known) = (
        node.name.clone()?,
        facts.uid.clone(),
        node.gate.writer.condition(facts, now.tick),
    );
    Some(match write {
        GateWrite::Taints => Command::RemoveTaints {
            node,
            uid,
            taints: facts.taints.to_vec(),
        },
        GateWrite::Condition(reason) => Command::WriteNodeCondition {
            node,
            uid,
            condition: ConditionWrite {
                reason,
                message: message(model, idx, reason, now),
                at: now.wall,
                transition: known.is_none_or(|known| known.status() != reason.status()),
            },
        },
    })
}

/// Caches that gate nodes, in the order of their names.
fn gating(model: &Model) -> impl Iterator<Item = (&CacheKey, &Cache)> {
    let caches = model.caches.by_key().iter();
    let caches = caches.map(|(key, at)| (key, &model.caches[*at]));
    caches.filter(|(_, cache)| cache.gates_nodes())
}

/// The message of the condition. Numbers are those of the moment of the write: nothing is written only for them.
fn message(model: &Model, idx: NodeIdx, reason: GateReason, now: Now) -> String {
    let mut desired: IdSet<ImageId> = IdSet::default();
    for (_, cache) in gating(model) {
        desired.union_with(&cache.set(idx).images);
    }
    let (present, all) = (
        model.nodes[idx].observed.count_present(&desired),
        desired.len(),
    );
    match reason {
        GateReason::NothingToCache => "no ImageCache requires images on this node".to_owned(),
        GateReason::ImagesCached => {
            format!(
                "all {} that ImageCaches require are on the node",
                plural(all, "image")
            )
        }
        GateReason::ImagesMissing | GateReason::Pulling => {
            format!(
                "{present} of {all} images that ImageCaches require were on the node at this heartbeat"
            )
        }
        GateReason::PullerUnavailable => SILENT.to_owned(),
        GateReason::PullFailed
        | GateReason::ReleasedAfterFailure
        | GateReason::ReleasedByTimeout => match missing(model, idx, now) {
            (Some(first), more) => first.sentence(more),
            (None, _) => "the images on the node are not known yet".to_owned(),
        },
    }
}

/// The first image that a gating cache misses on a node, one whose pull failed if there is any, and how many more there
/// are. `None`: the node was not checked.
fn missing(model: &Model, idx: NodeIdx, now: Now) -> (Option<MissingImage>, usize) {
    let view = NodeView::new(model, idx, now.tick);
    let mut all: Vec<MissingImage> = Vec::new();
    let mut seen: IdSet<ImageId> = IdSet::default();
    for (key, cache) in gating(model) {
        if cache.row(idx).gate.is_none() {
            continue;
        }
        for desired in &cache.set(idx).desired {
            if view.node.observed.holds(desired.image) || seen.contains(desired.image) {
                continue;
            }
            seen.insert(desired.image);
            let fault = view.pair(desired, view.unreachable()).fault;
            all.push(MissingImage {
                cache: key.clone(),
                image: desired.reference.clone(),
                failure: fault.map(|fault| (fault.reason().into(), fault.message().into())),
            });
        }
    }
    let more = all.len().saturating_sub(1);
    let failed = all.iter().position(|image| image.failure.is_some());
    (all.into_iter().nth(failed.unwrap_or(0)), more)
}
