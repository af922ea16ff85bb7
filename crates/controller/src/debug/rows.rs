//! The engine's rows as messages.

use std::time::Duration;

use kubefledged_api_types::{ImagePullPolicy, Timestamp};
use kubefledged_engine::{
    MovedBytes, NodeName, Now, PullState, Tick,
    view::{
        BatchKind, BatchRow, CacheDetail, CacheRow, NamingRows, NodeCacheRow, NodeDetail, PairRow,
        PlanRow, RegistryRow,
    },
};
use kubefledged_proto::debug::{
    Batch, CacheNodeImage, CacheSummary, Condition, DesiredImage, GetCacheResponse,
    GetNodeResponse, ImageCounts, ListWorkloadsResponse, NamedImage, NodeCache, NodeCounts,
    Operation, PendingRemoval, PlannedStep, Puller, Registry, State, Work,
};

use super::words;

/// Longest sentence of a runtime that goes along, in bytes: a thousand rows are one message.
const LONGEST: usize = 1024;

pub fn summary(row: &CacheRow) -> CacheSummary {
    let (nodes, images) = (&row.nodes, &row.images);
    CacheSummary {
        namespace: row.key.namespace.to_string(),
        name: row.key.name.to_string(),
        nodes: Some(NodeCounts {
            desired: counted(nodes.desired),
            ready: counted(nodes.ready),
            pulling: counted(nodes.pulling),
            failed: counted(nodes.failed),
            pending: counted(nodes.pending),
            unreachable: counted(nodes.unreachable),
        }),
        images: Some(ImageCounts {
            desired: counted(images.desired),
            ready: counted(images.ready),
        }),
        operation: Some(Operation {
            reason: row.reason.clone(),
            status: row.status.clone(),
            start_time: row.started.map(timestamp),
            completion_time: row.completed.map(timestamp),
            nodes: row.operation.map_or(0, |progress| count(progress.nodes)),
            open_nodes: row.operation.map_or(0, |progress| count(progress.open)),
        }),
    }
}

pub fn cache(detail: CacheDetail) -> GetCacheResponse {
    let conditions = detail.conditions.into_iter().map(|condition| Condition {
        r#type: condition.type_,
        status: condition.status,
        reason: condition.reason,
        message: condition.message,
        last_transition_time: Some(timestamp(condition.last_transition_time)),
    });
    let desired = detail.desired.into_iter().map(|image| DesiredImage {
        reference: image.reference.to_string(),
        list: count(image.list),
        registry: image.registry.to_string(),
        pull_policy: match image.policy {
            ImagePullPolicy::Always => "Always",
            ImagePullPolicy::IfNotPresent => "IfNotPresent",
        }
        .to_owned(),
        invalid: image.invalid.unwrap_or_default(),
    });
    let pending = detail.pending.into_iter().map(|pending| PendingRemoval {
        reference: pending.reference.to_string(),
        gone_nodes: count(pending.removed),
        kept_nodes: count(pending.kept),
        failed_nodes: count(pending.failed),
        reason: pending.reason.unwrap_or_default(),
    });
    let secrets = detail.bad_secrets.into_iter();
    GetCacheResponse {
        summary: Some(summary(&detail.row)),
        conditions: conditions.collect(),
        desired: desired.collect(),
        pending_removals: pending.collect(),
        next_refresh: detail.next_refresh.and_then(duration),
        last_refresh_time: detail.row.refreshed.map(timestamp),
        purged: detail.purged,
        unseen_nodes: counted(detail.unchecked),
        missing_secrets: secrets
            .map(|(name, why)| format!("{name}: {why}"))
            .collect(),
        observed_generation: detail.generation,
    }
}

pub fn workloads(found: NamingRows) -> ListWorkloadsResponse {
    let images = found.rows.into_iter().map(|row| NamedImage {
        kind: row.kind.to_string(),
        namespace: row.workload.namespace.to_string(),
        name: row.workload.name.to_string(),
        container: row.image.container.to_string(),
        place: row.image.place.to_string(),
        image: row.image.reference.to_string(),
        list: count(row.list),
    });
    ListWorkloadsResponse {
        images: images.collect(),
        truncated: found.truncated,
    }
}

pub fn pair(row: &PairRow, now: Now) -> CacheNodeImage {
    let (reason, message) = why(row);
    let next = match &row.plan {
        Err(block) => words::block(block).2,
        Ok(_) => None,
    };
    CacheNodeImage {
        node: row.node.to_string(),
        image: row.reference.to_string(),
        state: state(row.state).into(),
        since: row.since.map(timestamp),
        attempts: row.attempts,
        reason,
        message,
        size_bytes: row.size,
        next_attempt: next.and_then(|at| left(at, now)),
    }
}

