//! The HTTP side of the webhook.

mod body;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionReview, META_API_VERSION_V1, META_KIND},
};
use kubefledged_api_types::one_line;
use kubefledged_process::{Readiness, log::Pace, places::Places};
use tokio::time::timeout;

use crate::{
    admission::{self, Rules},
    metrics::Metrics,
};

/// Path of admission requests, as in kube-fledged.
pub const VALIDATE_PATH: &str = "/validate-image-cache";

/// Of what is wrong with a body.
const LONGEST_ERROR: usize = 1024;
/// Lines in [`QUIET`] about bodies that do not parse, and about refusals.
const LINES: (u32, u32) = (1, 20);
/// See [`LINES`].
const QUIET: Duration = Duration::from_secs(10);
/// Returns the routes of the TLS port.
pub fn router(readiness: Readiness, metrics: Metrics, rules: Rules) -> Router {
    Router::new()
        .route(VALIDATE_PATH, post(validate))
        .route("/readyz", get(readyz))
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .with_state(Arc::new(Shared {
            readiness,
            metrics,
            bodies: Places::new(body::BODIES),
            malformed: Pace::new(LINES.0, QUIET),
            refused: Pace::new(LINES.1, QUIET),
            rules,
        }))
}

struct Shared {
    readiness: Readiness,
    metrics: Metrics,
    bodies: Places,
    malformed: Pace,
    refused: Pace,
    rules: Rules,
}
async fn validate(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip());
    // Nothing of the head is needed, and whoever waits must keep as little as possible.
    drop(std::mem::take(request.headers_mut()));
    let Ok(place) = timeout(body::PLACE, shared.bodies.wait(peer)).await else {
        let why = "too many requests at once: send it again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    match body::read(request, &place).await {
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
    let verdict = admission::judge(&request, &shared.rules);
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
