//! The server's side: accepts, shakes hands, hands on.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Failures, Reason, Served};

/// Longest handshake: who does not finish must not hold a place.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time. Whoever waits for one keeps its place in the listener's backlog.
const MOST_HANDSHAKES: usize = 64;
/// Pause after an accept that failed, as with no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that has shaken hands.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// Connections that have shaken hands, each under the identity that was current then. Each
/// handshake is a task of its own: a slow one holds nobody up. The listener closes when the token
/// is cancelled; the channel ends when the last handshake has.
pub fn incoming(
    listener: TcpListener,
    current: watch::Receiver<Option<Arc<Served>>>,
    failures: Failures,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Stream>> {
    let (sender, receiver) = mpsc::channel(MOST_HANDSHAKES);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
        loop {
            let accepted = async {
                let permit = handshakes.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
                accepted = accepted => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let config = current
                .borrow()
                .as_ref()
                .map(|served| served.config.clone());
            let (sender, failures) = (sender.clone(), failures.clone());
            tokio::spawn(async move {
                let stream = match config {
                    Some(config) => handshake(&TlsAcceptor::from(config), stream).await,
                    None => Err((Reason::NoIdentity, io::ErrorKind::NotFound.into())),
                };
                drop(permit);
                match stream {
                    Ok(stream) => {
                        let _ = sender.send(Ok(stream)).await;
                    }
                    Err((reason, error)) => failures.count(reason, &error, &peer),
                }
            });
        }
    });
    receiver
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Result<Stream, (Reason, io::Error)> {
    let accepted = async {
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    match timeout(HANDSHAKE, accepted).await {
        Ok(result) => result.map_err(|error| (Reason::of(&error), error)),
        Err(_) => Err((Reason::Timeout, io::ErrorKind::TimedOut.into())),
    }
}
