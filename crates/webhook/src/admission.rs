//! Decides about a written `ImageCache`, with the same rules and the same parser as the controller.
//! This module is pure.

use std::collections::BTreeMap;

use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, Operation},
};
use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, WorkloadAccess,
    conditions::{Condition, Degraded},
    names, one_line,
    validation::{Violation, added, violations},
};
use kubefledged_image::ImageRef;
use serde::Deserialize as _;

use crate::size;

/// Maximum number of mistakes in an answer. A list may have 4,096 invalid names.
const MOST_VIOLATIONS: usize = 20;
/// Maximum length of a quoted name. A name may have 1,024 characters, and more if no schema was checked.
const LONGEST_VIOLATION: usize = 400;
/// Maximum number of warnings, including the one that counts the omitted ones. The API server drops
/// warnings beyond 4 KiB in all.
const MOST_WARNINGS: usize = 10;
/// Maximum length of a warning, as Kubernetes recommends. The API server cuts it after 256 characters.
const LONGEST_WARNING: usize = 120;

/// What an `ImageCache` may ask for in this installation.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Maximum number of image names in one `ImageCache`.
    pub most_images: usize,
    /// Whose workloads it may read.
    pub access: WorkloadAccess,
}

impl Rules {
    /// Returns all rules that a spec breaks on its own, without those about its size.
    fn violations(&self, namespace: &str, spec: &ImageCacheSpec) -> Vec<Violation> {
        let mut found = violations(spec);
        found.extend(self.access.violations(namespace, spec));
        found
    }
}

/// Answer to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the request is refused. `None` if it is allowed.
    pub refusal: Option<String>,
    /// Warnings for the user, also if the request is allowed.
    pub warnings: Vec<String>,
}

impl Verdict {
    /// Returns the answer for the API server.
    pub fn into_response(self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let Self { refusal, warnings } = self;
        let mut response = AdmissionResponse::from(request);
        if let Some(refusal) = refusal {
            response.allowed = false;
            response.result = Status::failure(&refusal, "Forbidden").with_code(403);
        }
        response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
        response
    }
}

/// Decides about a request. On CREATE all rules apply. On UPDATE old mistakes are accepted; otherwise an
/// object that was stored before a rule existed could never be edited.
///
/// A request that does not change the spec of an `ImageCache` is allowed. The webhook's configuration
/// keeps such requests away, but an edited configuration must not block a cluster.
pub fn judge(request: &AdmissionRequest<DynamicObject>, rules: &Rules) -> Verdict {
    let Some((object, old)) = written(request) else {
        return Verdict::default();
    };
    let spec = match spec_of(object) {
        Ok(spec) => spec,
        Err(error) => {
            let error = format!("the spec is not that of an ImageCache: {error}");
            return Verdict {
                refusal: Some(one_line(&error, LONGEST_VIOLATION)),
                warnings: Vec::new(),
            };
        }
    };
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let before = match old.map(spec_of) {
        Some(Ok(old)) => rules.violations(namespace, &old),
        Some(Err(_)) | None => Vec::new(),
    };
    let mut broken = added(before, rules.violations(namespace, &spec));
    broken.extend(size::violation(object, old, &spec));
    broken.extend(too_many(&spec, rules.most_images));
    Verdict {
        refusal: refusal(&broken),
        warnings: warnings(&spec, old.and_then(unmountable)),
    }
}

/// What the status says of artifacts, which only the nodes know: that volumes of them are empty.
fn unmountable(old: &DynamicObject) -> Option<String> {
    let conditions = old.data.get("status")?.get("conditions")?;
    let conditions = Vec::<Condition>::deserialize(conditions).ok()?;
    let reason = Degraded::ArtifactNotMountable.as_str();
    let mut told = conditions.into_iter().filter(|told| told.reason == reason);
    Some(format!("{reason}: {}", told.next()?.message))
}

/// The controller would not take up an object that alone names more images than its namespace may.
fn too_many(spec: &ImageCacheSpec, most: usize) -> Option<Violation> {
    let count: usize = spec.cache_spec.iter().map(|list| list.images.len()).sum();
    (count > most).then(|| Violation {
        field: "spec.cacheSpec".to_owned(),
        message: format!(
            "{count} images, and {most} are allowed in all ImageCaches of a namespace (--max-images-per-namespace)"
        ),
    })
}

