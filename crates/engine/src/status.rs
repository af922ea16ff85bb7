//! What a cache's status says, computed whole from its state.

use std::collections::BTreeMap;

use kubefledged_api_types::{
    Failure, ImageCacheStatus, Timestamp,
    conditions::{self, Condition, Degraded, Progressing, Ready},
    names::failure,
    status::{ImageCounts, MAX_FAILURE_MESSAGE, MAX_FAILURES},
};

use crate::{
    cache::{Cache, CellState, Kind},
    images::Images,
    node::Node,
};

/// The status as it should be. `previous` keeps transition times of conditions.
pub fn project(cache: &Cache, nodes: &[Node], images: &Images, now: Timestamp) -> ImageCacheStatus {
    let previous = &cache.object.status;
    let told = &cache.told;
    let mut status = ImageCacheStatus {
        status: told.status.clone(),
        reason: told.reason.clone(),
        message: told.message.clone(),
        start_time: told.started,
        completion_time: told.completed,
        observed_generation: Some(cache.object.generation),
        last_refresh_time: cache.refreshed,
        last_handled_refresh: cache.handled_refresh.clone(),
        last_handled_purge: cache.handled_purge.clone(),
        purge: cache.purge.clone(),
        applied_images: cache.applied_status(),
        ..ImageCacheStatus::default()
    };
    if cache.first_round {
        // What was written stays until the first round is complete.
        status.conditions.clone_from(&previous.conditions);
        status.nodes = previous.nodes;
        status.images = previous.images;
        status.ready.clone_from(&previous.ready);
        status.last_check_time = previous.last_check_time;
        status.failures.clone_from(&previous.failures);
        status.failure_count = previous.failure_count;
        status.failures_truncated = previous.failures_truncated;
        return status;
    }
    let counts = &cache.counts;
    status.nodes = Some(counts.nodes);
    status.images = Some(ImageCounts {
        kept: cache.kept(),
        ..counts.images
    });
    status.ready = format!("{}/{}", counts.nodes.ready, counts.nodes.desired);
    status.last_check_time = cache
        .cells
        .iter()
        .filter(|cell| cell.state != CellState::Out)
        .filter_map(|cell| cell.looked_at)
        .min();
    failures(cache, nodes, images, &mut status);
    status.conditions = [ready(cache), progressing(cache), degraded(cache)]
        .into_iter()
        .map(|verdict| condition(verdict, previous, cache.object.generation, now))
        .collect();
    status
}

/// Whether the difference is worth a write. The time of the last look alone is not, as long as it
/// is not much older than what is written.
pub fn differs(
    desired: &ImageCacheStatus,
    known: &ImageCacheStatus,
    check_interval_secs: i64,
) -> bool {
    let stale = match (desired.last_check_time, known.last_check_time) {
        (Some(new), Some(old)) => (new.0 - old.0).abs() >= check_interval_secs,
        (new, old) => new != old,
    };
    let same_look = ImageCacheStatus {
        last_check_time: known.last_check_time,
        ..desired.clone()
    };
    stale || same_look != *known
}

struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn condition(
    verdict: Verdict,
    previous: &ImageCacheStatus,
    generation: i64,
    now: Timestamp,
) -> Condition {
    let before = previous
        .conditions
        .iter()
        .find(|condition| condition.type_ == verdict.type_ && condition.status == verdict.status);
    Condition {
        type_: verdict.type_.to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
        last_transition_time: before.map_or(now, |condition| condition.last_transition_time),
        observed_generation: Some(generation),
    }
}

fn ready(cache: &Cache) -> Verdict {
    let nodes = &cache.counts.nodes;
    let (status, reason) = if cache.purged || cache.runs(Kind::Purge) {
        ("False", Ready::Purged)
    } else if nodes.desired == 0 {
        ("True", Ready::NoEligibleNodes)
    } else if nodes.ready == nodes.desired {
        ("True", Ready::AllImagesPresent)
    } else if cache.counts.unseen == nodes.desired {
        ("Unknown", Ready::NotYetChecked)
    } else {
        ("False", Ready::ImagesMissing)
    };
    Verdict {
        type_: conditions::READY,
        status,
        reason: reason.as_str(),
        message: format!(
            "{} of {} eligible nodes hold every image",
            nodes.ready, nodes.desired
        ),
    }
}

