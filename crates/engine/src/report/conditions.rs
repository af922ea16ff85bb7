//! The conditions of a cache: what is true of it now. Ready, Progressing and Degraded are for people and scripts;
//! Reconciling and Stalled say the same to tools that know no `ImageCache` (kstatus: Flux, Helm 4, kpt).

use std::collections::BTreeMap;

use kubefledged_api_types::{
    NodeShare, Timestamp,
    conditions::{self, Condition, Degraded, Progressing, Ready, Stalled},
};

use super::{
    causes::{self, Causes, Group, plural},
    reading,
};
use crate::{
    model::{
        Model, cache::Cache, facts::Facts, node_status::Flags, operation::Kind, source::Reading,
    },
    vocabulary::Ineligible,
};

/// Most lists that one message names.
const NAMED_LISTS: usize = 3;
const TOO_LARGE: &str = "the API server does not store an object of this size, so that the names of its images cannot be recorded and new ones are not pulled: split the lists over several ImageCaches, or use shorter names";

/// A condition without its times.
struct Finding {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// All conditions.
pub fn all(model: &Model, cache: &Cache, causes: &Causes<'_>, now: Timestamp) -> Vec<Condition> {
    let readiness = Readiness::of(model, cache);
    let progressing = progressing(cache, causes);
    let stalled = stalled(cache, &readiness, causes);
    let reconciling = if stalled.is_none() && is_reconciling(cache, &readiness) {
        Some(reconciling(cache, &readiness, &progressing, causes))
    } else {
        None
    };
    let degraded = degraded(model, cache, causes);
    let ready = readiness.condition(cache, causes);
    let findings = ready.into_iter().chain([progressing, degraded]);
    findings
        .chain(reconciling)
        .chain(stalled)
        .map(|finding| condition(finding, cache, now))
        .collect()
}

/// All conditions, while nothing is known of the spec yet.
pub fn unknown(cache: &Cache, now: Timestamp) -> Vec<Condition> {
    let finding = |type_, status, reason| Finding {
        type_,
        status,
        reason,
        message: "the nodes are being checked".to_owned(),
    };
    let ready = Ready::Unknown;
    let findings = [
        finding(conditions::READY, ready.status(), ready.as_str()),
        progressing(cache, &Causes::default()),
        finding(conditions::DEGRADED, "Unknown", Degraded::None.as_str()),
        finding(conditions::RECONCILING, "True", ready.as_str()),
    ];
    findings
        .into_iter()
        .map(|finding| condition(finding, cache, now))
        .collect()
}

fn condition(finding: Finding, cache: &Cache, now: Timestamp) -> Condition {
    let mut before = cache.object.status.conditions.iter();
    let before = before.find(|c| c.type_ == finding.type_ && c.status == finding.status);
    Condition {
        type_: finding.type_.to_owned(),
        status: finding.status.to_owned(),
        reason: finding.reason.to_owned(),
        message: finding.message,
        last_transition_time: before.map_or(now, |condition| condition.last_transition_time),
        observed_generation: Some(cache.object.generation),
    }
}

/// Whether enough nodes hold every image.
struct Readiness {
    reason: Ready,
    /// Eligible nodes.
    desired: i64,
    /// Eligible nodes that hold every image.
    ready: i64,
    /// How many must.
    needed: i64,
    /// Why matching nodes are not eligible; empty if some are.
    ineligible: String,
}

impl Readiness {
    fn of(model: &Model, cache: &Cache) -> Self {
        let nodes = &cache.nodes.counts.nodes;
        let (spec, desired, ready) = (cache.spec(), nodes.desired, nodes.ready);
        let share = spec.min_ready_nodes.unwrap_or(NodeShare::Percent(100));
        let enough = share.of(u64::try_from(desired).unwrap_or(0));
        let required = spec.require_nodes.map_or(0, i64::from);
        let needed = i64::try_from(enough).unwrap_or(i64::MAX).max(required);
        let ineligible = match desired {
            0 => ineligible_candidates(model, cache),
            _ => String::new(),
        };
        let reason = if cache.invalid.is_some() {
            Ready::CacheSpecValidationFailed
        } else if cache.desired.matches_nothing() && spec.require_nodes != Some(0) {
            Ready::NoNodeMatches
        } else if let Some(unread) = reading::unread(cache) {
            match unread {
                Reading::Unknown(_) => Ready::SourceUnavailable,
                _ => Ready::NotYetChecked,
            }
        } else if !ineligible.is_empty() {
            Ready::NodesNotEligible
        } else if desired < required {
            Ready::TooFewNodes
        } else if desired == 0 {
            Ready::NoEligibleNodes
        } else if ready == desired {
            Ready::AllImagesPresent
        } else if ready >= needed {
            Ready::EnoughNodesReady
        } else if cache.nodes.counts.flagged(Flags::UNCHECKED) == desired {
            Ready::NotYetChecked
        } else {
            Ready::ImagesMissing
        };
        Self {
            reason,
            desired,
            ready,
            needed,
            ineligible,
        }
    }

