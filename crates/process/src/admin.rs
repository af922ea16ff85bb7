//! `/livez`, `/readyz` and `/metrics` on a plain HTTP port of their own.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Readiness;

/// Where probes and metrics are served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Probes and metrics")]
pub struct AdminArgs {
    /// Port of /livez, /readyz and /metrics (plain HTTP); 0 takes a free one
    #[arg(long)]
    pub http_port: u16,
}

/// Serves until the token is cancelled.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Arc<Mutex<Registry>>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(readiness, registry))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

fn router(readiness: Readiness, registry: Arc<Mutex<Registry>>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readyz(&readiness) }))
        .route("/metrics", get(move || async move { metrics(&registry) }))
}

fn readyz(readiness: &Readiness) -> impl IntoResponse + use<> {
    use std::fmt::Write as _;

    let pending = readiness.pending();
    if pending.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut body = String::new();
    for (name, why) in pending {
        // Writing to a String cannot fail.
        let _ = writeln!(body, "{name}: {why}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, body)
}

fn metrics(registry: &Mutex<Registry>) -> impl IntoResponse + use<> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
