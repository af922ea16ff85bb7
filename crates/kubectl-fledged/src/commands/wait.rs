//! Waiting for an `ImageCache` by its object alone: a tenant in CI has no other right.

use std::time::Duration;

use kubefledged_api_types::conditions::{READY, RECONCILING, STALLED};
use tokio::time::Instant;

use crate::{
    access::{Access, StoredCache},
    exit::{Exit, Failure},
    output::quantities::short,
};

/// Between two looks. The controller writes progress at most once a second.
const LOOK: Duration = Duration::from_millis(500);

/// How far an `ImageCache` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Something is under way.
    Working,
    /// It is as it should be.
    Done,
    /// It does not become ready unless somebody acts.
    Hopeless,
}

/// Reads the stage from the object, as kstatus does.
pub fn stage(cache: &StoredCache) -> Stage {
    if !cache.is_observed() {
        return Stage::Working;
    }
    if cache.is(STALLED) {
        return Stage::Hopeless;
    }
    let resting = cache.condition(READY).is_none() && cache.status.completion_time.is_some();
    let running = cache.status.completion_time.is_none() || cache.is(RECONCILING);
    if !running && (cache.is(READY) || resting) {
        Stage::Done
    } else {
        Stage::Working
    }
}

/// Looks at an `ImageCache` until `seen` has an answer.
pub async fn until(
    access: &Access,
    name: &str,
    limit: Option<Duration>,
    mut seen: impl FnMut(&StoredCache) -> Option<Exit>,
) -> Result<Exit, Failure> {
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        let cache = access.cache(name).await?;
        if let Some(exit) = seen(&cache) {
            return Ok(exit);
        }
        if end.is_some_and(|end| Instant::now() > end) {
            let time = short(limit.unwrap_or_default());
            let namespace = &access.namespace;
            return Err(Failure::Failed(format!(
                "{namespace}/{name} is not ready after {time}: kubectl fledged status {name} -n {namespace}"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: &Value) -> Stage {
        let object = json!({"metadata": {"name": "web", "generation": 3}, "status": status});
        stage(&serde_json::from_value(object).expect("an object"))
    }

    fn condition(type_: &str, status: &str) -> Value {
        json!({"type": type_, "status": status, "reason": "r", "message": "m", "lastTransitionTime": "2026-11-01T00:00:00Z"})
    }

    #[test]
    fn an_older_generation_says_nothing() {
        let ready = condition("Ready", "True");
        let done = "2026-11-01T00:00:00Z";
        let status =
            json!({"observedGeneration": 2, "conditions": [ready], "completionTime": done});
        assert_eq!(of(&status), Stage::Working);
        let status = json!({"observedGeneration": 3, "conditions": [condition("Ready", "True")], "completionTime": done});
        assert_eq!(of(&status), Stage::Done);
    }

    #[test]
    fn what_cannot_heal_is_hopeless_also_while_it_works() {
        let conditions = [condition("Ready", "False"), condition("Stalled", "True")];
        let status = json!({"observedGeneration": 3, "conditions": conditions});
        assert_eq!(of(&status), Stage::Hopeless);
    }

    #[test]
    fn a_finished_purge_is_done() {
        let status = json!({"observedGeneration": 3, "reason": "ImageCachePurge", "completionTime": "2026-11-01T00:00:00Z"});
        assert_eq!(of(&status), Stage::Done);
    }
}
