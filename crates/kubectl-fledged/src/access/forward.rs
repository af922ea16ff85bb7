//! A gRPC channel to a port of a pod, through the API server: what `kubectl port-forward` does, without a local port.

use std::{io, net::SocketAddr, sync::Mutex, time::Duration};

use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::exit::{Failure, chain};

/// A connection without an answer for so long is broken.
const ALIVE: Duration = Duration::from_secs(10);

/// Connects to a port of a pod. If the connection breaks, calls fail and the channel is of no more use: another pod may
/// lead by then.
pub async fn to_pod(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<Channel, Failure> {
    let what = format!("cannot reach port {port} of pod {namespace}/{pod}");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let forwarded = pods.portforward(pod, &[port]).await;
    let mut forwarded = forwarded.map_err(|error| refused(&what, &error))?;
    let stream = forwarded.take_stream(port);
    let stream = stream.ok_or_else(|| Failure::NoAccess(what.clone()))?;
    once(&what, stream).await
}

/// Connects to an address at which somebody else forwards the port.
pub async fn to_address(address: SocketAddr) -> Result<Channel, Failure> {
    let what = format!("cannot reach {address}");
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Failure::NoAccess(format!("{what}: {error}")))?;
    once(&what, stream).await
}

async fn once<S>(what: &str, stream: S) -> Result<Channel, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = service_fn(move |_| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        let broken = || io::Error::new(io::ErrorKind::BrokenPipe, "the connection is broken");
        std::future::ready(stream.ok_or_else(broken))
    });
    let endpoint = Endpoint::from_static("http://debug")
        .http2_keep_alive_interval(ALIVE)
        .keep_alive_timeout(ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| Failure::NoAccess(format!("{what}: {}", chain(&error))))
}

/// An upgrade that is refused has no text of the API server.
fn refused(what: &str, error: &kube::Error) -> Failure {
    let text = chain(error);
    if text.contains("403") {
        return Failure::NoAccess(format!(
            "{what}: you may not create pods/portforward there (docs/kubectl-fledged.md#rights)"
        ));
    }
    Failure::of_kube(what, error)
}
