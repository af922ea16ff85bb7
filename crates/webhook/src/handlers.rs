//! The HTTP side of the webhook.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequest as _, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionReview, META_API_VERSION_V1, META_KIND},
};
use kubefledged_api_types::one_line;
use kubefledged_process::{
    Readiness,
    log::Pace,
    places::{Limits, Place, Places},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::time::timeout;

use crate::admission;

/// Path of admission requests, as in kube-fledged.
pub const VALIDATE_PATH: &str = "/validate-image-cache";

/// Maximum size of a request. An object in etcd has at most 1.5 MiB, and an update contains it twice.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// Bodies that are read or judged at a time. More of them wait, and whoever has most of them under way
/// gives way to peers that have none.
const BODIES: Limits = Limits {
    all: 4,
    per_peer: 4,
};
/// Longest wait for the whole of a body. API servers have it at hand.
const BODY: Duration = Duration::from_secs(2);
/// Memory that the values of a body may take, in bytes, as [`cost`] counts them.
const MOST_MEMORY: usize = 32 << 20;

/// Of what is wrong with a body.
const LONGEST_ERROR: usize = 1024;
/// Lines in [`QUIET`] about bodies that do not parse, and about refusals.
const LINES: (u32, u32) = (1, 20);
/// See [`LINES`].
const QUIET: Duration = Duration::from_secs(10);

/// Metrics of the webhook.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    result: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
        };
        registry.register(
            "webhook_requests",
            "Admission requests by result",
            metrics.requests.clone(),
        );
        // A series that begins with its first request would hide that one from rate().
        for result in ["allowed", "refused", "malformed"] {
            drop(metrics.requests.get_or_create(&RequestLabels { result }));
        }
        registry.register_with_unit(
            "webhook_request_duration",
            "Time to answer an admission request",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        metrics
    }

    fn count(&self, result: &'static str, since: Instant) {
        self.requests.get_or_create(&RequestLabels { result }).inc();
        self.duration.observe(since.elapsed().as_secs_f64());
    }
}

/// Returns the routes of the TLS port.
pub fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route(VALIDATE_PATH, post(validate))
        .route("/readyz", get(readyz))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(Shared {
            readiness,
            metrics,
            bodies: Places::new(BODIES),
            malformed: Pace::new(LINES.0, QUIET),
            refused: Pace::new(LINES.1, QUIET),
        }))
}

struct Shared {
    readiness: Readiness,
    metrics: Metrics,
    bodies: Places,
    malformed: Pace,
    refused: Pace,
}

/// The whole body, or why it is not read.
async fn body(request: Request, place: &Place) -> Result<Bytes, Response> {
    let read = tokio::select! {
        read = timeout(BODY, Bytes::from_request(request, &())) => read,
        () = place.ended() => {
            let why = "others waited, and this body had not come: send it again\n";
            return Err((StatusCode::SERVICE_UNAVAILABLE, why).into_response());
        }
    };
    let Ok(read) = read else {
        let why = format!("the body did not come within {BODY:?}\n");
        return Err((StatusCode::REQUEST_TIMEOUT, why).into_response());
    };
    let body = read.map_err(IntoResponse::into_response)?;
    if cost(&body) > MOST_MEMORY {
        let why = "the body has more values than any ImageCache can have\n";
        return Err((StatusCode::PAYLOAD_TOO_LARGE, why).into_response());
    }
    Ok(body)
}

/// About what the values of a JSON text take in memory once it is parsed, in bytes: a few bytes of text
/// become an object of several hundred.
fn cost(text: &[u8]) -> usize {
    const OBJECT: usize = 700;
    const VALUE: usize = 64;

    let (mut cost, mut quoted, mut escaped) = (text.len(), false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' => cost += OBJECT,
            b'[' | b',' => cost += VALUE,
            _ => {}
        }
    }
    cost
}

async fn validate(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip());
    let place = shared.bodies.wait(peer).await;
    match body(request, &place).await {
        Ok(body) => judge(&shared, &body),
        Err(response) => response,
    }
}

fn judge(shared: &Shared, body: &[u8]) -> Response {
    let since = Instant::now();
    let request = match parse(body) {
        Ok(request) => request,
        Err(error) => {
            let error = one_line(&error.to_string(), LONGEST_ERROR);
            if let Some(unlogged) = shared.malformed.due(tokio::time::Instant::now()) {
                tracing::warn!(%error, unlogged, "an admission request does not parse");
            }
            shared.metrics.count("malformed", since);
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
    let verdict = admission::judge(&request);
    let result = if let Some(refusal) = &verdict.refusal {
        if let Some(unlogged) = shared.refused.due(tokio::time::Instant::now()) {
            let namespace = request.namespace.as_deref().unwrap_or_default();
            let imagecache = &request.name;
            tracing::info!(imagecache, namespace, reason = refusal, unlogged, "refused");
        }
        "refused"
    } else {
        "allowed"
    };
    shared.metrics.count(result, since);
    Json(verdict.into_response(&request).into_review()).into_response()
}

async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.readiness.pending().is_empty() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// Why a body is not an admission request.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error("the body is not an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the body is {kind} of {api_version}: send an AdmissionReview of admission.k8s.io/v1")]
    Version { kind: String, api_version: String },
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

fn parse(body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, ReviewError> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)?;
    if review.types.kind != META_KIND || review.types.api_version != META_API_VERSION_V1 {
        return Err(ReviewError::Version {
            kind: review.types.kind,
            api_version: review.types.api_version,
        });
    }
    review.try_into().map_err(|_| ReviewError::NoRequest)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use http::{Request, header};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

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

    async fn call(request: Request<Body>) -> (StatusCode, String) {
        let metrics = Metrics::register(&mut Registry::default());
        let router = router(Readiness::default(), metrics);
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
        );
        let from = |address: [u8; 4], body: Body| {
            let mut request = Request::post(VALIDATE_PATH).body(body).unwrap();
            let peer = ConnectInfo(SocketAddr::from((address, 1)));
            request.extensions_mut().insert(peer);
            router.clone().oneshot(request)
        };
        let silent =
            || Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
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
        let mut seen = std::collections::BTreeMap::new();
        for task in held {
            let status = task.await.unwrap().unwrap().status();
            *seen.entry(status.as_u16()).or_insert(0) += 1;
        }
        // One gave way; the others had their two seconds, four at a time.
        assert_eq!(seen, [(408, 19), (503, 1)].into());
        assert!(began.elapsed() <= 5 * BODY, "{:?}", began.elapsed());
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
        let router = router(readiness, Metrics::register(&mut Registry::default()));
        let request = Request::get("/readyz").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn requests_are_counted_by_what_came_of_them() {
        let mut registry = kubefledged_process::metrics::registry("1");
        kubefledged_process::tls::Failures::register(&mut registry).example();
        let router = router(Readiness::default(), Metrics::register(&mut registry));
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
}
