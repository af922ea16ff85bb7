//! Requests by annotation: `refresh`, and what `purge` shares with it.

use kube::api::{Patch, PatchParams};
use kubefledged_api_types::{
    Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION, reason, status},
};
use serde_json::json;

use super::wait;
use crate::{
    access::{Access, StoredCache},
    args::Request,
    exit::{Exit, Failure},
    output::{Out, note},
};

/// Requests a refresh.
pub async fn refresh(access: &Access, out: Out, args: &Request) -> Result<Exit, Failure> {
    let before = access.cache(&args.name).await?;
    let before = Before::of(&before, REFRESH_ANNOTATION, reason::REFRESH);
    annotate(access, &args.name, REFRESH_ANNOTATION).await?;
    said(out, access, args, "refresh requested")?;
    if !args.wait {
        return Ok(Exit::Good);
    }
    ended(access, args, reason::REFRESH, before).await
}

/// What was before the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The operation that answers the request begins after this time; `None`: there was none yet.
    Began(Option<Timestamp>),
    /// The same was requested already, and its operation runs: it is the answer.
    Runs,
}

impl Before {
    /// Of an object, before the annotation is written.
    pub fn of(cache: &StoredCache, annotation: &str, kind: &str) -> Self {
        let known = &cache.status;
        let mut annotations = cache.metadata.annotations.iter().flatten();
        let requested = annotations.any(|(key, value)| key == annotation && value.is_empty());
        if requested && known.status == status::PROCESSING && known.reason == kind {
            note(
                "The same was requested before and is in progress. Request it again when that has ended, if something has \
                 changed since it began.",
            );
            return Self::Runs;
        }
        Self::Began(known.start_time)
    }

    fn is_before(self, start: Option<Timestamp>) -> bool {
        match self {
            Self::Began(before) => before.is_none() || start > before,
            Self::Runs => true,
        }
    }
}

/// Prints what was requested.
pub fn said(out: Out, access: &Access, args: &Request, what: &str) -> Result<(), Failure> {
    let name = format!("imagecache.kubefledged.io/{}", args.name);
    let value = json!({"namespace": access.namespace, "name": args.name, "requested": what});
    out.one(&value, &name, &format!("{name}: {what}\n"))
}

/// Requests a purge.
pub async fn purge(access: &Access, name: &str) -> Result<(), Failure> {
    annotate(access, name, PURGE_ANNOTATION).await
}

/// An empty value is removed by the controller when the request is done, so the same request can be made again.
async fn annotate(access: &Access, name: &str, annotation: &str) -> Result<(), Failure> {
    let patch = json!({"metadata": {"annotations": {annotation: ""}}});
    let patched = access
        .caches()
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    patched
        .map(drop)
        .map_err(|error| Failure::of_kube("cannot annotate the ImageCache", &error))
}

/// Waits until an operation of this kind has ended that began after the one before.
pub async fn ended(
    access: &Access,
    args: &Request,
    kind: &str,
    before: Before,
) -> Result<Exit, Failure> {
    let seen = |cache: &StoredCache| over(cache, kind, before);
    let exit = wait::until(access, &args.name, Some(args.timeout.0), seen).await?;
    if exit != Exit::Good {
        let (name, namespace) = (&args.name, &access.namespace);
        note(&format!(
            "It failed: kubectl fledged status {name} -n {namespace}"
        ));
    }
    Ok(exit)
}

/// The result of the operation; `None`: it has not ended. Its annotation is gone when it has; a token stays.
fn over(cache: &StoredCache, kind: &str, before: Before) -> Option<Exit> {
    let ended = &cache.status;
    let annotations = cache.metadata.annotations.iter().flatten();
    let mut requests = annotations.filter(|(key, value)| {
        value.is_empty() && (*key == REFRESH_ANNOTATION || *key == PURGE_ANNOTATION)
    });
    let newer = before.is_before(ended.start_time);
    let over =
        requests.next().is_none() && ended.reason == kind && ended.status != status::PROCESSING;
    (over && newer).then(|| Exit::of(ended.status == status::SUCCEEDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(reason: &str, word: &str, annotation: bool) -> StoredCache {
        let annotations = if annotation {
            json!({REFRESH_ANNOTATION: ""})
        } else {
            json!({})
        };
        let object = json!({
            "metadata": {"name": "web", "annotations": annotations},
            "status": {"status": word, "reason": reason, "startTime": "1970-01-01T00:01:40Z"},
        });
        serde_json::from_value(object).expect("an object")
    }

    #[test]
    fn only_a_newer_operation_of_the_kind_ends_the_wait() {
        let of = |cache: &StoredCache, before| over(cache, reason::REFRESH, Before::Began(before));
        let done = cache("ImageCacheRefresh", "Succeeded", false);
        assert_eq!(of(&done, Some(Timestamp(99))), Some(Exit::Good));
        assert_eq!(of(&done, Some(Timestamp(100))), None);
        assert_eq!(
            of(&cache("ImageCacheRefresh", "Succeeded", true), None),
            None
        );
        assert_eq!(
            of(&cache("ImageCacheUpdate", "Succeeded", false), None),
            None
        );
        let failed = cache("ImageCacheRefresh", "Failed", false);
        assert_eq!(of(&failed, None), Some(Exit::NotReady));
    }

    #[test]
    fn a_token_that_stands_does_not_keep_the_wait_from_ending() {
        let mut done = cache("ImageCacheRefresh", "Succeeded", false);
        let token = (PURGE_ANNOTATION.to_owned(), "release-7".to_owned());
        done.metadata.annotations = Some([token].into());
        let ended = over(&done, reason::REFRESH, Before::Began(None));
        assert_eq!(ended, Some(Exit::Good));
    }

    #[test]
    fn the_same_request_that_runs_already_is_waited_for() {
        let of = |cache: &StoredCache| Before::of(cache, REFRESH_ANNOTATION, reason::REFRESH);
        assert_eq!(
            of(&cache("ImageCacheRefresh", "Processing", true)),
            Before::Runs
        );
        let done = cache("ImageCacheRefresh", "Succeeded", false);
        assert_eq!(over(&done, reason::REFRESH, Before::Runs), Some(Exit::Good));
        for other in [
            cache("ImageCacheRefresh", "Processing", false),
            cache("ImageCacheCreate", "Processing", true),
        ] {
            assert_eq!(of(&other), Before::Began(Some(Timestamp(100))));
        }
    }
}
