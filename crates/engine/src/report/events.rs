//! Kubernetes Events on `ImageCaches`.

use kubefledged_api_types::{
    ImageCacheStatus,
    conditions::{DEGRADED, Degraded, READY, STALLED},
};

use super::{causes::plural, conditions};
use crate::{
    model::{
        cache::Cache,
        last_operation::{Announcement, Phase},
    },
    vocabulary::{Command, Severity},
};

/// Most names that one Event lists.
const MAX_NAMES: usize = 10;

/// An Event on a cache.
pub fn event(
    cache: &Cache,
    severity: Severity,
    reason: &str,
    action: &str,
    message: String,
) -> Command {
    Command::EmitEvent {
        key: cache.object.key.clone(),
        uid: cache.object.uid.clone(),
        severity,
        reason: reason.to_owned(),
        action: action.to_owned(),
        message,
    }
}

/// The Events for changes of the status that was written: one when an operation begins, one when it ends, and one when
/// lists turn out to match nothing or when images vanish.
pub fn announce(cache: &mut Cache) -> Vec<Command> {
    let now = Announcement::of(&cache.object.status);
    if now == cache.writer.announced {
        return Vec::new();
    }
    let before = std::mem::replace(&mut cache.writer.announced, now);
    let (now, written) = (&cache.writer.announced, &cache.object.status);
    let mut events = Vec::new();
    if (&now.phase, now.started) != (&before.phase, before.started) && now.phase != Phase::None {
        let severity = if now.phase == Phase::Failed {
            Severity::Warning
        } else {
            Severity::Normal
        };
        // Begin and end of an operation differ in their action; otherwise the API would merge them.
        let (reason, action) = (&written.reason, &written.status);
        events.push(event(cache, severity, reason, action, told(written)));
    }
    let listed = |list: &u32| before.unmatched.iter().flatten().any(|known| known == list);
    if now.unmatched.iter().flatten().any(|list| !listed(list)) {
        let lists = conditions::no_match(cache);
        let reason = Degraded::NoNodeMatches.as_str();
        events.push(event(cache, Severity::Warning, reason, "Matching", lists));
    }
    if now.losing && !before.losing {
        let text = said(written, DEGRADED).unwrap_or_default().to_owned();
        let reason = Degraded::LostToGarbageCollection.as_str();
        events.push(event(cache, Severity::Warning, reason, "Checking", text));
    }
    events
}

/// The message of a status, with its numbers or its cause.
fn told(status: &ImageCacheStatus) -> String {
    let message = &status.message;
    let detail = match Phase::parse(&status.status) {
        Phase::Succeeded => Some(numbers(status)),
        Phase::Failed | Phase::NothingDone => [STALLED, DEGRADED, READY]
            .iter()
            .find_map(|type_| said(status, type_))
            .map(str::to_owned),
        _ => None,
    };
    match detail {
        Some(detail) if !detail.is_empty() => format!("{message}: {detail}"),
        _ => message.clone(),
    }
}

/// The message of a condition that tells of trouble; `None`: it tells of none.
fn said<'a>(status: &'a ImageCacheStatus, type_: &str) -> Option<&'a str> {
    let trouble = if type_ == READY { "False" } else { "True" };
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|known| known.type_ == type_ && known.status == trouble)?;
    Some(&found.message)
}

/// How much an operation that succeeded is about: "48 nodes, 5 images, 12.4 GB, 38 s".
fn numbers(status: &ImageCacheStatus) -> String {
    let nodes = status.nodes.unwrap_or_default().ready;
    let images = status.applied_images.iter();
    let images = images.filter(|image| image.since.is_none()).count();
    let took = status.start_time.zip(status.completion_time);
    let took = took.map(|(start, end)| format!("{} s", end.0 - start.0));
    let size = status.images.as_ref().filter(|images| images.bytes > 0);
    let held = (nodes > 0).then(|| {
        let counts = [plural(nodes, "node"), plural(images, "image")];
        let size = size.map(|images| images.size.clone());
        counts.into_iter().chain(size)
    });
    let parts: Vec<String> = held.into_iter().flatten().chain(took).collect();
    parts.join(", ")
}

/// The Event for removals that will not be done, because the object is deleted.
pub fn removals_dropped(cache: &Cache) -> Command {
    let pending = &cache.applied.pending;
    let names = pending.values().take(MAX_NAMES);
    let names: Vec<&str> = names.map(|pending| &*pending.reference).collect();
    let text = format!(
        "the object is deleted with its images retained: {} names that were still to be removed stay on nodes, among them {}",
        pending.len(),
        names.join(", ")
    );
    event(cache, Severity::Warning, "RemovalDropped", "Deleting", text)
}
