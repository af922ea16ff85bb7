//! The gRPC debug endpoint. It is not encrypted and listens on the loopback address of the pod. People
//! reach it by `kubectl port-forward`, so the RBAC right to `pods/portforward` protects it.

use std::{net::SocketAddr, str::FromStr};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};
use tonic_health::server::HealthReporter;

/// Address of the debug endpoint: a loopback address and port, or `off` (`None`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugAddress(pub Option<SocketAddr>);

/// The text is neither `off` nor a loopback address with a port.
#[derive(Debug, thiserror::Error)]
#[error("write off, or a loopback address with a port such as 127.0.0.1:7070: it is not encrypted")]
pub struct NotLoopback;

impl FromStr for DebugAddress {
    type Err = NotLoopback;

    fn from_str(text: &str) -> Result<Self, NotLoopback> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address: SocketAddr = text.parse().map_err(|_| NotLoopback)?;
        if address.ip().is_loopback() {
            Ok(Self(Some(address)))
        } else {
            Err(NotLoopback)
        }
    }
}

impl DebugAddress {
    /// Listens on the address. Returns `None` if the endpoint is off.
    pub async fn bind(self) -> std::io::Result<Option<TcpListener>> {
        match self.0 {
            Some(address) => Ok(Some(TcpListener::bind(address).await?)),
            None => Ok(None),
        }
    }
}

/// Adds the reflection service (v1, and v1alpha for older clients) and the health service to the
/// routes. The returned reporter sets which service is serving.
///
/// # Errors
/// The descriptors do not parse, which is a bug of ours.
pub fn with_standard_services(
    routes: Routes,
    descriptors: &'static [u8],
) -> Result<(Routes, HealthReporter), tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let routes = routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?)
        .add_service(health);
    Ok((routes, reporter))
}

/// Reports to the health service whether a service is serving.
pub async fn report<S: NamedService>(reporter: &HealthReporter, serving: bool) {
    if serving {
        reporter.set_serving::<S>().await;
    } else {
        reporter.set_not_serving::<S>().await;
    }
}

/// Returns the number of rows of a page. `asked` is 0 if the request does not set it.
///
/// # Errors
/// `asked` is larger than 1000.
#[allow(clippy::result_large_err)] // tonic's own error
pub fn page_size(asked: u32) -> Result<usize, tonic::Status> {
    match asked {
        0 => Ok(100),
        1..=1000 => Ok(asked as usize),
        _ => Err(tonic::Status::invalid_argument("page_size is at most 1000")),
    }
}

/// Serves until the token is cancelled. Without a listener it only waits for that.
pub async fn serve(
    listener: Option<TcpListener>,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let Some(listener) = listener else {
        shutdown.cancelled().await;
        return Ok(());
    };
    tonic::transport::Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        assert_eq!("off".parse::<DebugAddress>().unwrap().0, None);
        assert!(
            "127.0.0.1:7070"
                .parse::<DebugAddress>()
                .unwrap()
                .0
                .is_some()
        );
        assert!("[::1]:0".parse::<DebugAddress>().unwrap().0.is_some());
        for bad in ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:1", "7070", ""] {
            let error = bad.parse::<DebugAddress>().unwrap_err().to_string();
            assert!(error.contains("loopback address"), "{bad}");
        }
    }
}
