//! The conditions Ready, Progressing and Degraded: what is true of a cache now.

use kubefledged_api_types::{
    NodeShare, Timestamp,
    conditions::{self, Condition, Degraded, Progressing, Ready},
};

use crate::model::{Model, cache::Cache, node_status::Flags, operation::Kind};

/// A condition without its times.
struct Finding {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// All three conditions.
pub fn all(model: &Model, cache: &Cache, now: Timestamp) -> Vec<Condition> {
    let findings = [ready(cache), progressing(cache), degraded(model, cache)];
    findings
        .into_iter()
        .map(|finding| condition(finding, cache, now))
        .collect()
}

/// All three conditions, while nothing is known yet and nothing was written before.
pub fn unknown(cache: &Cache, now: Timestamp) -> Vec<Condition> {
    let message = || "the nodes are being checked".to_owned();
    let findings = [
        Finding {
            type_: conditions::READY,
            status: Ready::Unknown.status(),
            reason: Ready::Unknown.as_str(),
            message: message(),
        },
        progressing(cache),
        Finding {
            type_: conditions::DEGRADED,
            status: "Unknown",
            reason: Degraded::None.as_str(),
            message: message(),
        },
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

fn ready(cache: &Cache) -> Finding {
    let nodes = &cache.nodes.counts.nodes;
    let desired = u64::try_from(nodes.desired).unwrap_or(0);
    let ready = u64::try_from(nodes.ready).unwrap_or(0);
    let enough = cache
        .spec()
        .min_ready_nodes
        .unwrap_or(NodeShare::Percent(100))
        .of(desired);
    let reason = if cache.history.purged || cache.runs(Kind::Purge) || cache.object.deleting {
        Ready::Purged
    } else if desired == 0 {
        Ready::NoEligibleNodes
    } else if ready == desired {
        Ready::AllImagesPresent
    } else if ready >= enough {
        Ready::EnoughNodesReady
    } else if cache.nodes.counts.flagged(Flags::UNCHECKED) == nodes.desired {
        Ready::NotYetChecked
    } else {
        Ready::ImagesMissing
    };
    Finding {
        type_: conditions::READY,
        status: reason.status(),
        reason: reason.as_str(),
        message: format!(
            "{ready} of {desired} eligible nodes hold every image, {enough} are needed"
        ),
    }
}

fn progressing(cache: &Cache) -> Finding {
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
    } else if cache.operation.is_some() {
        Progressing::Pulling
    } else if flagged(Flags::REMOVALS_OPEN) {
        Progressing::Removing
    } else {
        Progressing::Idle
    };
    Finding {
        type_: conditions::PROGRESSING,
        status: reason.status(),
        reason: reason.as_str(),
        message: format!("{} nodes pulling, {} waiting", nodes.pulling, nodes.pending),
    }
}

fn degraded(model: &Model, cache: &Cache) -> Finding {
    let (reason, message) = cause(model, cache);
    Finding {
        type_: conditions::DEGRADED,
        status: reason.status(),
        reason: reason.as_str(),
        message,
    }
}

/// The first cause that holds. Causes that keep images away come before those that only threaten them.
fn cause(model: &Model, cache: &Cache) -> (Degraded, String) {
    let counts = &cache.nodes.counts;
    let nodes = &counts.nodes;
    let flagged = |flag| counts.flagged(flag);
    if cache.writer.oversize.is_some() {
        let text = "the API server does not store an object of this size, so that the names of its images cannot be recorded and new ones are not pulled: split the lists over several ImageCaches, or use shorter names";
        return (Degraded::StatusTooLarge, text.to_owned());
    }
    let mut scopes = cache.desired.scopes.iter();
    if let Some(outage) = scopes.find_map(|scope| model.names.scopes.outage(*scope)) {
        return (Degraded::CredentialsUnavailable, outage.message.clone());
    }
    if flagged(Flags::LOSING) > 0 {
        let text = format!(
            "{} nodes lose images repeatedly, soon after they were pulled: the kubelet's garbage collection removes images that no pod has used (imageMaximumGCAge, imageGCHighThresholdPercent); set spec.retention to Pinned or change the kubelet's configuration",
            flagged(Flags::LOSING)
        );
        return (Degraded::LostToGarbageCollection, text);
    }
    if flagged(Flags::DISK) > 0 {
        let text = format!(
            "the image file system of {} nodes is too full",
            flagged(Flags::DISK)
        );
        return (Degraded::DiskPressure, text);
    }
    if nodes.failed > 0 {
        let text = format!(
            "{} nodes lack an image that could not be pulled",
            nodes.failed
        );
        return (Degraded::PullFailed, text);
    }
    if nodes.unreachable > 0 {
        let text = format!("the puller of {} nodes does not answer", nodes.unreachable);
        return (Degraded::PullerUnavailable, text);
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
    if flagged(Flags::UNPINNABLE) > 0 {
        let text = format!(
            "the container runtime of {} nodes does not let us protect images",
            flagged(Flags::UNPINNABLE)
        );
        return (Degraded::RetentionUnsupported, text);
    }
    (Degraded::None, String::new())
}
