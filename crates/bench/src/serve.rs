//! One listener for all nodes: in a network namespace where a whole range of addresses is local
//! (`AnyIP`), the address that a connection came to tells which node is meant.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use anyhow::Context as _;
use kubefledged_proto::puller::puller_service_server::PullerServiceServer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpSocket,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Connected};

use crate::{
    fleet::{self, Fleet},
    service::{Local, Service},
};

const BACKLOG: u32 = 16_384;

/// Serves all nodes on a port, for as long as the process lives.
pub async fn serve(fleet: Arc<Fleet>, port: u16) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket
        .bind(SocketAddr::from(([0, 0, 0, 0], port)))
        .context("cannot listen for pullers")?;
    let listener = socket.listen(BACKLOG)?;
    let (sender, incoming) = mpsc::channel(1024);
    let accepting = fleet.clone();
    tokio::spawn(async move {
        // Sockets of dead nodes: open, and nobody answers.
        let mut silent = Vec::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let Ok(local) = stream.local_addr() else {
                continue;
            };
            let dead =
                fleet::node_at(local.ip()).is_none_or(|node| accepting.model().is_dead(node));
            if dead {
                silent.push(stream);
                continue;
            }
            let connection = Connection::new(stream, local, accepting.clone());
            if sender.send(Ok::<_, io::Error>(connection)).await.is_err() {
                return;
            }
        }
    });
    Server::builder()
        .add_service(PullerServiceServer::new(Service(fleet)))
        .serve_with_incoming(ReceiverStream::new(incoming))
        .await
        .context("the simulated pullers stopped")
}

/// A connection that knows to which node it came, and is counted while it is open.
struct Connection<S> {
    stream: S,
    local: SocketAddr,
    fleet: Arc<Fleet>,
}

impl<S> Connection<S> {
    fn new(stream: S, local: SocketAddr, fleet: Arc<Fleet>) -> Self {
        let open = fleet.counters.open.fetch_add(1, Ordering::Relaxed) + 1;
        fleet.counters.most_open.fetch_max(open, Ordering::Relaxed);
        fleet.counters.handshakes.fetch_add(1, Ordering::Relaxed);
        Self {
            stream,
            local,
            fleet,
        }
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.fleet.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Local;

    fn connect_info(&self) -> Local {
        Local(self.local)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
