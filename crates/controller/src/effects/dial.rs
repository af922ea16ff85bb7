//! Connects to a puller. Only this module decides which address is used and which certificates.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use kubefledged_contract::KEEP_ALIVE;
use kubefledged_process::tls::Connector;
use tokio::time::timeout;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// Time limit for the TCP connection, the TLS handshake and the HTTP/2 settings.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A connection that does not answer a ping within this time is closed.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(10);

/// Does a puller answer at an address? Nothing is asked of it.
pub async fn answers(connector: Connector, address: SocketAddr) -> bool {
    timeout(CONNECT_LIMIT, connector.answers(address))
        .await
        .unwrap_or(false)
}

/// Whether a connection was seen to have ended.
#[derive(Clone, Debug, Default)]
pub struct Ended(Arc<AtomicBool>);

impl Ended {
    /// Was it? Calls on it fail from then on.
    pub fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Connects the first time only. A channel of tonic's would connect again when its connection has ended, and by then the address
/// may be another puller's.
struct Once {
    connector: Option<Connector>,
    ended: Ended,
}

impl Service<Uri> for Once {
    type Response = <Connector as Service<Uri>>::Response;
    type Error = io::Error;
    type Future = <Connector as Service<Uri>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Some(mut connector) = self.connector.take() {
            return connector.call(uri);
        }
        self.ended.0.store(true, Ordering::Relaxed);
        std::future::ready(Err(io::Error::other("the connection has ended"))).boxed()
    }
}

/// Connects once, and not again when the connection has ended. The caller limits the number of attempts at the same time, and
/// their time.
pub async fn connect(
    connector: Connector,
    address: SocketAddr,
) -> Result<(Channel, Ended), tonic::transport::Error> {
    let ended = Ended::default();
    let once = Once {
        connector: Some(connector),
        ended: ended.clone(),
    };
    // Only the address is used here: the connector does TLS and checks the name.
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_LIMIT)
        .tcp_nodelay(true)
        .connect_with_connector(once)
        .await?;
    Ok((channel, ended))
}
