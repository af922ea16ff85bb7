//! HTTP over connections that have shaken hands. The API server presents no certificate, so that
//! everybody in the cluster can get so far: connections, and what each can make us keep, are bounded.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, Request},
    middleware::{self, Next},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use kubefledged_process::{
    places::{Limits, Place, Places},
    tls::Stream,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at a time. An API server keeps one or two.
const CONNECTIONS: Limits = Limits {
    all: 64,
    per_peer: 16,
};
/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes.
const MOST_HEAD: u32 = 8 << 10;
/// Requests at a time on one connection. An API server with more to ask opens another one.
const STREAMS: u32 = 16;
/// Bytes of bodies that a connection may send before we read them.
const WINDOW: u32 = 64 << 10;
/// An open connection is asked so often whether its peer is still there, which must answer as fast.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long requests may go on after the server stopped listening.
const DRAIN: Duration = Duration::from_secs(10);
/// How long they may go on after others needed the connection's place.
const LEAVE: Duration = Duration::from_secs(1);

/// Serves until the token is cancelled and no new connection arrives, and then waits for running
/// requests.
pub async fn serve(
    mut incoming: mpsc::Receiver<io::Result<Stream>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let places = Places::new(CONNECTIONS);
    let connections = TaskTracker::new();
    while let Some(stream) = incoming.recv().await {
        let Ok(stream) = stream else { continue };
        let Ok(peer) = stream.get_ref().0.peer_addr() else {
            continue;
        };
        let place = Arc::new(places.enter(peer.ip()));
        let working = place.clone();
        let router = router
            .clone()
            .layer(Extension(ConnectInfo(peer)))
            .layer(middleware::from_fn(move |request, next| {
                work(working.clone(), request, next)
            }));
        connections.spawn(connection(stream, place, router, shutdown.clone()));
    }
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("some requests were still running at the end of the shutdown time");
    }
}

/// While a request runs, its connection is not among the first to be given up.
async fn work(place: Arc<Place>, request: Request, next: Next) -> axum::response::Response {
    let _work = place.work();
    next.run(request).await
}

async fn connection(
    stream: Stream,
    place: Arc<Place>,
    router: Router,
    shutdown: CancellationToken,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MOST_HEAD as usize);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MOST_HEAD)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(WINDOW as usize)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            // GOAWAY: the apiserver keeps its connections, and must turn to the other replica.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = place.ended() => {
            connection.as_mut().graceful_shutdown();
            timeout(LEAVE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection failed");
    }
}
