//! Converts the engine's reasons to those of docs/debug.md.

use kubefledged_engine::{Ineligible, PullBlock, PullReason, RemovalBlock, Tick, view::PlanStep};
use kubefledged_proto::debug::Action;

/// Why a node gets no images: word, and what to do.
pub fn ineligible(why: Ineligible) -> (&'static str, &'static str) {
    match why {
        Ineligible::Unknown => (
            "Unknown",
            "a puller runs there, but the API server has no such Node",
        ),
        Ineligible::Excluded => (
            "Excluded",
            "it has the label kubefledged.io/exclude: remove the label, or set it to \"false\"",
        ),
        Ineligible::Virtual => ("Virtual", "a virtual node has no container runtime"),
        Ineligible::OtherSystem => ("OtherSystem", "images are cached on Linux nodes only"),
        Ineligible::NoPullerPlanned => (
            "NoPullerPlanned",
            "the pullers' DaemonSet does not select it, or does not tolerate its taints: see puller.nodeSelector, puller.affinity and puller.tolerations",
        ),
        Ineligible::NotReady => (
            "NotReady",
            "its condition Ready is not True: see kubectl describe node",
        ),
        Ineligible::Cordoned => (
            "Cordoned",
            "it is cordoned: kubectl uncordon makes it eligible again",
        ),
        Ineligible::Tainted => (
            "Tainted",
            "it has a taint for disk pressure, shutdown or removal: see kubectl describe node",
        ),
    }
}

pub fn why(why: PullReason) -> &'static str {
    match why {
        PullReason::Missing => "Missing",
        PullReason::Newer => "Newer",
        PullReason::FreshnessProbe => "FreshnessProbe",
        PullReason::Retry => "Retry",
        PullReason::Pin => "Pin",
    }
}

/// Returns action and reason, and when the reason ends by itself.
pub fn step(step: &PlanStep) -> (Action, &str, Option<Tick>) {
    match step {
        PlanStep::Pull(Ok(reason)) => (Action::Pull, why(*reason), None),
        PlanStep::Pull(Err(reason)) => block(reason),
        PlanStep::Remove(Ok(())) => (Action::Remove, "NotDesired", None),
        PlanStep::Remove(Err(reason)) => removal_block(reason),
    }
}

pub fn block(reason: &PullBlock) -> (Action, &'static str, Option<Tick>) {
    match reason {
        PullBlock::Ineligible(why) => (Action::Stuck, ineligible(*why).0, None),
        PullBlock::NoPuller => (Action::Wait, "NoPuller", None),
        PullBlock::NodeBackOff(at) => (Action::Wait, "NodeBackOff", Some(*at)),
        PullBlock::Suspended => (Action::Stuck, "Suspended", None),
        PullBlock::NotRecorded => (Action::Wait, "NotRecorded", None),
        PullBlock::InvalidName => (Action::Stuck, "InvalidName", None),
        PullBlock::Present => (Action::None, "Present", None),
        PullBlock::Pulling => (Action::Wait, "Pulling", None),
        PullBlock::Removing => (Action::Wait, "Removing", None),
        PullBlock::NotChecked => (Action::Check, "NotChecked", None),
        PullBlock::BackOff(at) => (Action::Wait, "BackOff", Some(*at)),
        PullBlock::UntilRefresh => (Action::Stuck, "UntilRefresh", None),
        PullBlock::LostAtLevel(_) => (Action::Wait, "LostAtLevel", None),
        PullBlock::LossBackOff(at) => (Action::Wait, "LossBackOff", Some(*at)),
        PullBlock::ProbeInFlight => (Action::Wait, "ProbeInFlight", None),
        PullBlock::ProbeFailed => (Action::Wait, "ProbeFailed", None),
        PullBlock::CredentialsUnavailable(at) => {
            (Action::Wait, "CredentialsUnavailable", Some(*at))
        }
        PullBlock::RefreshBegins => (Action::Wait, "RefreshBegins", None),
        PullBlock::NodeLimit => (Action::Wait, "NodeLimit", None),
        PullBlock::BatchLimit => (Action::Wait, "BatchLimit", None),
        PullBlock::RegistryBudget => (Action::Wait, "RegistryBudget", None),
        PullBlock::AwaitsSource(at) => (Action::Wait, "AwaitsSource", Some(*at)),
        PullBlock::FromPeers => (Action::Wait, "FromPeers", None),
    }
}

fn removal_block(reason: &RemovalBlock) -> (Action, &str, Option<Tick>) {
    match reason {
        RemovalBlock::Uncallable(reason) => block(reason),
        RemovalBlock::Suspended => (Action::Stuck, "Suspended", None),
        RemovalBlock::NotRecorded => (Action::Wait, "NotRecorded", None),
        RemovalBlock::WorkloadsUnread => (Action::Wait, "WorkloadsUnread", None),
        RemovalBlock::Desired => (Action::None, "Desired", None),
        RemovalBlock::Pulling => (Action::Wait, "Pulling", None),
        RemovalBlock::Removing => (Action::Wait, "Removing", None),
        RemovalBlock::Gone => (Action::None, "Gone", None),
        RemovalBlock::Kept(reason, at) => (Action::Wait, reason.as_str(), Some(*at)),
        RemovalBlock::Failed(reason, at) => (Action::Wait, reason, Some(*at)),
    }
}
