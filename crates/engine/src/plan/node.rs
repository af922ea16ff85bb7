//! Plans one node: what no cache desires any more ends, then names are removed, images checked, and images pulled.

use super::{
    checks::CheckDecision,
    context::{NodeContext, NodeView},
    node_plan::{NodePlan, PlannedCancel},
    pulls,
    status::Assessor,
};
use crate::{
    ids::CacheIdx,
    model::{in_flight::Task, node_status::Epochs},
};

/// Plans a node.
pub fn plan(view: &NodeView<'_>, mut context: NodeContext) -> NodePlan {
    let mut plan = NodePlan::default();
    if let Some(at) = view.node.checks.next {
        plan.wake_at(at);
    }
    let stale = stale(view, &mut plan);
    match view.node.contact.not_before {
        _ if !view.node.callable() => {}
        Some(at) if at > view.now => plan.wake_at(at),
        _ => plan_calls(view, &stale, &mut context, &mut plan),
    }
    let assessor = Assessor {
        view,
        context: &context,
        plan: &plan,
    };
    let statuses: Vec<_> = stale
        .into_iter()
        .map(|at| (at, assessor.status(at)))
        .collect();
    for wake in statuses.iter().filter_map(|(_, status)| status.wake) {
        plan.wake_at(wake);
    }
    plan.statuses = statuses;
    plan.wake = plan.wake.filter(|at| *at > view.now);
    plan
}

/// Caches that compute the node's status anew: they or the node have changed, or the time has come.
fn stale(view: &NodeView<'_>, plan: &mut NodePlan) -> Vec<CacheIdx> {
    let mut stale = Vec::new();
    for (at, cache) in view.model.caches.iter() {
        let status = cache.row(view.idx);
        let epochs = Epochs {
            node: view.node.epoch,
            cache: cache.nodes.epoch,
        };
        match status.wake {
            _ if status.epochs != epochs => stale.push(at),
            Some(wake) if wake <= view.now => stale.push(at),
            Some(wake) => plan.wake_at(wake),
            None => {}
        }
    }
    let peers = &view.node.peers;
    if stale.is_empty() || peers.waits.is_empty() && peers.offers.is_empty() {
        return stale;
    }
    // An image that the plan does not name waits for no other node any more.
    view.model.caches.iter().map(|(at, _)| at).collect()
}

fn plan_calls(
    view: &NodeView<'_>,
    stale: &[CacheIdx],
    context: &mut NodeContext,
    plan: &mut NodePlan,
) {
    plan.cancel = cancels(view, context);
    let runtime = &view.node.runtime;
    if let Some(at) = runtime.pin_retry_at
        && at > view.now
        && !runtime.pins.is_empty()
        && !context.removal
    {
        plan.wake_at(at);
    }
    plan.remove = view.plan_removal(context);
    if let Some(removal) = &plan.remove {
        context.removal = true;
        context.removing.extend(removal.images.iter().copied());
    }
    match view.plan_check(stale, context) {
        CheckDecision::None | CheckDecision::ReportAt(None) => {}
        CheckDecision::ReportAt(Some(at)) => plan.wake_at(at),
        CheckDecision::Now(check) => {
            context.check = true;
            plan.check = Some(check);
        }
    }
    pulls::plan(view, stale, context, plan);
}

/// Pulls in flight that no cache desires on this node any more, and all of them while the kubelet says that the
/// disk is full: they would have it remove images and pods.
fn cancels(view: &NodeView<'_>, context: &NodeContext) -> Vec<PlannedCancel> {
    let flights = view.node.in_flight.iter();
    let flights = flights.filter_map(|id| Some((*id, view.model.in_flight.get(*id)?)));
    let pressure = view
        .node
        .facts
        .as_ref()
        .is_some_and(|facts| facts.disk_pressure);
    let mut cancels = Vec::new();
    for (batch, flight) in flights {
        let Task::Pull(pull) = &flight.task else {
            continue;
        };
        let undesired = pull.images.iter().enumerate().filter(|(_, image)| {
            let ends = pressure || !context.desired.contains(image.id);
            image.open && !image.cancelled && ends
        });
        let (images, references): (Vec<_>, Vec<_>) = undesired
            .map(|(at, image)| (at, image.reference.clone()))
            .unzip();
        if !images.is_empty() {
            cancels.push(PlannedCancel {
                batch,
                images,
                references,
            });
        }
    }
    cancels
}
