//! Listening sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Pause after an accept that failed, as with no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that the kernel holds until they are accepted, as far as `net.core.somaxconn` lets it
/// (4096): one that finds no room is tried again by its peer after a second.
const BACKLOG: u32 = 4096;

/// Listens on all addresses: `[::]`, or `0.0.0.0` where the node has no IPv6. Port 0 takes a free
/// one.
pub fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpSocket::new_v6().and_then(|socket| listen(socket, Ipv6Addr::UNSPECIFIED.into(), port))
    {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => listen(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into(), port),
    }
}

fn listen(socket: TcpSocket, address: IpAddr, port: u16) -> io::Result<TcpListener> {
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((address, port)))?;
    socket.listen(BACKLOG)
}

/// The next connection and who made it; `None` when the token is cancelled. An accept that fails is
/// repeated.
pub async fn accept(
    listener: &TcpListener,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(PAUSE).await;
            }
        }
    }
}
