//! The nodes from which one pull takes layers: connections to them, and what is known of each.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kubefledged_process::tls::{Connector, Failures, names};
use kubefledged_proto::{
    peer::{
        GetBlobRequest, GetBlobResponse, GetManifestRequest, peer_service_client::PeerServiceClient,
    },
    puller::Ticket,
};
use kubefledged_queue::Peers as Offer;
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{image::Image, locked};

/// Time limit for a connection, and for the first answer to a call.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(3);
/// A node may be told to take an image from another one before that one is told to pull it.
const BEFORE: Duration = Duration::from_secs(5);
/// Between two questions for a manifest.
const AGAIN: Duration = Duration::from_millis(200);
/// Memory for bytes that have come and are not written yet: of one stream, and of one connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Largest manifest with its index.
const DOCUMENTS: usize = 8 << 20;

/// A node that hands on layers.
pub struct Source {
    /// Its name.
    pub node: String,
    client: PeerServiceClient<Channel>,
    /// It sent what is wrong, or refuses our ticket: it is asked for nothing more.
    out: AtomicBool,
    /// Bytes a second that it sent last; `None`: nothing yet.
    rate: Mutex<Option<u64>>,
}

/// The nodes of one pull, in the order in which they are preferred.
pub struct Sources {
    all: Vec<Source>,
    ticket: Ticket,
    signer: Vec<Vec<u8>>,
    /// When the pull began.
    began: Instant,
}

impl Source {
    /// Asks it for nothing more.
    pub fn leave_out(&self, why: &dyn std::fmt::Display) {
        if !self.out.swap(true, Ordering::Relaxed) {
            tracing::warn!(node = self.node, %why, "this node is asked for no more layers of the image");
        }
    }

    /// Whether it is asked for nothing more.
    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    /// Bytes a second that it sent last.
    pub fn rate(&self) -> Option<u64> {
        *locked(&self.rate)
    }

    /// It sent so many bytes a second.
    pub fn sent(&self, rate: u64) {
        *locked(&self.rate) = Some(rate);
    }
}

impl Sources {
    /// Connects to them when they are first asked. Those without a usable address are left out.
    pub fn new(from: &Offer, namespace: &str, config: ClientConfig, failures: &Failures) -> Self {
        let (_, current) = watch::channel(Some(Arc::new(config)));
        let sources = from.nodes.iter().filter_map(|peer| {
            let address: SocketAddr = peer.address.parse().ok()?;
            let name = names::puller(namespace);
            let connector = Connector::new(current.clone(), name, failures.clone()).ok()?;
            // Only the address is used here: the connector does TLS and checks the name.
            let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
            let channel = endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .connect_with_connector_lazy(connector);
            Some(Source {
                node: peer.node.clone(),
                client: PeerServiceClient::new(channel).max_decoding_message_size(DOCUMENTS),
                out: AtomicBool::new(false),
                rate: Mutex::default(),
            })
        });
        Self {
            all: sources.collect(),
            ticket: Ticket {
                claims: from.claims.clone(),
                signature: from.signature.clone(),
            },
            signer: from.signer.to_vec(),
            began: Instant::now(),
        }
    }

    /// The nodes.
    pub fn all(&self) -> &[Source] {
        &self.all
    }

    /// Whether a node may not have been told of the pull yet.
    pub fn is_early(&self) -> bool {
        self.began.elapsed() < BEFORE
    }

    /// Asks all for the image of this digest, until one has it. `None`: nobody does.
    pub async fn image(&self, digest: &str) -> Option<Image> {
        loop {
            let asked = self.all.iter().filter(|source| !source.is_out());
            let mut asked: Vec<_> = asked
                .map(|source| Box::pin(self.image_of(source, digest)))
                .collect();
            while !asked.is_empty() {
                let (image, _, others) = futures::future::select_all(asked).await;
                if image.is_some() {
                    return image;
                }
                asked = others;
            }
            if !self.is_early() || self.all.iter().all(Source::is_out) {
                return None;
            }
            sleep(AGAIN).await;
        }
    }

    async fn image_of(&self, source: &Source, digest: &str) -> Option<Image> {
        let request = GetManifestRequest {
            node_name: source.node.clone(),
            ticket: Some(self.ticket.clone()),
            ticket_signer: self.signer.clone(),
        };
        let mut client = source.client.clone();
        let answer = timeout(ANSWER, client.get_manifest(request)).await.ok()?;
        let documents = match answer {
            Ok(answer) => answer.into_inner().documents,
            Err(status) => {
                refused(source, &status);
                return None;
            }
        };
        let verified = Image::verify(digest, documents);
        verified.inspect_err(|why| source.leave_out(why)).ok()
    }

    /// Asks one for a layer from an offset on.
    pub async fn layer(
        &self,
        source: &Source,
        digest: &str,
        offset: u64,
    ) -> Result<Streaming<GetBlobResponse>, Status> {
        let request = GetBlobRequest {
            node_name: source.node.clone(),
            ticket: Some(self.ticket.clone()),
            ticket_signer: self.signer.clone(),
            digest: digest.to_owned(),
            offset,
            held: Vec::new(),
        };
        let mut client = source.client.clone();
        let answer = timeout(ANSWER, client.get_blob(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        answer
            .map(tonic::Response::into_inner)
            .inspect_err(|status| refused(source, status))
    }
}

/// A refusal of what we are is not worth another question.
fn refused(source: &Source, status: &Status) {
    tracing::debug!(node = source.node, code = ?status.code(), message = status.message(), "not sent");
    let code = status.code();
    if matches!(
        code,
        Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument
    ) {
        source.leave_out(&status.message());
    }
}
