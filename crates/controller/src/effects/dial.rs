//! Makes a connection to a puller. Who it connects to and by what certificates is decided here and
//! nowhere else.

use std::{net::SocketAddr, time::Duration};

use kubefledged_process::tls::Connector;
use tonic::transport::{Channel, Endpoint};

/// For a TCP connection and all that is agreed on it before the first call.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Pings while a call is under way; a connection that does not answer one in time is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(10);

/// Connects once. The caller limits how many do so at a time, and for how long.
pub async fn connect(
    connector: Connector,
    address: SocketAddr,
) -> Result<Channel, tonic::transport::Error> {
    // Only the address counts: TLS is the connector's, and so is the name that it expects.
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_LIMIT)
        .tcp_nodelay(true)
        .connect_with_connector(connector)
        .await
}
