//! Transitions of nodes: a node becomes warm, or it gets stuck. Each is emitted once, and not again while the node
//! stays so.

use std::time::Duration;

use crate::{
    commit::Engine,
    ids::NodeIdx,
    model::{Model, node::NodeState, node_status::NodeStatus},
    plan::context::{NodeContext, NodeView},
    vocabulary::{Command, NodeTransition, Now, PullState},
};

impl Engine {
    /// Notes how a node stands with all caches, and tells of a transition. Call it when the node's statuses were
    /// computed anew.
    pub(crate) fn note_transition(&mut self, idx: NodeIdx, now: Now) {
        let node = &self.model.nodes[idx];
        let before = node.state;
        let state = state_of(&self.model, idx);
        if state == before {
            return;
        }
        let joined = node.instance.joined.is_some();
        let node = &mut self.model.nodes[idx];
        node.state = state;
        match (before, state) {
            (_, NodeState::New | NodeState::Ineligible) => node.cold_since = None,
            (NodeState::Ineligible, _) => node.cold_since = Some(now.tick),
            (NodeState::New, _) if joined => node.cold_since = Some(now.tick),
            _ => {}
        }
        let Some(name) = node.name.clone() else {
            return;
        };
        let transition = match state {
            NodeState::Warm => {
                let since = node.cold_since.take();
                let after = since.map(|since| Duration::from_millis(now.tick.0 - since.0));
                if after.is_none() && before != NodeState::Stuck {
                    return;
                }
                NodeTransition::Warm { after }
            }
            NodeState::Stuck => match stuck(&self.model, idx, now) {
                Some(transition) => transition,
                None => return,
            },
            NodeState::New | NodeState::Ineligible | NodeState::Cold => return,
        };
        self.agenda.outbox.push(Command::NodeTransition {
            node: name,
            transition,
            emit: self.transitions.take(now.tick),
        });
    }
}

/// How a node stands with all caches together.
fn state_of(model: &Model, idx: NodeIdx) -> NodeState {
    if model.nodes[idx].eligibility().is_err() {
        return NodeState::Ineligible;
    }
    let (mut desired, mut ready) = (false, true);
    for NodeStatus { state, .. } in model.caches.values().map(|cache| cache.row(idx)) {
        match state {
            PullState::Failed => return NodeState::Stuck,
            PullState::NotDesired => {}
            PullState::Ready => desired = true,
            PullState::Unreachable | PullState::Pulling | PullState::Pending => {
                (desired, ready) = (true, false);
            }
        }
    }
    match (desired, ready) {
        // Nothing is desired: there is nothing to tell.
        (false, _) => model.nodes[idx].state,
        (true, true) => NodeState::Warm,
        (true, false) => NodeState::Cold,
    }
}

/// The first image that could not be pulled, and how many more there are.
fn stuck(model: &Model, idx: NodeIdx, now: Now) -> Option<NodeTransition> {
    let view = &NodeView::new(model, idx, now.tick);
    let context = &NodeContext::of(model, idx);
    let caches = model.caches.by_key().iter();
    let mut failed = caches.flat_map(|(key, at)| {
        let of = &model.caches[*at];
        let desired = of.set(idx).desired.iter();
        desired.filter_map(move |desired| {
            let (state, pair) = view.pair_state(of, desired, context);
            (state == PullState::Failed).then_some((key, desired, pair))
        })
    });
    let (cache, first, pair) = failed.next()?;
    let fault = pair.fault?;
    Some(NodeTransition::Stuck {
        cache: cache.clone(),
        image: first.reference.clone(),
        reason: fault.reason().into(),
        message: fault.message().into(),
        more: failed.count(),
    })
}
