//! Decides about a written `ImageCache`, with the same rules and the same parser as the controller.
//! This module is pure.

use std::collections::BTreeMap;

use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, Operation},
};
use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, names, one_line,
    validation::{Violation, new_violations, violations},
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
pub fn judge(request: &AdmissionRequest<DynamicObject>, most_images: usize) -> Verdict {
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
    let mut broken = match old.map(spec_of) {
        Some(Ok(old)) => new_violations(&old, &spec),
        Some(Err(_)) | None => violations(&spec),
    };
    broken.extend(size::violation(object, old, &spec));
    broken.extend(too_many(&spec, most_images));
    Verdict {
        refusal: refusal(&broken),
        warnings: warnings(&spec),
    }
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

fn warnings(spec: &ImageCacheSpec) -> Vec<String> {
    let lists = spec.cache_spec.iter().enumerate();
    let mut all: Vec<String> = lists.flat_map(|(l, list)| list_warnings(l, list)).collect();
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
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn object(spec: &Value) -> Value {
        json!({
            "apiVersion": "kubefledged.io/v1alpha2",
            "kind": "ImageCache",
            "metadata": {"name": "imagecache1", "namespace": "kube-fledged"},
            "spec": spec,
        })
    }

    fn images(lists: &[&[&str]]) -> Value {
        let lists: Vec<Value> = lists.iter().map(|list| json!({"images": list})).collect();
        object(&json!({ "cacheSpec": lists }))
    }

    fn request(operation: &str, old: &Value, new: &Value) -> AdmissionRequest<DynamicObject> {
        serde_json::from_value(json!({
            "uid": "u1",
            "kind": {"group": "kubefledged.io", "version": "v1alpha2", "kind": "ImageCache"},
            "resource":
                {"group": "kubefledged.io", "version": "v1alpha2", "resource": "imagecaches"},
            "operation": operation,
            "userInfo": {},
            "object": new,
            "oldObject": old,
        }))
        .unwrap()
    }

    fn create(object: &Value) -> Verdict {
        judge(&request("CREATE", &Value::Null, object), 100_000)
    }

    fn update(old: &Value, new: &Value) -> Verdict {
        judge(&request("UPDATE", old, new), 100_000)
    }

    #[test]
    fn a_good_object_is_allowed_without_a_word() {
        assert_eq!(
            create(&images(&[&["a:1", "b:1"], &["a:1"]])),
            Verdict::default()
        );
    }

    #[test]
    fn violations_are_named_in_kube_fledgeds_words_and_joined() {
        assert_eq!(
            create(&images(&[&[], &["a:1", "a:1"]])).refusal.as_deref(),
            Some(
                "spec.cacheSpec[0].images: No images specified within image list; \
                 spec.cacheSpec[1].images[1]: Duplicate image names within image list: a:1"
            )
        );
    }

    #[test]
    fn a_long_list_of_violations_ends_in_a_count() {
        let lists = vec![&[][..]; 25];
        let refusal = create(&images(&lists)).refusal.unwrap();
        assert_eq!(refusal.split("; ").count(), 21);
        assert!(refusal.ends_with("; and 5 more"), "{refusal}");
    }

    #[test]
    fn an_update_may_keep_what_was_broken_but_break_nothing_new() {
        let old = images(&[&["a:1", "a:1"]]);
        let added = images(&[&["a:1", "a:1", "b:1"]]);
        assert_eq!(update(&old, &added).refusal, None);
        let broken = images(&[&["a:1", "a:1"], &[]]);
        assert_eq!(
            update(&old, &broken).refusal.as_deref(),
            Some("spec.cacheSpec[1].images: No images specified within image list")
        );
    }

    #[test]
    fn selectors_and_the_number_of_lists_may_change() {
        let old = object(&json!({"cacheSpec": [{"images": ["a:1"], "nodeSelector": {"a": "b"}}]}));
        let new = images(&[&["a:1"], &["b:1"]]);
        assert_eq!(update(&old, &new), Verdict::default());
    }

    #[test]
    fn an_unchanged_spec_is_not_judged() {
        let mut labelled = images(&[&[]]);
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(update(&images(&[&[]]), &labelled), Verdict::default());
    }

    #[test]
    fn an_object_that_is_being_deleted_is_not_judged() {
        let mut leaving = images(&[&[]]);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(update(&images(&[&["a:1"]]), &leaving), Verdict::default());
    }

    #[test]
    fn other_operations_and_kinds_are_none_of_our_business() {
        let deletion = request("DELETE", &images(&[&[]]), &Value::Null);
        assert_eq!(judge(&deletion, 100_000), Verdict::default());
        let mut pod = request("CREATE", &Value::Null, &json!({"metadata": {}, "spec": {}}));
        pod.kind.group = String::new();
        pod.kind.kind = "Pod".to_owned();
        assert_eq!(judge(&pod, 100_000), Verdict::default());
    }

    #[test]
    fn a_spec_that_does_not_parse_is_refused_with_what_is_wrong() {
        let verdict = create(&object(&json!({"cacheSpec": 1})));
        let refusal = verdict.refusal.unwrap();
        assert!(
            refusal.starts_with("the spec is not that of an ImageCache: invalid type"),
            "{refusal}"
        );
        assert!(create(&object(&Value::Null)).refusal.is_some());
    }

    #[test]
    fn an_old_spec_that_does_not_parse_excuses_nothing() {
        let verdict = update(&object(&json!({"cacheSpec": 1})), &images(&[&[]]));
        assert!(verdict.refusal.is_some());
    }

    #[test]
    fn images_that_may_change_or_are_written_twice_are_warned_of() {
        let pinned = format!("d:1@sha256:{HEX}");
        let verdict = create(&images(&[&[
            "a",
            "b:latest",
            "c:1",
            &pinned,
            "docker.io/library/c:1",
        ]]));
        assert_eq!(verdict.refusal, None);
        assert_eq!(
            verdict.warnings,
            [
                "spec.cacheSpec[0].images[0]: a means :latest, which may change: write a tag"
                    .to_owned(),
                "spec.cacheSpec[0].images[1]: b:latest may change: write another tag or a digest"
                    .to_owned(),
                format!(
                    "spec.cacheSpec[0].images[3]: {}... has a tag and a digest: the tag is ignored",
                    &pinned[..45]
                ),
                "spec.cacheSpec[0].images[4]: docker.io/library/c:1 is the same image as c:1"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn one_image_in_two_lists_is_no_reason_to_warn() {
        assert!(
            create(&images(&[&["a:1"], &["docker.io/library/a:1"]]))
                .warnings
                .is_empty()
        );
    }

    #[test]
    fn pull_secrets_come_with_a_warning_that_the_cache_is_shared() {
        let verdict = create(&object(&json!({
            "cacheSpec": [{"images": ["a:1"]}],
            "imagePullSecrets": [{"name": "myregistrykey"}],
        })));
        assert_eq!(verdict.warnings.len(), 1);
        assert!(verdict.warnings[0].starts_with("spec.imagePullSecrets: "));
    }

    #[test]
    fn at_most_ten_warnings_are_given_and_the_last_counts_the_rest() {
        let names: Vec<String> = (0..30).map(|i| format!("{}{i}", "a".repeat(240))).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let warnings = create(&images(&[&names])).warnings;
        assert_eq!(warnings.len(), 10);
        assert_eq!(warnings[9], "and 21 more warnings");
        names.truncate(10);
        let warnings = create(&images(&[&names])).warnings;
        assert_eq!(warnings.len(), 10);
        assert!(warnings[9].starts_with("spec.cacheSpec[0].images[9]: aaa"));
    }

    #[test]
    fn a_long_name_is_cut_and_what_is_said_of_it_is_not() {
        let long = "a".repeat(240);
        let full = format!("docker.io/library/{long}");
        for (written, end) in [
            (
                vec![&*long],
                "... means :latest, which may change: write a tag",
            ),
            (vec![&*long, &full], "..."),
            (vec![&*full, &long], "..."),
        ] {
            let warnings = create(&images(&[&written])).warnings;
            let last = warnings.last().unwrap();
            assert_eq!(last.len(), LONGEST_WARNING, "{last}");
            assert!(last.ends_with(end), "{last}");
        }
        let farthest = "spec.cacheSpec[255].images[4095]";
        let text = warning(farthest, &long, "is the same image as ", "a:1");
        assert_eq!(text.len(), LONGEST_WARNING);
        assert!(text.ends_with("... is the same image as a:1"), "{text}");
    }

    #[test]
    fn the_warning_about_pull_secrets_is_short_enough() {
        let spec = json!({"cacheSpec": [{"images": ["a:1"]}], "imagePullSecrets": [{"name": "s"}]});
        let warnings = create(&object(&spec)).warnings;
        assert!(warnings[0].len() <= LONGEST_WARNING, "{warnings:?}");
    }

    #[test]
    fn a_refusal_goes_back_as_forbidden_with_the_uid_of_the_request() {
        let request = request("CREATE", &Value::Null, &images(&[&[]]));
        let response = judge(&request, 100_000).into_response(&request);
        assert!(!response.allowed);
        assert_eq!(response.uid, "u1");
        assert_eq!(response.result.code, 403);
        assert_eq!(
            response.result.message,
            "spec.cacheSpec[0].images: No images specified within image list"
        );
        assert_eq!(response.warnings, None);
    }

    #[test]
    fn more_images_than_a_namespace_may_name_are_refused_with_the_numbers() {
        let lists = json!([{"images": ["a:1", "b:1"]}, {"images": ["a:1"]}]);
        let object = json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": "a", "namespace": "n"}, "spec": {"cacheSpec": lists},
        });
        let of = |most| judge(&request("CREATE", &Value::Null, &object), most).refusal;
        assert_eq!(of(3), None);
        let why = of(2).unwrap();
        assert!(why.contains("3 images, and 2 are allowed"), "{why}");
    }
}
