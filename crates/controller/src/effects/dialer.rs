//! Connections to pullers whose identity was verified.

use std::{net::SocketAddr, sync::Arc};

use kubefledged_contract::{MESSAGE_LIMIT, controller as contract};
use kubefledged_engine::{NodeName, Puller};
use kubefledged_process::tls::Connector;
use kubefledged_proto::{
    debug::puller_debug_service_client::PullerDebugServiceClient,
    puller::{GetInfoRequest, GetInfoResponse, puller_service_client::PullerServiceClient},
};
use tonic::{Request, transport::Channel};

use super::{dial, peers::PeerIdentity, pool::Dial};
use crate::{
    metrics::{Connected, Metrics},
    runtimes::KubeletRuntimes,
};

/// Pulls that a puller tells of in one answer for people.
pub const MOST_PULLS: usize = 1000;

/// A client on an open connection.
pub type PullerClient = PullerServiceClient<Channel>;

/// Connects, and verifies that the peer is the expected puller, because pod IPs are reused and endpoints
/// are updated late.
pub struct Dialer {
    /// Does TLS and checks the name of the peer.
    pub connector: Connector,
    /// Counts connections.
    pub metrics: Metrics,
    /// What the kubelets use.
    pub kubelets: KubeletRuntimes,
}

/// An open connection, and facts about its puller.
#[derive(Clone)]
pub struct Connection {
    /// Its messages are limited for calls without images.
    pub client: PullerClient,
    /// The same connection, for what people look at.
    pub debug: PullerDebugServiceClient<Channel>,
    /// Pulls that the puller runs at a time; 0: it does not say.
    pub parallel_pulls: u32,
    /// What the puller has for other pullers.
    pub peer_identity: Arc<PeerIdentity>,
    _counted: Arc<Connected>,
}

/// The puller's pod that an endpoint names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    node: NodeName,
    instance: Arc<str>,
    address: SocketAddr,
}

impl Target {
    /// The pod of a node.
    pub fn new(node: &NodeName, puller: &Puller) -> Self {
        Self {
            node: node.clone(),
            instance: puller.instance.clone(),
            address: puller.address,
        }
    }
}

impl Dial for Dialer {
    type Key = Target;
    type Connection = Connection;

    async fn dial(&self, target: &Target) -> Result<Connection, Arc<str>> {
        let connected = self.connect(target).await;
        let connected = connected.inspect_err(|_| self.metrics.not_connected());
        let (channel, client, info) = connected?;
        Ok(Connection {
            client,
            debug: PullerDebugServiceClient::new(channel)
                .max_decoding_message_size(contract::largest_answer(MOST_PULLS)),
            parallel_pulls: contract::parallel_pulls(&info),
            peer_identity: Arc::new(PeerIdentity::of(&info)),
            _counted: self.metrics.connected(),
        })
    }
}

impl Dialer {
    async fn connect(
        &self,
        target: &Target,
    ) -> Result<(Channel, PullerClient, GetInfoResponse), Arc<str>> {
        tracing::debug!(node = %target.node, "dial begins");
        let channel = dial::connect(self.connector.clone(), target.address)
            .await
            .map_err(|error| Arc::from(sentence(&error)))?;
        tracing::debug!(node = %target.node, "TLS handshake done");
        let mut client = PullerServiceClient::new(channel.clone())
            .max_decoding_message_size(contract::largest_answer(0))
            .max_encoding_message_size(MESSAGE_LIMIT);
        let mut request = Request::new(GetInfoRequest {
            node_name: target.node.to_string(),
        });
        request.set_timeout(dial::CONNECT_LIMIT);
        let info = client
            .get_info(request)
            .await
            .map_err(|status| Arc::from(format!("GetInfo failed: {}", status.message())))?
            .into_inner();
        verify(target, &info)?;
        tracing::debug!(node = %target.node, "puller verified");
        let kubelets = self.kubelets.other_than(&target.node, &info.runtime_name);
        if let Some(kubelets) = kubelets {
            let error = format!(
                "the puller uses {}, and the kubelet of {} uses {kubelets}: correct puller.criSocketPath",
                info.runtime_name, target.node
            );
            tracing::warn!(node = %target.node, error, "wrong container runtime");
            return Err(error.into());
        }
        Ok((channel, client, info))
    }
}

fn verify(target: &Target, info: &GetInfoResponse) -> Result<(), Arc<str>> {
    if *info.puller_instance == *target.instance {
        return Ok(());
    }
    Err(format!(
        "{} is the address of puller {} now, not of {}",
        target.address, info.puller_instance, target.instance
    )
    .into())
}

/// Returns an error with its sources, because the outermost only says "transport error".
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