/// Returns the new object and, on UPDATE, the old one. Returns `None` if there is nothing to decide.
fn written(
    request: &AdmissionRequest<DynamicObject>,
) -> Option<(&DynamicObject, Option<&DynamicObject>)> {
    let old = match request.operation {
        Operation::Create => None,
        Operation::Update => request.old_object.as_ref(),
        Operation::Delete | Operation::Connect => return None,
    };
    let object = request.object.as_ref()?;
    let ours = request.kind.group == names::GROUP && request.kind.kind == "ImageCache";
    // Taking a finalizer off must never be blocked.
    let leaving = object.metadata.deletion_timestamp.is_some();
    let same = old.is_some_and(|old| old.data.get("spec") == object.data.get("spec"));
    (ours && !leaving && !same).then_some((object, old))
}

fn spec_of(object: &DynamicObject) -> Result<ImageCacheSpec, serde_json::Error> {
    let spec = object.data.get("spec").unwrap_or(&serde_json::Value::Null);
    ImageCacheSpec::deserialize(spec)
}

fn refusal(broken: &[Violation]) -> Option<String> {
    let mut texts: Vec<String> = broken
        .iter()
        .take(MOST_VIOLATIONS)
        .map(|violation| one_line(&violation.to_string(), LONGEST_VIOLATION))
        .collect();
    if broken.len() > MOST_VIOLATIONS {
        texts.push(format!("and {} more", broken.len() - MOST_VIOLATIONS));
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// `first` comes before what the spec gives rise to.
fn warnings(spec: &ImageCacheSpec, first: Option<String>) -> Vec<String> {
    let lists = spec.cache_spec.iter().enumerate();
    let of_lists = lists.flat_map(|(l, list)| list_warnings(l, list));
    let mut all: Vec<String> = first.into_iter().chain(of_lists).collect();
    if !spec.image_pull_secrets.is_empty() {
        all.insert(
            0,
            "spec.imagePullSecrets: once cached, these images may run in any pod on their nodes, \
             with or without the secrets"
                .to_owned(),
        );
    }
    if all.len() > MOST_WARNINGS {
        let more = all.split_off(MOST_WARNINGS - 1).len();
        all.push(format!("and {more} more warnings"));
    }
    all
}

fn list_warnings(l: usize, list: &CacheSpecEntry) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (i, written) in list.images.iter().enumerate() {
        // Refused above, or stored before there was a rule.
        let Ok(image) = ImageRef::parse(written) else {
            continue;
        };
        let field = format!("spec.cacheSpec[{l}].images[{i}]");
        match seen.get(&image.normalized()) {
            Some(first) if first == written => {}
            Some(first) => found.push(warning(&field, written, "is the same image as ", first)),
            None => {
                seen.insert(image.normalized(), written);
                found.extend(advice(&image).map(|advice| warning(&field, written, advice, "")));
            }
        }
    }
    found
}

fn advice(image: &ImageRef) -> Option<&'static str> {
    match (image.tag(), image.digest()) {
        (Some(_), Some(_)) => Some("has a tag and a digest: the tag is ignored"),
        (None, None) => Some("means :latest, which may change: write a tag"),
        _ if image.is_floating() => Some("may change: write another tag or a digest"),
        _ => None,
    }
}

/// Returns `field: image text other`, and cuts the names if the warning would be too long. All names are
/// valid here and therefore ASCII, so a byte is a character.
fn warning(field: &str, image: &str, text: &str, other: &str) -> String {
    let room = LONGEST_WARNING.saturating_sub(field.len() + ": ".len() + " ".len() + text.len());
    // A short name leaves its room to the long one.
    let (image, other) = if other.len() < image.len() {
        let other = shortened(other, room / 2);
        (shortened(image, room.saturating_sub(other.len())), other)
    } else {
        let image = shortened(image, room / 2);
        let room = room.saturating_sub(image.len());
        (image, shortened(other, room))
    };
    format!("{field}: {image} {text}{other}")
}

fn shortened(name: &str, room: usize) -> String {
    const DOTS: &str = "...";
    if name.len() <= room {
        return name.to_owned();
    }
    let kept = name.chars().take(room.saturating_sub(DOTS.len()));
    kept.chain(DOTS.chars()).collect()
}

#[cfg(test)]
mod tests;
