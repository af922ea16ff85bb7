//! Converts the engine's reasons to those of docs/debug.md.

use kubefledged_engine::{Ineligible, Skip, Stays, Tick, Why, view::Step};
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

pub fn why(why: Why) -> &'static str {
    match why {
        Why::Missing => "Missing",
        Why::Newer => "Newer",
        Why::Ask => "Ask",
        Why::Retry => "Retry",
        Why::Pin => "Pin",
    }
}

/// Returns action and reason, and when the reason ends by itself.
pub fn step(step: &Step) -> (Action, &str, Option<Tick>) {
    match step {
        Step::Want(Ok(reason)) => (Action::Pull, why(*reason), None),
        Step::Want(Err(reason)) => skip(reason),
        Step::Owe(Ok(())) => (Action::Remove, "NotWanted", None),
        Step::Owe(Err(reason)) => stays(reason),
    }
}

pub fn skip(reason: &Skip) -> (Action, &'static str, Option<Tick>) {
    match reason {
        Skip::Ineligible(why) => (Action::Stuck, ineligible(*why).0, None),
        Skip::NoPuller => (Action::Wait, "NoPuller", None),
        Skip::NodeBackOff(at) => (Action::Wait, "NodeBackOff", Some(*at)),
        Skip::Suspended => (Action::Stuck, "Suspended", None),
        Skip::NotRecorded => (Action::Wait, "NotRecorded", None),
        Skip::InvalidName => (Action::Stuck, "InvalidName", None),
        Skip::Present => (Action::None, "Present", None),
        Skip::Pulling => (Action::Wait, "Pulling", None),
        Skip::Removing => (Action::Wait, "Removing", None),
        Skip::NotLookedAt => (Action::Check, "NotLookedAt", None),
        Skip::BackOff(at) => (Action::Wait, "BackOff", Some(*at)),
        Skip::UntilRefresh => (Action::Stuck, "UntilRefresh", None),
        Skip::LossBackOff(at) => (Action::Wait, "LossBackOff", Some(*at)),
        Skip::AnotherAsks => (Action::Wait, "AnotherAsks", None),
        Skip::AnotherFailed => (Action::Wait, "AnotherFailed", None),
        Skip::CredentialsUnavailable(at) => (Action::Wait, "CredentialsUnavailable", Some(*at)),
        Skip::RefreshBegins => (Action::Wait, "RefreshBegins", None),
        Skip::NodeLimit => (Action::Wait, "NodeLimit", None),
        Skip::BatchLimit => (Action::Wait, "BatchLimit", None),
        Skip::RegistryBudget => (Action::Wait, "RegistryBudget", None),
    }
}

fn stays(reason: &Stays) -> (Action, &str, Option<Tick>) {
    match reason {
        Stays::Uncallable(reason) => skip(reason),
        Stays::Suspended => (Action::Stuck, "Suspended", None),
        Stays::NotRecorded => (Action::Wait, "NotRecorded", None),
        Stays::Wanted => (Action::None, "Wanted", None),
        Stays::Pulling => (Action::Wait, "Pulling", None),
        Stays::Removing => (Action::Wait, "Removing", None),
        Stays::Gone => (Action::None, "Gone", None),
        Stays::Kept(why, at) | Stays::Failed(why, at) => (Action::Wait, why, Some(*at)),
    }
}