    fn holds(&self) -> bool {
        self.reason.status() == "True"
    }

    /// Can it not become ready, because too many nodes lack an image for good?
    fn is_out_of_reach(&self, cache: &Cache) -> bool {
        let stalled = cache.nodes.counts.flagged(Flags::STALLED);
        !self.holds() && stalled > 0 && self.desired - stalled < self.needed
    }

    /// The condition Ready. A purged cache has none, nor has a suspended one that is not ready: with False or Unknown
    /// kstatus would wait for it for ever, and True would be a lie.
    fn condition(&self, cache: &Cache, causes: &Causes<'_>) -> Option<Finding> {
        let reason = self.reason;
        let idle = cache.spec().suspend && !self.holds() && cache.invalid.is_none();
        (!is_purged(cache) && !idle).then(|| Finding {
            type_: conditions::READY,
            status: reason.status(),
            reason: reason.as_str(),
            message: self.message(cache, causes),
        })
    }

    fn message(&self, cache: &Cache, causes: &Causes<'_>) -> String {
        let counts = format!(
            "{} of {} hold every image, {} needed",
            self.ready,
            plural(self.desired, "eligible node"),
            match self.needed {
                1 => "1 is".to_owned(),
                needed => format!("{needed} are"),
            }
        );
        match self.reason {
            Ready::CacheSpecValidationFailed => cache.invalid.clone().unwrap_or_default(),
            Ready::NoNodeMatches => no_match(cache),
            Ready::NodesNotEligible => {
                let why = &self.ineligible;
                format!("nodes match, but none of them is eligible: {why}")
            }
            Ready::TooFewNodes => {
                format!("{counts} by spec.requireNodes, even if there are fewer nodes")
            }
            Ready::SourceUnavailable => reading::unreadable(cache).unwrap_or_default().to_owned(),
            Ready::NotYetChecked if reading::unread(cache).is_some() => {
                "the workloads that name images are being read".to_owned()
            }
            Ready::NoEligibleNodes if cache.desired.images.is_empty() => {
                "no workload names an image now".to_owned()
            }
            Ready::NoEligibleNodes => "no node matches now: the node pool is empty".to_owned(),
            _ if self.holds() => counts,
            _ => match causes.first(self.desired) {
                Some(cause) => format!("{cause}; {counts}"),
                None => counts,
            },
        }
    }
}

/// Does the cache desire nothing, because somebody asked for that?
fn is_purged(cache: &Cache) -> bool {
    cache.history.purged || cache.runs(Kind::Purge) || cache.object.deleting
}

/// Why matching nodes that can become eligible are not; empty: there are none.
fn ineligible_candidates(model: &Model, cache: &Cache) -> String {
    let mut groups: BTreeMap<Ineligible, Group<'_>> = BTreeMap::new();
    for idx in model.nodes.by_name().values() {
        let node = &model.nodes[*idx];
        let candidate = node.facts.as_ref().is_some_and(Facts::is_candidate);
        if let Err(why) = node.eligibility()
            && candidate
            && !cache.set(*idx).is_empty()
        {
            groups.entry(why).or_default().note(node);
        }
    }
    causes::ineligible(&groups)
}

/// Which lists match nothing, and with what selectors.
pub fn no_match(cache: &Cache) -> String {
    let lists = cache.desired.unmatched().map(|at| {
        let list = cache.spec().cache_spec.get(at as usize);
        let labels = list.iter().flat_map(|list| &list.node_selector);
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let affinity = list.is_some_and(|list| list.node_affinity.is_some());
        let affinity = affinity.then(|| "its nodeAffinity".to_owned());
        let selector: Vec<String> = labels.into_iter().chain(affinity).collect();
        let selector = match selector.len() {
            0 => "every node".to_owned(),
            _ => selector.join(" and "),
        };
        format!("spec.cacheSpec[{at}] ({selector})")
    });
    let lists: Vec<String> = lists.take(NAMED_LISTS).collect();
    format!(
        "no Linux node has ever matched {}: correct the selector, or write requireNodes: 0 if its nodes come later",
        lists.join(", ")
    )
}

/// What the condition Stalled says; `None`: waiting may help, or nothing is asked for.
fn stalled(cache: &Cache, readiness: &Readiness, causes: &Causes<'_>) -> Option<Finding> {
    let idle = cache.object.deleting || is_purged(cache) || cache.spec().suspend;
    let (reason, message) = if let Some(invalid) = &cache.invalid {
        (Stalled::CacheSpecValidationFailed, invalid.clone())
    } else if cache.object.deleting {
        return None;
    } else if cache.writer.oversize.is_some() {
        (Stalled::StatusTooLarge, TOO_LARGE.to_owned())
    } else if idle {
        return None;
    } else if readiness.reason == Ready::NoNodeMatches {
        (Stalled::NoNodeMatches, no_match(cache))
    } else if readiness.is_out_of_reach(cache) {
        let cause = causes.pulls(readiness.desired);
        (Stalled::PullFailed, cause.unwrap_or_default())
    } else {
        return None;
    };
    Some(Finding {
        type_: conditions::STALLED,
        status: "True",
        reason: reason.as_str(),
        message,
    })
}

/// Is the controller on its way to what the spec says, or does it wait for something that can come by itself? A create
/// or an update also waits for nodes that have images to remove or to refresh, as far as `minReadyNodes` does.
fn is_reconciling(cache: &Cache, readiness: &Readiness) -> bool {
    if let Some(operation) = &cache.operation
        && !operation.kind.pulls()
    {
        return true;
    }
    if cache.spec().suspend || is_purged(cache) {
        return false;
    }
    let mut operation = cache.operation.iter();
    let spare = readiness.desired - readiness.needed;
    let applies = operation.any(|operation| {
        let open = i64::try_from(operation.open()).unwrap_or(i64::MAX);
        operation.kind != Kind::Refresh && open > spare
    });
    applies || !readiness.holds()
}

fn reconciling(
    cache: &Cache,
    readiness: &Readiness,
    progressing: &Finding,
    causes: &Causes<'_>,
) -> Finding {
    let (reason, message) = if progressing.status == "True" {
        (progressing.reason, progressing.message.clone())
    } else {
        let message = readiness.message(cache, causes);
        (readiness.reason.as_str(), message)
    };
    Finding {
        type_: conditions::RECONCILING,
        status: "True",
        reason,
        message,
    }
}

fn progressing(cache: &Cache, causes: &Causes<'_>) -> Finding {
    let nodes = &cache.nodes.counts.nodes;
    let flagged = |flag| cache.nodes.counts.flagged(flag) > 0;
    let reason = if cache.held() {
        Progressing::Suspended
    } else if cache.operation.as_ref().is_some_and(|op| !op.kind.pulls()) {
        Progressing::Purging
    } else if cache.runs(Kind::Refresh) {
        Progressing::Refreshing
    } else if nodes.pulling > 0 {
        Progressing::Pulling
    } else if flagged(Flags::THROTTLED) {
        Progressing::Throttled
    } else if nodes.pending > 0 {
        Progressing::WaitingForNodes
    } else if flagged(Flags::REMOVALS_OPEN) {
        Progressing::Removing
    } else if cache.operation.is_some() {
        Progressing::Pulling
    } else if cache.history.purged {
        Progressing::Purged
    } else {
        Progressing::Idle
    };
    let pulling = plural(nodes.pulling, "node");
    let counts = format!("{pulling} pulling, {} waiting", nodes.pending);
    let message = match reason {
        Progressing::Purged => {
            "the images were removed on request: ask for a refresh, or change spec.cacheSpec, to bring them back"
                .to_owned()
        }
        _ => match causes.unfitness() {
            Some(unfit) => format!("{counts}: {unfit}"),
            None => counts,
        },
    };
    Finding {
        type_: conditions::PROGRESSING,
        status: reason.status(),
        reason: reason.as_str(),
        message,
    }
}

fn degraded(model: &Model, cache: &Cache, causes: &Causes<'_>) -> Finding {
    let (reason, message) = cause(model, cache, causes);
    Finding {
        type_: conditions::DEGRADED,
        status: reason.status(),
        reason: reason.as_str(),
        message,
    }
}

/// The first cause that holds. Causes that keep images away come before those that only threaten them.
fn cause(model: &Model, cache: &Cache, causes: &Causes<'_>) -> (Degraded, String) {
    let counts = &cache.nodes.counts;
    let nodes = &counts.nodes;
    let flagged = |flag| counts.flagged(flag);
    if cache.writer.oversize.is_some() {
        return (Degraded::StatusTooLarge, TOO_LARGE.to_owned());
    }
    let mut scopes = cache.desired.scopes.iter();
    if let Some(outage) = scopes.find_map(|scope| model.names.scopes.outage(*scope)) {
        return (Degraded::CredentialsUnavailable, outage.message.clone());
    }
    if let Some(losses) = causes.losses(nodes.desired) {
        return (Degraded::LostToGarbageCollection, losses);
    }
    if flagged(Flags::DISK) > 0 {
        let text = format!(
            "the image file system of {} nodes is too full",
            flagged(Flags::DISK)
        );
        return (Degraded::DiskPressure, text);
    }
    if let Some(failed) = causes.pulls(nodes.desired) {
        return (Degraded::PullFailed, failed);
    }
    if let Some(silence) = causes.silence(nodes.desired) {
        return (Degraded::PullerUnavailable, silence);
    }
    if let Some(why) = reading::unreadable(cache) {
        return (Degraded::SourceUnavailable, why.to_owned());
    }
    if let Some(beyond) = reading::beyond(cache) {
        return (Degraded::TooManyImages, beyond);
    }
    if cache.desired.unmatched().next().is_some() && cache.spec().require_nodes != Some(0) {
        return (Degraded::NoNodeMatches, no_match(cache));
    }
    if counts.failing > 0 {
        let text = format!("{} present images could not be refreshed", counts.failing);
        return (Degraded::RefreshFailed, text);
    }
    if cache.applied.removals_failed() {
        return (
            Degraded::RemovalFailed,
            "images could not be removed".to_owned(),
        );
    }
    if cache.applied.abandoned {
        let text =
            "images that are no longer desired may stay on nodes that did not answer for 24h";
        return (Degraded::RemovalAbandoned, text.to_owned());
    }
    unsupported(cache)
}

/// What the container runtimes of nodes cannot do.
fn unsupported(cache: &Cache) -> (Degraded, String) {
    let flagged = |flag| cache.nodes.counts.flagged(flag);
    if flagged(Flags::UNPINNABLE) > 0 {
        let text = format!(
            "the container runtime of {} nodes does not let us protect images",
            flagged(Flags::UNPINNABLE)
        );
        return (Degraded::RetentionUnsupported, text);
    }
    if flagged(Flags::UNMOUNTABLE) > 0 {
        let text = format!(
            "{} nodes hold OCI artifacts that their container runtime mounts as empty volumes: package them as images, or use \
             nodes with CRI-O",
            flagged(Flags::UNMOUNTABLE)
        );
        return (Degraded::ArtifactNotMountable, text);
    }
    (Degraded::None, String::new())
}
