//! Calls of a puller's port with whatever certificate. The port is in the cluster's network, where
//! this process is not: `socat` carries bytes from a Unix socket.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::{Code, Request, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    Cluster,
    fleet::{OURS, Pod},
};

/// For one call. A stream that stays open longer was allowed.
const LIMIT: Duration = Duration::from_secs(5);
/// Before each call: a puller lets one address begin 50 handshakes in a second.
const PAUSE: Duration = Duration::from_millis(25);

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The handshake failed.
    NoConnection,
    /// By the table of who may call what.
    Refused,
    /// The method was reached, whatever it said to an empty request.
    Reached,
}

/// A way to the port of one puller; closed when dropped.
pub struct Puller {
    relay: Child,
    socket: PathBuf,
}

impl Cluster {
    /// Opens a way to the gRPC port of a puller.
    pub fn reach(&self, pod: &Pod) -> anyhow::Result<Puller> {
        let socket = std::env::temp_dir().join(format!("kubefledged-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let relay = Command::new(&self.program)
            .args(["run", "socat"])
            .arg(format!("UNIX-LISTEN:{},fork", socket.display()))
            .arg(format!("TCP:{}:7443", pod.address))
            .stdin(Stdio::null())
            // It complains of every connection that the puller breaks.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run hack/cluster")?;
        let puller = Puller { relay, socket };
        self.until(Duration::from_secs(5), "socat listens", || {
            Ok(puller.socket.exists().then_some(()))
        })?;
        Ok(puller)
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Puller {
    /// Calls a method, such as `package.Service/Method`, with an empty request, after [`PAUSE`].
    pub fn call(&self, client: &Arc<ClientConfig>, method: &str) -> anyhow::Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = PathAndQuery::try_from(format!("/{method}"))?;
        std::thread::sleep(PAUSE);
        let called = async {
            let called = tokio::time::timeout(LIMIT, self.first_message(client, path));
            called.await.unwrap_or(Ok(()))
        };
        Ok(match runtime.block_on(called) {
            Err(status) if status.code() == Code::PermissionDenied => Answer::Refused,
            // What the server says has no source; a broken connection is one.
            Err(status) if std::error::Error::source(&status).is_some() => Answer::NoConnection,
            Ok(()) | Err(_) => Answer::Reached,
        })
    }

    async fn first_message(
        &self,
        client: &Arc<ClientConfig>,
        path: PathAndQuery,
    ) -> Result<(), Status> {
        let (socket, client) = (self.socket.clone(), client.clone());
        let connector = service_fn(move |_| {
            let (socket, client) = (socket.clone(), client.clone());
            async move {
                let name = format!("puller.{OURS}.kubefledged.internal");
                let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
                let stream = UnixStream::connect(socket).await?;
                let stream = TlsConnector::from(client).connect(name, stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://puller");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Status::from_error(error.into()))?;
        let mut grpc = Grpc::new(channel);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<(), ()>::default();
        let answer = grpc.server_streaming(Request::new(()), path, codec).await?;
        answer.into_inner().message().await.map(drop)
    }
}
