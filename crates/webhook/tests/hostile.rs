//! Whatever reaches the webhook's port. `make fuzz` tries a million.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use kubefledged_process::Readiness;
use kubefledged_webhook::{
    handlers::{VALIDATE_PATH, router},
    metrics::Metrics,
};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt as _;

const ANYTHING: &str =
    "[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{202e}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\ä漢😀-]{0,30}";
/// The apiserver cuts beyond 256 characters, and asks for no more than this.
const LONGEST_WARNING: usize = 120;
/// What a terminal shows.
const LONGEST_REFUSAL: usize = 10_000;

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

fn short() -> impl Strategy<Value = Value> + Clone {
    prop_oneof![
        4 => like("[a-z]{1,3}(:[0-9])?").prop_map(Value::from),
        4 => like(ANYTHING).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([[{}]])),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    let long = (like(ANYTHING), 0_usize..200);
    prop_oneof![11 => short(), 1 => long.prop_map(|(text, times)| Value::from(text.repeat(times)))]
}

fn object() -> impl Strategy<Value = Value> {
    let images = prop_oneof![
        9 => proptest::collection::vec(text(), 0..6).prop_map(Value::from),
        1 => text(),
        1 => (short(), 0_usize..300).prop_map(|(text, times)| Value::from(vec![text; times])),
    ];
    let list = (images, text(), text()).prop_map(|(images, key, value)| {
        let key = key.as_str().unwrap_or_default().to_owned();
        json!({"images": images, "nodeSelector": {key: value}})
    });
    let lists =
        prop_oneof![9 => proptest::collection::vec(list, 0..4).prop_map(Value::from), 1 => text()];
    let more = proptest::collection::btree_map(
        like(
            "(refresh|serviceAccountName|suspend|imagePullSecrets|minReadyNodes|retention|metadata)",
        ),
        text(),
        0..2,
    );
    let spec = (lists, more).prop_map(|(lists, more)| {
        let mut spec = json!({ "cacheSpec": lists });
        spec.as_object_mut().unwrap().extend(more);
        spec
    });
    let spec = prop_oneof![9 => spec, 1 => text()];
    (spec, text(), 0_u8..20).prop_map(|(spec, name, shape)| match shape {
        0 => Value::Null,
        1 => json!({"metadata": name, "spec": spec}),
        2 => json!({"metadata": {"name": name, "deletionTimestamp": name}, "spec": spec}),
        _ => json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": name.as_str().unwrap_or("a")}, "spec": spec,
        }),
    })
}

fn review() -> impl Strategy<Value = Value> {
    let operation =
        prop_oneof![9 => like("(CREATE|UPDATE)"), 1 => like("(DELETE|CONNECT|[a-z]{2})")];
    let kind = prop_oneof![9 => Just("ImageCache"), 1 => Just("Pod")];
    let word = |right: &'static str| prop_oneof![19 => Just(Value::from(right)), 1 => text()];
    (word("admission.k8s.io/v1"), word("AdmissionReview"), operation, kind, object(), object(), text())
        .prop_map(|(version, review, operation, kind, object, old, name)| {
            json!({
                "apiVersion": version, "kind": review,
                "request": {
                    "uid": "u1", "name": name.as_str().unwrap_or("a"), "namespace": "ns", "operation": operation,
                    "kind": {"group": "kubefledged.io", "version": "v1alpha2", "kind": kind},
                    "resource": {"group": "kubefledged.io", "version": "v1alpha2", "resource": "imagecaches"},
                    "userInfo": {"username": name}, "object": object, "oldObject": old,
                },
            })
        })
}

/// A review, or some bytes of one with another in between.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let change = proptest::option::weighted(0.15, (any::<prop::sample::Index>(), any::<u8>()));
    (review(), change).prop_map(|(review, change)| {
        let mut body = review.to_string().into_bytes();
        if let Some((at, put)) = change {
            let at = at.index(body.len());
            if put < 128 {
                body.truncate(at);
            } else {
                body[at] = put;
            }
        }
        body
    })
}

fn ask(
    runtime: &tokio::runtime::Runtime,
    router: &axum::Router,
    body: Vec<u8>,
) -> (StatusCode, Vec<u8>) {
    runtime.block_on(async {
        let request = Request::post(VALIDATE_PATH).header("content-type", "application/json");
        let response = router
            .clone()
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let status = response.status();
        (
            status,
            to_bytes(response.into_body(), usize::MAX)
                .await
                .unwrap()
                .to_vec(),
        )
    })
}

fn can_be_shown(text: &str, most: usize) -> bool {
    text.len() <= most && !text.contains(char::is_control)
}

#[test]
fn every_body_is_answered_in_sentences_that_can_be_shown() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let router = router(
        Readiness::default(),
        Metrics::register(&mut Registry::default()),
        kubefledged_webhook::admission::Rules {
            most_images: 100_000,
            access: kubefledged_api_types::WorkloadAccess::default(),
        },
    );
    proptest!(|(body in body())| {
        let (status, answer) = ask(&runtime, &router, body);
        if status == StatusCode::BAD_REQUEST {
            let sentence = String::from_utf8(answer).unwrap();
            prop_assert!(can_be_shown(sentence.trim_end(), LONGEST_REFUSAL), "{sentence:?}");
            return Ok(());
        }
        prop_assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let response = &answer["response"];
        prop_assert_eq!(&response["uid"], "u1");
        let allowed = response["allowed"].as_bool().unwrap();
        let refusal = response["status"]["message"].as_str().unwrap_or_default();
        prop_assert_eq!(refusal.is_empty(), allowed, "{:?}", response);
        prop_assert!(can_be_shown(refusal, LONGEST_REFUSAL), "{refusal:?}");
        for warning in response["warnings"].as_array().into_iter().flatten() {
            prop_assert!(can_be_shown(warning.as_str().unwrap(), LONGEST_WARNING), "{warning:?}");
        }
    });
}
