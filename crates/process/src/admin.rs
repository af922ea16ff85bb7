//! `/livez`, `/readyz`, `/metrics` and `/log-level` on a plain HTTP port of their own.
//!
//! Everybody in the cluster can reach the port, so that every request costs little: HTTP/1 alone, one
//! request per connection, small heads and bodies, a bounded number of connections, each for a
//! bounded time.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Args;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Metrics, Readiness, log, net,
    places::{Limits, Place, Places},
};

/// Connections at a time. A probe's lasts milliseconds.
const CONNECTIONS: Limits = Limits {
    all: 32,
    per_peer: 8,
};
/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(2);
/// Longest life of a connection, from its begin to the last byte of the answer. Prometheus waits
/// as long for a scrape, by default.
const WHOLE: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes. Prometheus sends some 500.
const MOST_HEAD: usize = 16 << 10;
/// Largest body of a request, in bytes: a log filter.
const MOST_BODY: usize = 1 << 10;

/// Flags for probes and metrics.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Probes and metrics")]
pub struct AdminArgs {
    /// Port of /livez, /readyz and /metrics (plain HTTP); 0 takes a free one
    #[arg(long)]
    pub http_port: u16,
}

/// Serves until the token is cancelled, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: impl Into<Metrics>,
    shutdown: CancellationToken,
) {
    let router = router(readiness, metrics.into());
    let places = Places::new(CONNECTIONS);
    let connections = TaskTracker::new();
    while let Some((stream, peer)) = net::accept(&listener, &shutdown).await {
        let place = places.enter(peer.ip());
        let router = router.clone().layer(Extension(ConnectInfo(peer)));
        connections.spawn(connection(stream, place, router));
        // Those who have something to say are heard before the next is let in.
        yield_now().await;
    }
    connections.close();
    connections.wait().await;
}

/// One request and its answer.
async fn connection(stream: TcpStream, place: Place, router: Router) {
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MOST_HEAD)
        .keep_alive(false);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let ended = tokio::select! {
        ended = timeout(WHOLE, serving) => ended,
        () = place.ended() => return,
    };
    if let Ok(Err(error)) = ended {
        tracing::debug!(error, "a request of the plain HTTP port failed");
    }
}

fn router(readiness: Readiness, metrics: Metrics) -> Router {
    let answer = move |headers: HeaderMap| {
        let metrics = metrics.clone();
        async move { self::metrics(&metrics, &headers).await }
    };
    let change = get(log_level).put(set_log_level);
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readyz(&readiness) }))
        .route("/metrics", get(answer))
        .route("/log-level", change.layer(middleware::from_fn(guard)))
}

/// Lets a peer look at the log level, and change it from the pod itself: whoever may use `kubectl
/// port-forward` may read the logs too. Nothing of a refused request's body is read.
async fn guard(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let inside = peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    if inside || request.method().is_safe() {
        return next.run(request).await;
    }
    let why = "the log level is changed from the pod itself: use kubectl port-forward\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

async fn log_level() -> String {
    log::level() + "\n"
}

async fn set_log_level(body: Body) -> (StatusCode, String) {
    let level = to_bytes(body, MOST_BODY).await.ok();
    let level = level.and_then(|level| String::from_utf8(level.into()).ok());
    let Some(level) = level else {
        let why = format!("a log level is text of at most {MOST_BODY} bytes\n");
        return (StatusCode::BAD_REQUEST, why);
    };
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

#[cfg(test)]
mod tests {
    use tower_service::Service as _;

    use super::*;

    /// Asks from this address with a body that never comes.
    async fn put_from(address: [u8; 4]) -> Option<StatusCode> {
        let metrics = Metrics::new(crate::metrics::registry("1"));
        let peer = ConnectInfo(SocketAddr::from((address, 1)));
        let mut router = router(Readiness::default(), metrics).layer(Extension(peer));
        let body = Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
        let request = axum::http::Request::put("/log-level").body(body).unwrap();
        let answer = timeout(Duration::from_millis(500), router.call(request)).await;
        answer.ok().map(|response| response.unwrap().status())
    }

    #[tokio::test]
    async fn who_may_not_change_the_log_level_is_refused_before_the_body_is_read() {
        assert_eq!(put_from([10, 0, 0, 1]).await, Some(StatusCode::FORBIDDEN));
        assert_eq!(put_from([127, 0, 0, 1]).await, None);
    }
}
