//! Server side: accepts connections, does the TLS handshake and hands the connections over.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Failures, Reason, Served};

/// Time limit of a handshake. A client that does not finish must not hold a slot.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Maximum number of handshakes at the same time. Further clients wait in the listener's backlog.
const MOST_HANDSHAKES: usize = 64;
/// Pause after a failed accept, for example if no file descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection after its handshake.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// Returns a channel of connections after their handshake. Each handshake uses the identity that is
/// current at its time and runs in its own task, so a slow one delays nobody. The listener closes when
/// the token is cancelled; the channel ends after the last handshake.
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
