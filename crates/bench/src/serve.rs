//! One listener for all nodes: in a network namespace where a whole range of addresses is local
//! (`AnyIP`), the address that a connection came to tells which node is meant. TLS is that of the
//! real puller.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use anyhow::Context as _;
use futures::StreamExt as _;
use kubefledged_contract::MESSAGE_LIMIT;
use kubefledged_process::{
    places::Limits,
    tls::{self, Failures, Served},
};
use kubefledged_proto::puller::puller_service_server::PullerServiceServer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpSocket,
    sync::watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};

use crate::{
    fleet::Fleet,
    service::{Local, Service},
};

const BACKLOG: u32 = 16_384;

/// A request for a certificate, one for all nodes: nobody makes a connection with it here.
fn certificate_request() -> anyhow::Result<Arc<[u8]>> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok(request.der().to_vec().into())
}

/// Serves all nodes on a port, for as long as the process lives, under the newest certificate.
pub async fn serve(
    fleet: Arc<Fleet>,
    port: u16,
    identity: watch::Receiver<Option<Arc<Served>>>,
) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket
        .bind(SocketAddr::from(([0, 0, 0, 0], port)))
        .context("cannot listen for pullers")?;
    let listener = socket.listen(BACKLOG)?;
    let shutdown = CancellationToken::new();
    // One controller shakes hands with thousands of nodes here, all at one listener.
    let limits = Limits {
        all: 4096,
        per_peer: 4096,
    };
    let failures = Failures::default();
    let incoming = tls::incoming_within(limits, limits, listener, identity, failures, shutdown);
    let counting = fleet.clone();
    let connections = ReceiverStream::new(incoming)
        .map(move |stream| stream.and_then(|stream| Connection::new(stream, counting.clone())));
    Server::builder()
        .add_service(
            PullerServiceServer::new(Service(fleet, certificate_request()?))
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .serve_with_incoming(connections)
        .await
        .context("the simulated pullers stopped")
}

/// A connection that knows to which node it came, and is counted while it is open.
struct Connection {
    stream: tls::Stream,
    local: SocketAddr,
    fleet: Arc<Fleet>,
}

impl Connection {
    fn new(stream: tls::Stream, fleet: Arc<Fleet>) -> io::Result<Self> {
        let local = stream.get_ref().0.local_addr()?;
        let counters = &fleet.counters;
        let open = counters.open.fetch_add(1, Ordering::Relaxed) + 1;
        counters.most_open.fetch_max(open, Ordering::Relaxed);
        counters.handshakes.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            stream,
            local,
            fleet,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.fleet.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for Connection {
    type ConnectInfo = Local;

    fn connect_info(&self) -> Local {
        Local(self.local)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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
