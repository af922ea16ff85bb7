//! Requests to the router, and its answers.

use axum::body::{Body, to_bytes};
use http::{Request, header};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{
    body::{BODY, MAX_BODY, MOST_MEMORY, cost},
    *,
};

fn review(images: &[&str]) -> String {
    review_of("CREATE", images, &Value::Null)
}

fn review_of(operation: &str, images: &[&str], old: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u1",
            "kind": {"group": "kubefledged.io", "version": "v1alpha2", "kind": "ImageCache"},
            "resource": {
                "group": "kubefledged.io", "version": "v1alpha2", "resource": "imagecaches",
            },
            "name": "imagecache1",
            "namespace": "kube-fledged",
            "operation": operation,
            "userInfo": {"username": "me"},
            "object": {
                "apiVersion": "kubefledged.io/v1alpha2",
                "kind": "ImageCache",
                "metadata": {"name": "imagecache1"},
                "spec": {"cacheSpec": [{"images": images}]},
            },
            "oldObject": old,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
    .to_string()
}

fn rules() -> Rules {
    Rules {
        most_images: 100_000,
        access: kubefledged_api_types::WorkloadAccess::default(),
    }
}

async fn call(request: Request<Body>) -> (StatusCode, String) {
    let metrics = Metrics::register(&mut Registry::default());
    let router = router(Readiness::default(), metrics, rules());
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn send(body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post("/validate-image-cache?timeout=5s")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap();
    call(request).await
}

async fn response_of(body: impl Into<Body>) -> Value {
    let (status, text) = send(body).await;
    assert_eq!(status, StatusCode::OK);
    let review: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(review["kind"], "AdmissionReview");
    review["response"].clone()
}

#[tokio::test]
async fn a_good_object_is_allowed_under_the_uid_of_its_request() {
    let response = response_of(review(&["a:1"])).await;
    assert_eq!(response["uid"], "u1");
    assert_eq!(response["allowed"], true);
    assert!(response.get("warnings").is_none());
    assert!(response.get("patch").is_none());
}

#[tokio::test]
async fn a_bad_object_is_refused_in_kube_fledgeds_words() {
    for (images, message) in [
        (
            &[][..],
            "spec.cacheSpec[0].images: No images specified within image list",
        ),
        (
            &["a:1", "a:1"],
            "spec.cacheSpec[0].images[1]: Duplicate image names within image list: a:1",
        ),
        (
            &["UPPER/case:x"],
            "spec.cacheSpec[0].images[0]: invalid image reference \"UPPER/case:x\": \
             the repository must be lower case",
        ),
    ] {
        let response = response_of(review(images)).await;
        assert_eq!(response["allowed"], false);
        assert_eq!(response["status"]["message"], message);
    }
}

#[tokio::test]
async fn an_update_of_a_broken_object_may_leave_it_as_it_was() {
    let broken = ["a:1", "a:1"];
    let created: Value = serde_json::from_str(&review(&broken)).unwrap();
    let old = &created["request"]["object"];
    for (images, allowed) in [
        (&broken[..], true),
        (&["a:1", "a:1", "b:1"], true),
        (&["a:1", "a:1", "UPPER/case:x"], false),
    ] {
        let response = response_of(review_of("UPDATE", images, old)).await;
        assert_eq!(response["allowed"], allowed, "{images:?}");
    }
}

#[tokio::test]
async fn warnings_come_with_an_allowed_object() {
    let response = response_of(review(&["a"])).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["warnings"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_does_not_parse_is_answered_with_a_sentence() {
    let no_request = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#;
    let beta = review(&["a:1"]).replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    for (body, sentence) in [
        ("", "the body is not an AdmissionReview"),
        ("{", "the body is not an AdmissionReview"),
        ("[]", "the body is not an AdmissionReview"),
        ("\u{e9}", "the body is not an AdmissionReview"),
        (no_request, "the AdmissionReview has no request"),
        (
            &beta,
            "the body is AdmissionReview of admission.k8s.io/v1beta1",
        ),
    ] {
        let (status, text) = send(body.to_owned()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(text.starts_with(sentence), "{body}: {text}");
    }
}

#[tokio::test]
async fn a_deeply_nested_body_is_refused_and_not_followed() {
    let (status, _) = send("[".repeat(100_000)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_beyond_three_mebibytes_is_too_large() {
    let (status, _) = send(" ".repeat(MAX_BODY + 1)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, _) = send(" ".repeat(MAX_BODY)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_whose_values_would_take_all_memory_is_refused_before_they_do() {
    for part in ["1,", "{},", "[],", "\"\":{},"] {
        let body = part.repeat(MAX_BODY / part.len());
        let (status, text) = send(body).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{part}");
        assert!(text.contains("more values"), "{text}");
    }
}

#[test]
fn the_largest_objects_have_room() {
    // 400,000 bytes of names, twice each in two objects, and as much that is owed.
    let names: Vec<String> = (0..10_000)
        .map(|i| format!("registry.corp/team/app:{i:0>16}"))
        .collect();
    let owed: Vec<Value> = (0..10_000)
        .map(|i| json!({"name": format!("r.corp/a:{i}"), "since": "2026-01-01T00:00:00Z"}))
        .collect();
    let object = json!({
        "spec": {"cacheSpec": [{"images": names}]},
        "status": {"appliedImages": names, "owed": owed},
    });
    let review = json!({"object": object, "oldObject": object}).to_string();
    assert!(review.len() < MAX_BODY, "{}", review.len());
    assert!(cost(review.as_bytes()) < MOST_MEMORY);
}

#[test]
fn what_is_quoted_costs_nothing() {
    let text = br#""[[,{\"{{{,""#;
    assert_eq!(cost(text), text.len());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up_and_holds_up_nobody() {
    let router = router(
        Readiness::default(),
        Metrics::register(&mut Registry::default()),
        rules(),
    );
    let from = |address: [u8; 4], body: Body| {
        let mut request = Request::post(VALIDATE_PATH).body(body).unwrap();
        let peer = ConnectInfo(SocketAddr::from((address, 1)));
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    };
    let silent = || Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
    let began = tokio::time::Instant::now();
    let held: Vec<_> = (0..20)
        .map(|_| tokio::spawn(from([10, 0, 0, 1], silent())))
        .collect();
    tokio::task::yield_now().await;
    let answer = from([10, 0, 0, 2], Body::from(review(&["a:1"]))).await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    assert!(
        began.elapsed() < Duration::from_millis(100),
        "{:?}",
        began.elapsed()
    );
    // One gave way; the others had two seconds, for their body or for a place.
    for task in held {
        let status = task.await.unwrap().unwrap().status().as_u16();
        assert!(matches!(status, 408 | 503), "{status}");
    }
    let longest = BODY + body::PLACE + Duration::from_millis(10);
    assert!(began.elapsed() <= longest, "{:?}", began.elapsed());
}

#[tokio::test]
async fn only_posts_and_only_known_paths_are_answered() {
    let get = Request::get(VALIDATE_PATH).body(Body::empty()).unwrap();
    assert_eq!(call(get).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let other = Request::post("/validate").body(Body::empty()).unwrap();
    assert_eq!(call(other).await.0, StatusCode::NOT_FOUND);
    let readyz = Request::get("/readyz").body(Body::empty()).unwrap();
    assert_eq!(call(readyz).await, (StatusCode::OK, "ok\n".to_owned()));
}

#[tokio::test]
async fn readyz_waits_for_what_is_pending() {
    let readiness = Readiness::default();
    let _guard = readiness.register("certificate");
    let router = router(
        readiness,
        Metrics::register(&mut Registry::default()),
        rules(),
    );
    let request = Request::get("/readyz").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn requests_are_counted_by_what_came_of_them() {
    let mut registry = kubefledged_process::metrics::registry("1");
    kubefledged_process::tls::Failures::register(&mut registry).example();
    let router = router(
        Readiness::default(),
        Metrics::register(&mut registry),
        rules(),
    );
    for body in [
        review(&["a:1"]),
        review(&["a:1"]),
        review(&[]),
        String::new(),
    ] {
        let request = Request::post(VALIDATE_PATH).body(Body::from(body)).unwrap();
        router.clone().oneshot(request).await.unwrap();
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"kubefledged_webhook_requests_total{result="allowed"} 2"#,
        r#"kubefledged_webhook_requests_total{result="refused"} 1"#,
        r#"kubefledged_webhook_requests_total{result="malformed"} 1"#,
        "kubefledged_webhook_request_duration_seconds_count 4",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    kubefledged_testkit::assert_documented("webhook", &registry);
}
