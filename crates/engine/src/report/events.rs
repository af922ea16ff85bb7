//! Kubernetes Events on `ImageCaches`.

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

/// The Event for a change of the status that was written: one when an operation begins, one when it ends.
pub fn announce(cache: &mut Cache) -> Option<Command> {
    let written = &cache.object.status;
    let now = Announcement::of(written);
    if now == cache.writer.announced || now.phase == Phase::None {
        return None;
    }
    let severity = if now.phase == Phase::Failed {
        Severity::Warning
    } else {
        Severity::Normal
    };
    cache.writer.announced = now;
    // Begin and end of an operation differ in their action; otherwise the API would merge them.
    let written = &cache.object.status;
    let (reason, action) = (&written.reason, &written.status);
    Some(event(
        cache,
        severity,
        reason,
        action,
        written.message.clone(),
    ))
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