fn progressing(cache: &Cache) -> Verdict {
    let nodes = &cache.counts.nodes;
    let reason = if cache.runs(Kind::Purge) {
        Progressing::Purging
    } else if cache.runs(Kind::Refresh) {
        Progressing::Refreshing
    } else if nodes.pulling > 0 || cache.operation.is_some() {
        Progressing::Pulling
    } else if cache
        .owed
        .values()
        .any(|owed| owed.kept.is_empty() && owed.failed.is_empty())
    {
        Progressing::Removing
    } else if nodes.pending > 0 {
        Progressing::WaitingForNodes
    } else {
        Progressing::Idle
    };
    Verdict {
        type_: conditions::PROGRESSING,
        status: if reason == Progressing::Idle {
            "False"
        } else {
            "True"
        },
        reason: reason.as_str(),
        message: format!("{} nodes pulling, {} waiting", nodes.pulling, nodes.pending),
    }
}

fn degraded(cache: &Cache) -> Verdict {
    let counts = &cache.counts;
    let (reason, message) = if counts.nodes.failed > 0 {
        (
            Degraded::PullFailed,
            format!(
                "{} nodes miss an image that could not be pulled",
                counts.nodes.failed
            ),
        )
    } else if counts.nodes.unreachable > 0 {
        (
            Degraded::PullerUnavailable,
            format!(
                "the puller of {} nodes does not answer",
                counts.nodes.unreachable
            ),
        )
    } else if counts.failing > 0 {
        (
            Degraded::RefreshFailed,
            format!("{} present images could not be refreshed", counts.failing),
        )
    } else if cache.owed.values().any(|owed| !owed.failed.is_empty()) {
        (
            Degraded::RemovalFailed,
            "images could not be removed".to_owned(),
        )
    } else if cache.abandoned {
        (
            Degraded::RemovalAbandoned,
            "nodes that did not answer for 24h still hold images that are no longer wanted"
                .to_owned(),
        )
    } else {
        (Degraded::None, String::new())
    };
    Verdict {
        type_: conditions::DEGRADED,
        status: if reason == Degraded::None {
            "False"
        } else {
            "True"
        },
        reason: reason.as_str(),
        message,
    }
}

/// Failures by image, spread over the images when there are too many.
fn failures(cache: &Cache, nodes: &[Node], images: &Images, status: &mut ImageCacheStatus) {
    let mut found: BTreeMap<String, Vec<Failure>> = BTreeMap::new();
    let mut total = 0_i64;
    let mut note = |image: &str, node: &Node, reason: &str, text: &str| {
        total += 1;
        let list = found.entry(image.to_owned()).or_default();
        if list.len() < MAX_FAILURES {
            list.push(Failure {
                node: node.hostname(),
                reason: reason.to_owned(),
                message: cut(text, MAX_FAILURE_MESSAGE),
            });
        }
    };
    for (cell, node) in cache.cells.iter().zip(nodes) {
        if cell.state == CellState::Out
            || (cell.failing == 0 && cell.state != CellState::Unreachable)
        {
            continue;
        }
        let Some(facts) = &node.facts else { continue };
        for want in cache.wants(facts) {
            if let Some(why) = &images.get(want.image).invalid {
                note(&want.reference, node, failure::INVALID_IMAGE_NAME, why);
            } else if let Some(attempt) = node.attempts.get(&(want.image, cache.scope.clone())) {
                let secrets = missing_secrets(cache);
                note(
                    &want.reference,
                    node,
                    &attempt.reason,
                    &format!("{}{secrets}", attempt.message),
                );
            } else if cell.state == CellState::Unreachable {
                let text =
                    "the puller of this node does not answer: see the DaemonSet kubefledged-puller";
                note(&want.reference, node, failure::PULLER_UNAVAILABLE, text);
            }
        }
    }
    for owed in cache.owed.values() {
        for (node, failed) in &owed.failed {
            note(
                &owed.reference,
                &nodes[*node],
                &failed.reason,
                &failed.message,
            );
        }
    }
    if total > 0 {
        status.failure_count = Some(total);
        status.failures = spread(found);
        let shown: usize = status.failures.values().map(Vec::len).sum();
        status.failures_truncated = (shown as u64 != total.unsigned_abs()).then_some(true);
    }
}

fn missing_secrets(cache: &Cache) -> String {
    if cache.missing_secrets.is_empty() {
        return String::new();
    }
    format!(
        " (tried without imagePullSecrets {}: not found)",
        cache.missing_secrets.join(", ")
    )
}

/// At most [`MAX_FAILURES`] in all, one of each image before a second of any.
fn spread(found: BTreeMap<String, Vec<Failure>>) -> BTreeMap<String, Vec<Failure>> {
    let mut left = MAX_FAILURES;
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let longest = found.values().map(Vec::len).max().unwrap_or(0);
    for round in 0..longest {
        for (image, list) in &found {
            if left > 0 && list.len() > round {
                *taken.entry(image.clone()).or_default() += 1;
                left -= 1;
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(image, mut list)| {
            list.truncate(*taken.get(&image)?);
            Some((image, list))
        })
        .collect()
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
