//! The gRPC service of the contract. It converts requests to events of the queue, and replies to messages.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kubefledged_contract::{
    HEARTBEAT, SEEN_TERM,
    puller::{self as contract, Malformed},
};
use kubefledged_process::tls::Served;
use kubefledged_proto::puller::{
    CancelPullsRequest, CancelPullsResponse, CheckImagesRequest, CheckImagesResponse, Credential,
    GetInfoRequest, GetInfoResponse, ListImagesRequest, ListImagesResponse, NodeImage,
    PullImagesRequest, PullImagesResponse, RemoveImagesRequest, RemoveImagesResponse,
    SetPeerIdentityRequest, SetPeerIdentityResponse, puller_service_server::PullerService,
};
use kubefledged_queue::{CredentialId, Event, StreamId};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    driver::{Input, Reply},
    node::{Abilities, Node},
    peers::{Peers, identity::Own},
};

/// Whoever asks what a puller is learns within this time that its runtime hangs.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

/// The gRPC service.
#[derive(Clone)]
pub struct Service {
    /// Name of the node. Requests for another node are refused.
    pub node_name: Arc<str>,
    /// UID of this pod.
    pub instance: Arc<str>,
    /// Maximum number of pulls at the same time.
    pub max_parallel_pulls: u32,
    /// Access to the node, for read-only requests.
    pub node: Node,
    /// Facts about the runtime.
    pub abilities: watch::Receiver<Abilities>,
    /// To the driver.
    pub inputs: mpsc::UnboundedSender<Input>,
    /// Ends streams at the shutdown, so that they do not keep the server open.
    pub shutdown: CancellationToken,
    /// Numbers streams and credentials.
    pub counter: Arc<AtomicU64>,
    /// The served identity. The leader asks for it during a rotation.
    pub identity: watch::Receiver<Option<Arc<Served>>>,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Layers from other nodes, where the runtime lets us take them.
    fn peers(&self) -> Option<&Peers> {
        let peers = self.node.peers.as_ref();
        peers.filter(|peers| peers.is_supported())
    }

    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn check_node(&self, asked: &str) -> Result<(), Status> {
        contract::check_node(&self.node_name, asked).map_err(|error| malformed(&error))
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn send(
        &self,
        stream: StreamId,
        event: Event,
        credentials: Vec<(CredentialId, Credential)>,
    ) -> Result<Replies, Status> {
        if self.shutdown.is_cancelled() {
            return Err(leaving());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let input = Input::Request(event, Some((stream, sender)), credentials);
        self.inputs.send(input).map_err(|_| leaving())?;
        Ok(Replies {
            stream,
            receiver,
            inputs: self.inputs.clone(),
        })
    }

    /// What `GetInfo` answers.
    async fn info(&self) -> Result<GetInfoResponse, Status> {
        let version = tokio::time::timeout(VERSION_LIMIT, self.node.cri.version()).await;
        let version =
            version.map_err(|_| Status::unavailable("the container runtime does not answer"))??;
        let abilities = *self.abilities.borrow();
        let served = self.identity.borrow().clone();
        let own = self.peers().map(Peers::own);
        let (trusted, serial) = served.map_or_else(Default::default, |served| {
            (served.trusted.clone(), served.serial.clone())
        });
        Ok(GetInfoResponse {
            node_name: self.node_name.to_string(),
            puller_instance: self.instance.to_string(),
            runtime_name: version.runtime_name,
            runtime_version: version.runtime_version,
            max_parallel_pulls: self.max_parallel_pulls,
            pin_support: contract::support(abilities.pins).into(),
            progress_support: contract::support(abilities.progress).into(),
            features: self.node.features(),
            trusted_ca_fingerprints: trusted,
            leaf_serial: serial,
            peer_support: contract::support(abilities.peers).into(),
            peer_certificate_request: own.map(Own::request).unwrap_or_default(),
            peer_serial: own.and_then(Own::serial).unwrap_or_default(),
        })
    }

    /// Returns a stream of the queue's replies as messages, with heartbeats between them.
    fn outgoing<T: Send + 'static>(
        &self,
        mut replies: Replies,
        convert: fn(Reply) -> Option<T>,
        heartbeat: fn() -> T,
    ) -> Outgoing<T> {
        let (sender, receiver) = mpsc::channel(16);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    () = sender.closed() => return,
                    () = shutdown.cancelled() => Err(leaving()),
                    reply = replies.receiver.recv() => match reply {
                        None => Err(leaving()),
                        Some(Reply::Done) => return,
                        Some(Reply::Refused(seen)) => Err(refused(seen)),
                        Some(Reply::Overloaded) => Err(overloaded()),
                        Some(reply) => match convert(reply) {
                            Some(message) => Ok(message),
                            None => continue,
                        },
                    },
                    () = tokio::time::sleep(HEARTBEAT) => Ok(heartbeat()),
                };
                let last = message.is_err();
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }
}

