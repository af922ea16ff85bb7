//! Connects to a puller. Only this module decides which address is used and which certificates.

use std::{net::SocketAddr, time::Duration};

use kubefledged_contract::KEEP_ALIVE;
use kubefledged_process::tls::Connector;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

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

/// Connects once. The caller limits the number of attempts at the same time, and their time.
pub async fn connect(
    connector: Connector,
    address: SocketAddr,
) -> Result<Channel, tonic::transport::Error> {
    // Only the address is used here: the connector does TLS and checks the name.
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_LIMIT)
        .tcp_nodelay(true)
        .connect_with_connector(connector)
        .await
}
