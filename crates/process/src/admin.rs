//! Serves `/livez`, `/readyz`, `/metrics` and `/log-level` as plain HTTP on a port of their own.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::ConnectInfo,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, Readiness, log};

/// Flags for probes and metrics.
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
    metrics: impl Into<Metrics>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = router(readiness, metrics.into());
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

fn router(readiness: Readiness, metrics: Metrics) -> Router {
    let answer = move |headers: HeaderMap| {
        let metrics = metrics.clone();
        async move { self::metrics(&metrics, &headers).await }
    };
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readyz(&readiness) }))
        .route("/metrics", get(answer))
        .route("/log-level", get(log_level).put(set_log_level))
}

async fn log_level() -> String {
    log::level() + "\n"
}

/// Changes the level for clients on the loopback address only. People reach it by `kubectl
/// port-forward`; whoever has the right to do that may read the logs too.
async fn set_log_level(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    level: String,
) -> (StatusCode, String) {
    if !peer.ip().to_canonical().is_loopback() {
        let why =
            "the log level can only be changed from inside the pod: use kubectl port-forward\n";
        return (StatusCode::FORBIDDEN, why.to_owned());
    }
    match log::set_level(&level) {
        Ok(()) => (StatusCode::OK, log::level() + "\n"),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
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

async fn metrics(metrics: &Metrics, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    match metrics.answer(accept.unwrap_or_default()).await {
        Ok((kind, body)) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
