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

fn rules(most_images: usize) -> Rules {
    Rules {
        most_images,
        access: WorkloadAccess::enabled("kube-fledged", []),
    }
}

fn create(object: &Value) -> Verdict {
    judge(&request("CREATE", &Value::Null, object), &rules(100_000))
}

fn update(old: &Value, new: &Value) -> Verdict {
    judge(&request("UPDATE", old, new), &rules(100_000))
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
    assert_eq!(judge(&deletion, &rules(100_000)), Verdict::default());
    let mut pod = request("CREATE", &Value::Null, &json!({"metadata": {}, "spec": {}}));
    pod.kind.group = String::new();
    pod.kind.kind = "Pod".to_owned();
    assert_eq!(judge(&pod, &rules(100_000)), Verdict::default());
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
fn an_edit_of_a_cache_of_artifacts_that_nodes_cannot_mount_warns() {
    let mut old = images(&[&["a:1"]]);
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
               "lastTransitionTime": "2026-11-29T12:00:00Z"})
    };
    old["status"] = json!({"conditions": [
        condition("Ready", "AllImagesPresent", ""),
        condition("Degraded", "ArtifactNotMountable", "2 nodes hold OCI artifacts"),
    ]});
    let verdict = update(&old, &images(&[&["a:2"]]));
    assert_eq!(
        verdict.warnings,
        ["ArtifactNotMountable: 2 nodes hold OCI artifacts"]
    );
    let verdict = update(&images(&[&["a:1"]]), &images(&[&["a:2"]]));
    assert!(verdict.warnings.is_empty());
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
    let response = judge(&request, &rules(100_000)).into_response(&request);
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
    let of = |most| judge(&request("CREATE", &Value::Null, &object), &rules(most)).refusal;
    assert_eq!(of(3), None);
    let why = of(2).unwrap();
    assert!(why.contains("3 images, and 2 are allowed"), "{why}");
}

#[test]
fn workloads_of_other_namespaces_are_refused_by_the_namespace_of_the_request() {
    let from = |workloads: Value| {
        object(&json!({"cacheSpec": [{"imagesFrom": [{"workloads": workloads}]}]}))
    };
    let judged = |namespace: &str, object: &Value| {
        let mut request = request("CREATE", &Value::Null, object);
        request.namespace = Some(namespace.to_owned());
        judge(&request, &rules(100_000)).refusal
    };
    assert_eq!(judged("shop", &from(json!({}))), None);
    let all = from(json!({"namespaceSelector": {"matchLabels": {"team": "shop"}}}));
    assert_eq!(judged("kube-fledged", &all), None);
    let refusal = judged("shop", &all).unwrap();
    assert!(
        refusal.starts_with(
            "spec.cacheSpec[0].imagesFrom[0].workloads.namespaceSelector: an ImageCache of namespace shop may read the \
             workloads of that namespace alone"
        ),
        "{refusal}"
    );
    assert!(
        refusal.contains("workloads.clusterScopeNamespaces"),
        "{refusal}"
    );
}

#[test]
fn an_update_may_keep_a_selector_that_was_allowed_once_and_add_none() {
    let list = |selector: Value| {
        object(
            &json!({"cacheSpec": [{"imagesFrom": [{"workloads": {"namespaceSelector": selector}}]}]}),
        )
    };
    let judged = |old: &Value, new: &Value| {
        let mut request = request("UPDATE", old, new);
        request.namespace = Some("shop".to_owned());
        judge(&request, &rules(100_000)).refusal
    };
    let stored = list(json!({}));
    let mut edited = stored.clone();
    edited["spec"]["suspend"] = json!(true);
    assert_eq!(judged(&stored, &edited), None);
    let own = object(&json!({"cacheSpec": [{"images": ["a:1"]}]}));
    assert!(judged(&own, &stored).is_some());
}