/// Replies to one request. Dropping them tells the queue that the caller is gone.
struct Replies {
    stream: StreamId,
    receiver: mpsc::UnboundedReceiver<Reply>,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Drop for Replies {
    fn drop(&mut self) {
        let closed = Event::Closed(self.stream);
        let _ = self.inputs.send(Input::Request(closed, None, Vec::new()));
    }
}

impl Replies {
    /// Returns the reply to a unary call.
    async fn one(&mut self) -> Result<Reply, Status> {
        match self.receiver.recv().await {
            Some(Reply::Refused(seen)) => Err(refused(seen)),
            Some(Reply::Overloaded) => Err(overloaded()),
            Some(reply) => Ok(reply),
            None => Err(leaving()),
        }
    }
}

fn leaving() -> Status {
    Status::unavailable("this puller is shutting down")
}

fn overloaded() -> Status {
    Status::resource_exhausted(
        "too many images are asked for at a time; nothing of this request was taken, send it later or \
         in parts",
    )
}

fn malformed(error: &Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn refused(seen: u64) -> Status {
    let mut status =
        Status::failed_precondition(format!("term {seen} was seen: a later leader is at work"));
    status.metadata_mut().insert(SEEN_TERM, seen.into());
    status
}

#[tonic::async_trait]
impl PullerService for Service {
    type PullImagesStream = Outgoing<PullImagesResponse>;
    type RemoveImagesStream = Outgoing<RemoveImagesResponse>;
    type ListImagesStream = Outgoing<ListImagesResponse>;

    async fn set_peer_identity(
        &self,
        request: Request<SetPeerIdentityRequest>,
    ) -> Result<Response<SetPeerIdentityResponse>, Status> {
        let SetPeerIdentityRequest {
            node_name,
            certificates,
        } = request.into_inner();
        self.check_node(&node_name)?;
        let peers = self.peers();
        let peers = peers.ok_or_else(|| Status::unimplemented("no layers from other nodes"))?;
        peers
            .own()
            .install(certificates)
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        Ok(Response::new(SetPeerIdentityResponse {}))
    }

    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        self.check_node(&request.into_inner().node_name)?;
        self.info().await.map(Response::new)
    }

    async fn pull_images(
        &self,
        request: Request<PullImagesRequest>,
    ) -> Result<Response<Self::PullImagesStream>, Status> {
        let request = request.into_inner();
        let authority = contract::authority(&self.node_name, request.authority)
            .map_err(|error| malformed(&error))?;
        let credentials: Vec<(CredentialId, Credential)> = request
            .credentials
            .into_iter()
            .map(|c| (CredentialId(self.number()), c))
            .collect();
        let signer = request.ticket_signer.into();
        let images = request
            .images
            .into_iter()
            .map(|image| contract::pull_request(image, &credentials, &signer, hash))
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&error))?;
        let stream = StreamId(self.number());
        let replies = self.send(stream, Event::Pull(stream, authority, images), credentials)?;
        let convert = |reply| match reply {
            Reply::Accepted(attached) => Some(contract::accepted(attached)),
            Reply::Pulled(outcomes) => Some(contract::pulled(outcomes)),
            Reply::Transfers(transfers) => Some(contract::transfers(transfers)),
            _ => None,
        };
        let heartbeat = contract::pull_heartbeat;
        Ok(Response::new(self.outgoing(replies, convert, heartbeat)))
    }

    async fn remove_images(
        &self,
        request: Request<RemoveImagesRequest>,
    ) -> Result<Response<Self::RemoveImagesStream>, Status> {
        let stream = StreamId(self.number());
        let event = contract::remove_event(&self.node_name, stream, request.into_inner())
            .map_err(|error| malformed(&error))?;
        let replies = self.send(stream, event, Vec::new())?;
        let convert = |reply| match reply {
            Reply::Removed(outcomes) => Some(contract::removed(outcomes)),
            _ => None,
        };
        let heartbeat = contract::remove_heartbeat;
        Ok(Response::new(self.outgoing(replies, convert, heartbeat)))
    }

    async fn check_images(
        &self,
        request: Request<CheckImagesRequest>,
    ) -> Result<Response<CheckImagesResponse>, Status> {
        let request = request.into_inner();
        self.check_node(&request.node_name)?;
        let stream = StreamId(self.number());
        let mut replies =
            self.send(stream, Event::Check(stream, request.references), Vec::new())?;
        let info = async {
            if request.with_info {
                self.info().await.map(Some)
            } else {
                Ok(None)
            }
        };
        let (reply, info) = tokio::try_join!(replies.one(), info)?;
        let Reply::Checked(report) = reply else {
            return Err(Status::internal("the queue gave another answer"));
        };
        Ok(Response::new(CheckImagesResponse {
            info,
            ..contract::checked(report)
        }))
    }

    async fn cancel_pulls(
        &self,
        request: Request<CancelPullsRequest>,
    ) -> Result<Response<CancelPullsResponse>, Status> {
        let stream = StreamId(self.number());
        let event = contract::cancel_event(&self.node_name, stream, request.into_inner())
            .map_err(|error| malformed(&error))?;
        let mut replies = self.send(stream, event, Vec::new())?;
        let Reply::Cancelled(ended) = replies.one().await? else {
            return Err(Status::internal("the queue gave another answer"));
        };
        Ok(Response::new(CancelPullsResponse { ended }))
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<Self::ListImagesStream>, Status> {
        const PAGE: usize = 200;

        self.check_node(&request.into_inner().node_name)?;
        let images: Vec<NodeImage> = self
            .node
            .cri
            .list_images()
            .await?
            .into_iter()
            .map(|image| NodeImage {
                id: image.id,
                repo_tags: image.repo_tags,
                repo_digests: image.repo_digests,
                size_bytes: image.size,
                pinned: image.pinned,
            })
            .collect();
        let pages: Vec<_> = images
            .chunks(PAGE)
            .map(|page| {
                Ok(ListImagesResponse {
                    images: page.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }
}

/// Hashes credentials with a random state of this process, so that the hash reveals nothing.
fn hash(credentials: &[&Credential]) -> u64 {
    use std::{
        hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
        sync::LazyLock,
    };

    static SALT: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = SALT.build_hasher();
    for Credential {
        username,
        password,
        identity_token,
        registry_token,
    } in credentials
    {
        (username, password, identity_token, registry_token).hash(&mut hasher);
    }
    hasher.finish()
}