/// What went wrong, or what it waits for.
fn why(row: &PairRow) -> (String, String) {
    if let Some(failure) = &row.failure {
        let message = cut(&failure.message);
        return (failure.reason.to_string(), message.to_owned());
    }
    let word = match &row.plan {
        _ if row.state == PullState::Ready => "",
        Ok(why) => words::why(*why),
        Err(block) => words::block(block).1,
    };
    (word.to_owned(), String::new())
}

pub fn step(row: &PlanRow, now: Now) -> PlannedStep {
    let (action, reason, until) = words::step(&row.step);
    PlannedStep {
        node: row.node.to_string(),
        namespace: row.key.namespace.to_string(),
        name: row.key.name.to_string(),
        image: row.reference.to_string(),
        action: action.into(),
        reason: reason.to_owned(),
        wait: until.and_then(|at| left(at, now)),
    }
}

pub fn node(name: &NodeName, detail: NodeDetail, now: Now) -> GetNodeResponse {
    let (reason, message) = match detail.eligibility {
        Ok(()) => ("", ""),
        Err(why) => words::ineligible(why),
    };
    let age = detail.checked.map(|at| {
        let seconds = u64::try_from(now.wall.0 - at.0).unwrap_or(0);
        Duration::from_secs(seconds)
    });
    GetNodeResponse {
        node: name.to_string(),
        eligible: detail.eligibility.is_ok(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        puller: detail.puller.map(|puller| Puller {
            instance: puller.instance.to_string(),
            address: puller.address.to_string(),
            failed_calls: detail.failed_calls,
            next_call: detail.next_call.and_then(duration),
        }),
        puller_silent: detail.silent.and_then(duration),
        inventory_age: age.and_then(duration),
        caches: detail
            .caches
            .iter()
            .map(|cache| node_cache(cache, reason))
            .collect(),
        batches: detail.batches.iter().map(batch).collect(),
        size_bytes: detail.bytes,
    }
}

fn node_cache(row: &NodeCacheRow, ineligible: &str) -> NodeCache {
    let (reason, message) = match &row.worst {
        _ if row.purged => ("Purged".to_owned(), String::new()),
        _ if !ineligible.is_empty() => (ineligible.to_owned(), String::new()),
        _ if row.desired == 0 => ("NotSelected".to_owned(), String::new()),
        Some(pair) => {
            let (reason, message) = why(pair);
            let message = if message.is_empty() {
                pair.reference.to_string()
            } else {
                format!("{}: {message}", pair.reference)
            };
            (reason, message)
        }
        None => (String::new(), String::new()),
    };
    NodeCache {
        namespace: row.key.namespace.to_string(),
        name: row.key.name.to_string(),
        state: state(row.state).into(),
        desired_images: count(row.desired),
        ready_images: count(row.present),
        failed_images: count(row.failed),
        size_bytes: row.bytes,
        reason,
        message,
    }
}

pub fn batch(row: &BatchRow) -> Batch {
    Batch {
        id: row.id.0,
        node: row.node.to_string(),
        image_caches: row.caches.iter().map(ToString::to_string).collect(),
        work: match row.kind {
            BatchKind::Pull => Work::Pull,
            BatchKind::Remove => Work::Remove,
            BatchKind::Check => Work::Check,
        }
        .into(),
        images: count(row.images),
        open_images: count(row.open),
        age: duration(row.age),
        deadline: duration(row.left),
    }
}

/// Bytes by source.
pub fn moved(moved: MovedBytes) -> kubefledged_proto::debug::MovedBytes {
    let MovedBytes {
        peers,
        registry,
        wasted,
    } = moved;
    kubefledged_proto::debug::MovedBytes {
        peers,
        registry,
        wasted,
    }
}

pub fn registry(row: &RegistryRow) -> Registry {
    Registry {
        host: row.host.to_string(),
        budget: row.budget.limit,
        in_flight: row.budget.used,
        long_in_flight: row.budget.long,
        waiting_nodes: count(row.waiting),
        last_rate_limited: row.limited.and_then(duration),
    }
}

pub fn state(state: PullState) -> State {
    match state {
        PullState::NotDesired => State::Out,
        PullState::Ready => State::Ready,
        PullState::Pulling => State::Pulling,
        PullState::Failed => State::Failed,
        PullState::Pending => State::Pending,
        PullState::Unreachable => State::Unreachable,
    }
}

pub fn state_of(state: State) -> Option<PullState> {
    match state {
        State::Out => Some(PullState::NotDesired),
        State::Ready => Some(PullState::Ready),
        State::Pulling => Some(PullState::Pulling),
        State::Failed => Some(PullState::Failed),
        State::Pending => Some(PullState::Pending),
        State::Unreachable => Some(PullState::Unreachable),
        State::Unspecified => None,
    }
}

pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.0,
        nanos: 0,
    }
}

pub fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn left(at: Tick, now: Now) -> Option<prost_types::Duration> {
    duration(Duration::from_millis(at.0.saturating_sub(now.tick.0)))
}

pub fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn counted(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
