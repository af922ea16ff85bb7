//! Server side: accepts connections, does the TLS handshake and hands the connections over.

use std::{io, mem::MaybeUninit, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::yield_now,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Failures, Reason, Served};
use crate::{
    net,
    places::{Limits, Place, Places},
};

/// Longest handshake. The controller gives up after as long.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Connections at a time whose peer has said nothing yet. Each is a file descriptor and 1 KB.
const SILENT: Limits = Limits {
    all: 256,
    per_peer: 128,
};
/// Unfinished handshakes at a time. A handshake inside a cluster takes some 10 ms.
const HANDSHAKES: Limits = Limits {
    all: 64,
    per_peer: 16,
};

/// A connection after its handshake.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// Connections that have shaken hands, each under the identity that was current then. Each
/// handshake is a task of its own: a slow one holds nobody up. Connections are accepted at once
/// whoever holds on to unfinished handshakes: theirs are dropped. The listener closes when the token
/// is cancelled; the channel ends when the last handshake has.
pub fn incoming(
    listener: TcpListener,
    current: watch::Receiver<Option<Arc<Served>>>,
    failures: Failures,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Stream>> {
    incoming_within(SILENT, HANDSHAKES, listener, current, failures, shutdown)
}

/// As [`incoming`], with other limits of silent connections and of unfinished handshakes.
pub fn incoming_within(
    silent: Limits,
    handshakes: Limits,
    listener: TcpListener,
    current: watch::Receiver<Option<Arc<Served>>>,
    failures: Failures,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Stream>> {
    let (sender, receiver) = mpsc::channel(handshakes.all);
    tokio::spawn(async move {
        let (silent, handshakes) = (Places::new(silent), Places::new(handshakes));
        loop {
            let (stream, peer) = tokio::select! {
                accepted = net::accept(&listener, &shutdown) => match accepted {
                    Some(accepted) => accepted,
                    None => return,
                },
                () = sender.closed() => return,
            };
            let (place, handshakes) = (silent.enter(peer.ip()), handshakes.clone());
            let config = current
                .borrow()
                .as_ref()
                .map(|served| served.config.clone());
            let (sender, failures) = (sender.clone(), failures.clone());
            tokio::spawn(async move {
                let shaken = match config {
                    Some(config) => shake(config, stream, peer, place, &handshakes).await,
                    None => Err((Reason::NoIdentity, io::ErrorKind::NotFound.into())),
                };
                match shaken {
                    Ok(stream) => drop(sender.send(Ok(stream)).await),
                    Err((reason, error)) => failures.count(reason, &error, &peer),
                }
            });
            // Those who have something to say are heard before the next is let in.
            yield_now().await;
        }
    });
    receiver
}

/// One handshake. Whoever says nothing holds the place of a silent connection alone.
async fn shake(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    peer: SocketAddr,
    silent: Place,
    handshakes: &Places,
) -> Result<Stream, (Reason, io::Error)> {
    let accepted = async {
        stream.set_nodelay(true)?;
        tokio::select! {
            ready = stream.readable() => ready?,
            () = silent.ended() => if !has_spoken(&stream) { return Err(crowded()) },
        }
        let place = handshakes.enter(peer.ip());
        drop(silent);
        tokio::select! {
            accepted = TlsAcceptor::from(config).accept(stream) => accepted,
            () = place.ended() => Err(crowded()),
        }
    };
    match timeout(HANDSHAKE, accepted).await {
        Ok(result) => result.map_err(|error| (Reason::of(&error), error)),
        Err(_) => Err((Reason::Timeout, io::ErrorKind::TimedOut.into())),
    }
}

/// Whether something has arrived by now that the runtime has not told us of yet.
fn has_spoken(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_ok_and(|bytes| bytes > 0)
}

/// Others needed the place of this connection.
fn crowded() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "others waited for its place")
}
