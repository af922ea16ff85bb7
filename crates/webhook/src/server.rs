//! Serves HTTP on connections after their TLS handshake.

use std::{io, pin::pin, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use kubefledged_process::tls::Stream;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Time limit for the headers of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Time for which requests may continue after the server stopped listening.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves until the token is cancelled and no new connection arrives, and then waits for running
/// requests.
pub async fn serve(
    mut incoming: mpsc::Receiver<io::Result<Stream>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some(stream) = incoming.recv().await {
        let Ok(stream) = stream else { continue };
        connections.spawn(connection(stream, router.clone(), shutdown.clone()));
    }
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("some requests were still running at the end of the shutdown time");
    }
}

async fn connection(stream: Stream, router: Router, shutdown: CancellationToken) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD);
    http.http2().timer(TokioTimer::new());
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            // GOAWAY: the apiserver keeps its connections, and must turn to the other replica.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection failed");
    }
}
