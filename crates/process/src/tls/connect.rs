//! Client side: connects to an address and requires a name in the server's certificate.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::{Failures, Reason, gather::Gathering};

/// Connects with the newest identity. The server must present one fixed name, whatever its address is.
/// The caller sets the time limit.
#[derive(Clone)]
pub struct Connector {
    current: watch::Receiver<Option<Arc<ClientConfig>>>,
    name: ServerName<'static>,
    failures: Failures,
}

impl Connector {
    /// Requires that servers present `name`.
    pub fn new(
        current: watch::Receiver<Option<Arc<ClientConfig>>>,
        name: String,
        failures: Failures,
    ) -> Result<Self, InvalidDnsNameError> {
        Ok(Self {
            current,
            name: ServerName::try_from(name)?,
            failures,
        })
    }

    /// Does a server with the right name answer at an address? The connection is closed again.
    pub async fn answers(&self, address: SocketAddr) -> bool {
        self.clone().open(address).await.is_ok()
    }

    async fn connect(self, uri: Uri) -> io::Result<TlsStream<TcpStream>> {
        let address: SocketAddr = uri
            .authority()
            .and_then(|authority| authority.as_str().parse().ok())
            .ok_or_else(|| io::Error::other(format!("{uri} has no address and port")))?;
        self.open(address).await
    }

    async fn open(mut self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        // A new leader issues it within a moment.
        let current = self.current.wait_for(Option::is_some).await;
        let config = current.ok().and_then(|current| current.clone());
        let config = config.ok_or_else(|| io::Error::other("there is no client certificate"))?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(config);
        connector
            .connect(self.name.clone(), stream)
            .await
            .inspect_err(|error| self.failures.count(Reason::of(error), error, &address))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Gathering<TlsStream<TcpStream>>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            connector
                .connect(uri)
                .await
                .map(Gathering::new)
                .map(TokioIo::new)
        })
    }
}
