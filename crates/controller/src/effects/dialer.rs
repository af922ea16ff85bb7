//! Connections to pullers, whose identity is verified by their first answer.

use std::{net::SocketAddr, sync::Arc};

use kubefledged_contract::{MESSAGE_LIMIT, controller as contract};
use kubefledged_engine::{NodeName, Puller};
use kubefledged_process::tls::Connector;
use kubefledged_proto::{
    debug::puller_debug_service_client::PullerDebugServiceClient,
    puller::{GetInfoRequest, GetInfoResponse, puller_service_client::PullerServiceClient},
};
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status, transport::Channel};

use super::{
    dial::{self, Ended},
    peers::PeerIdentity,
    pool::Dial,
};
use crate::{
    metrics::{Connected, Metrics},
    runtimes::KubeletRuntimes,
};

/// Pulls that a puller tells of in one answer for people.
pub const MOST_PULLS: usize = 1000;

/// A client on an open connection.
pub type PullerClient = PullerServiceClient<Channel>;

/// Connects. That the peer is the expected puller is verified, because pod IPs are reused and endpoints are updated late.
pub struct Dialer {
    /// Does TLS and checks the name of the peer.
    pub connector: Connector,
    /// Counts connections.
    pub metrics: Metrics,
    /// What the kubelets use.
    pub kubelets: KubeletRuntimes,
}

/// A connection to a puller, which is never made anew. Which puller it is, it says in its first answer: to a check that asks for
/// it, or else to `GetInfo`.
pub struct Connection {
    target: Target,
    client: PullerClient,
    debug: PullerDebugServiceClient<Channel>,
    ended: Ended,
    metrics: Metrics,
    kubelets: KubeletRuntimes,
    facts: OnceCell<Facts>,
}

/// What is known of the puller at the other end since it was verified.
struct Facts {
    parallel_pulls: u32,
    peer_identity: PeerIdentity,
    _counted: Connected,
}

/// A connection whose puller is the expected one.
pub struct Verified<'a> {
    connection: &'a Connection,
    facts: &'a Facts,
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
    type Connection = Arc<Connection>;

    async fn dial(&self, target: &Target) -> Result<Arc<Connection>, Arc<str>> {
        tracing::debug!(node = %target.node, "dial begins");
        let channel = dial::connect(self.connector.clone(), target.address).await;
        let (channel, ended) = channel.map_err(|error| {
            self.metrics.not_connected();
            Arc::from(sentence(&error))
        })?;
        tracing::debug!(node = %target.node, "TLS handshake done");
        Ok(Arc::new(Connection {
            target: target.clone(),
            client: PullerServiceClient::new(channel.clone())
                .max_decoding_message_size(contract::largest_answer(0))
                .max_encoding_message_size(MESSAGE_LIMIT),
            debug: PullerDebugServiceClient::new(channel)
                .max_decoding_message_size(contract::largest_answer(MOST_PULLS)),
            ended,
            metrics: self.metrics.clone(),
            kubelets: self.kubelets.clone(),
            facts: OnceCell::new(),
        }))
    }

    fn has_ended(connection: &Arc<Connection>) -> bool {
        connection.ended.is_known()
    }
}

impl Connection {
    /// Whether the puller is known to be the expected one.
    pub fn is_verified(&self) -> bool {
        self.facts.initialized()
    }

    /// A client for a check of so many images, and for nothing else: it changes nothing, and its answer verifies the puller.
    pub fn unverified(&self, images: usize) -> PullerClient {
        self.client(images)
    }

    /// Counts that no connection to the puller came about, unless it is verified.
    pub fn failed(&self) {
        if !self.is_verified() {
            self.metrics.not_connected();
        }
    }

    fn client(&self, images: usize) -> PullerClient {
        let client = self.client.clone();
        client.max_decoding_message_size(contract::largest_answer(images))
    }

    /// The puller, verified. It is asked with `GetInfo` unless it has told of itself before.
    ///
    /// # Errors
    /// It is another one, or does not answer; the error is a sentence for people.
    pub async fn verified(&self) -> Result<Verified<'_>, Arc<str>> {
        self.verified_by(None).await
    }

    /// As [`Connection::verified`], by what it has told of itself with another answer.
    ///
    /// # Errors
    /// As there.
    pub async fn verified_by(
        &self,
        told: Option<GetInfoResponse>,
    ) -> Result<Verified<'_>, Arc<str>> {
        let facts = self.facts.get_or_try_init(|| async {
            let info = match told {
                Some(info) => Ok(info),
                None => self.ask().await,
            };
            let facts = info.and_then(|info| self.verify(&info));
            facts.inspect_err(|_| self.metrics.not_connected())
        });
        let facts = facts.await?;
        Ok(Verified {
            connection: self,
            facts,
        })
    }

    async fn ask(&self) -> Result<GetInfoResponse, Arc<str>> {
        let mut request = Request::new(GetInfoRequest {
            node_name: self.target.node.to_string(),
        });
        request.set_timeout(dial::CONNECT_LIMIT);
        let answer = self.client.clone().get_info(request).await;
        let failed = |status: Status| format!("GetInfo failed: {}", status.message()).into();
        answer.map(Response::into_inner).map_err(failed)
    }

    fn verify(&self, info: &GetInfoResponse) -> Result<Facts, Arc<str>> {
        let Target { node, .. } = &self.target;
        verify(&self.target, info)?;
        tracing::debug!(%node, "puller verified");
        if let Some(kubelets) = self.kubelets.other_than(node, &info.runtime_name) {
            let error = format!(
                "the puller uses {}, and the kubelet of {node} uses {kubelets}: correct puller.criSocketPath",
                info.runtime_name
            );
            tracing::warn!(%node, error, "wrong container runtime");
            return Err(error.into());
        }
        Ok(Facts {
            parallel_pulls: contract::parallel_pulls(info),
            peer_identity: PeerIdentity::of(info),
            _counted: self.metrics.connected(),
        })
    }
}

impl<'a> Verified<'a> {
    /// A client for calls with so many images: larger answers are refused.
    pub fn client(&self, images: usize) -> PullerClient {
        self.connection.client(images)
    }

    /// A client for what people look at.
    pub fn debug(&self) -> PullerDebugServiceClient<Channel> {
        self.connection.debug.clone()
    }

    /// Pulls that the puller runs at a time; 0: it does not say.
    pub fn parallel_pulls(&self) -> u32 {
        self.facts.parallel_pulls
    }

    /// What the puller has for other pullers.
    pub fn peer_identity(&self) -> &'a PeerIdentity {
        &self.facts.peer_identity
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
