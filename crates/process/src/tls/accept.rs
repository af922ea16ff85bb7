//! Server side: accepts connections, does the TLS handshake and hands the connections over.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use governor::{Quota, RateLimiter, clock::MonotonicClock, state::keyed::HashMapStateStore};
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

/// Handshakes that one address may begin in a second, and at once. Each costs the server a signature before
/// it knows who asks. The controller calls a puller a few times a minute, and an API server keeps its
/// connections.
const STARTS: Quota = Quota::per_second(NonZeroU32::new(50).unwrap());
/// Addresses that are remembered for that, before those that are within their rate anyway are forgotten.
const MOST_ADDRESSES: usize = 4096;

/// Counts the handshakes that each address begins.
type Starts = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, MonotonicClock>;

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
        let silent = Places::new(silent);
        let gate = Arc::new(Gate {
            starts: RateLimiter::hashmap_with_clock(STARTS, MonotonicClock),
            handshakes: Places::new(handshakes),
        });
        loop {
            let (stream, peer) = tokio::select! {
                accepted = net::accept(&listener, &shutdown) => match accepted {
                    Some(accepted) => accepted,
                    None => return,
                },
                () = sender.closed() => return,
            };
            let (place, gate) = (silent.enter(peer.ip()), gate.clone());
            let config = current
                .borrow()
                .as_ref()
                .map(|served| served.config.clone());
            let (sender, failures) = (sender.clone(), failures.clone());
            tokio::spawn(async move {
                let shaken = match config {
                    Some(config) => shake(config, stream, peer, place, &gate).await,
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

/// Who may begin a handshake.
struct Gate {
    starts: Starts,
    handshakes: Places,
}

impl Gate {
    /// A place for a handshake; `None`: this address began too many.
    fn enter(&self, peer: IpAddr) -> Option<Place> {
        if self.starts.len() >= MOST_ADDRESSES {
            self.starts.retain_recent();
        }
        self.starts.check_key(&peer.to_canonical()).ok()?;
        Some(self.handshakes.enter(peer))
    }
}

/// One handshake. Whoever says nothing holds the place of a silent connection alone.
async fn shake(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    peer: SocketAddr,
    silent: Place,
    gate: &Gate,
) -> Result<Stream, (Reason, io::Error)> {
    let accepted = async {
        stream.set_nodelay(true)?;
        let mut first = [0];
        tokio::select! {
            // Who goes away without a word begins no handshake.
            said = stream.peek(&mut first) => if said? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            },
            () = silent.ended() => if !has_spoken(&stream) { return Err(crowded()) },
        }
        let place = gate.enter(peer.ip()).ok_or_else(crowded)?;
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
