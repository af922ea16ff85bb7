//! HTTP over TLS with a certificate that may change under way.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{ServerConfig, server::NoServerSessionStorage};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::certificate::Resolver;

/// Longest TLS handshake: the apiserver gives up after 5 seconds in all.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time. Whoever waits for one keeps its place in the listener's backlog.
const MOST_HANDSHAKES: usize = 64;
/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How long requests may go on after the server stopped listening.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, as with no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS 1.2 and 1.3 with the resolver's certificate, HTTP/2 and HTTP/1.1.
pub fn tls_config(resolver: Resolver) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would go on under the certificate of its first handshake.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Serves until the token is cancelled, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let permit = handshakes.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            let stream = handshake(&acceptor, stream).await;
            drop(permit);
            match stream {
                Ok(stream) => connection(stream, router, shutdown).await,
                Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
            }
        });
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("requests were still running after the drain");
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream> {
    stream.set_nodelay(true)?;
    timeout(HANDSHAKE, acceptor.accept(stream)).await?
}

async fn connection(stream: TlsStream, router: Router, shutdown: CancellationToken) {
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
