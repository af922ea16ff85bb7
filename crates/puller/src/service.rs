//! The contract with the controller, turned into the queue's events and back.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kubefledged_proto::puller::{
    Accepted, CancelPullsRequest, CancelPullsResponse, CheckImagesRequest, CheckImagesResponse,
    CheckedImage, Credential, GetInfoRequest, GetInfoResponse, Heartbeat, ImagePull, ImageState,
    ListImagesRequest, ListImagesResponse, NodeImage, PullImagesRequest, PullImagesResponse,
    PullOutcome, PullOutcomes, PullPolicy, PullResult, RemoveImagesRequest, RemoveImagesResponse,
    RemoveOutcome, RemoveOutcomes, RemoveResult, Support, pull_images_response,
    puller_service_server::PullerService, remove_images_response,
};
use kubefledged_queue as queue;
use kubefledged_queue::{Authority, CredentialId, Event, Policy, PullRequest, StreamId};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    cri::Cri,
    driver::{Input, Reply},
};

/// The controller takes 30 s of silence for a broken stream.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Metadata of a refusal: the term that was seen.
const SEEN_TERM: &str = "kubefledged-seen-term";

/// See the module.
#[derive(Clone)]
pub struct Service {
    /// Requests for another node are refused.
    pub node_name: Arc<str>,
    /// This pod.
    pub instance: Arc<str>,
    /// Pulls at a time.
    pub max_parallel_pulls: u32,
    /// For what is only asked.
    pub cri: Cri,
    /// To the driver.
    pub inputs: mpsc::UnboundedSender<Input>,
    /// Streams end then, so that they do not hold the server open.
    pub shutdown: CancellationToken,
    /// For streams and credentials.
    pub counter: Arc<AtomicU64>,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn check_node(&self, asked: &str) -> Result<(), Status> {
        if asked == &*self.node_name {
            return Ok(());
        }
        Err(Status::invalid_argument(format!(
            "this is the puller of node {:?}, not of {asked:?}",
            self.node_name
        )))
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn authority(
        &self,
        authority: Option<kubefledged_proto::puller::Authority>,
    ) -> Result<Authority, Status> {
        let authority =
            authority.ok_or_else(|| Status::invalid_argument("authority is missing"))?;
        self.check_node(&authority.node_name)?;
        Ok(Authority {
            term: authority.term,
            seq: authority.seq,
            batch: authority.batch_id,
        })
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

    /// Replies of the queue as messages, with heartbeats between them.
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

/// Replies to one request; whoever drops them has gone.
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
    /// The one reply to a call that is no stream.
    async fn one(&mut self) -> Result<Reply, Status> {
        match self.receiver.recv().await {
            Some(Reply::Refused(seen)) => Err(refused(seen)),
            Some(reply) => Ok(reply),
            None => Err(leaving()),
        }
    }
}

fn leaving() -> Status {
    Status::unavailable("this puller is shutting down")
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

    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        self.check_node(&request.into_inner().node_name)?;
        let version = self.cri.version().await?;
        Ok(Response::new(GetInfoResponse {
            node_name: self.node_name.to_string(),
            puller_instance: self.instance.to_string(),
            runtime_name: version.runtime_name,
            runtime_version: version.runtime_version,
            max_parallel_pulls: self.max_parallel_pulls,
            pin_support: Support::No.into(),
            progress_support: Support::No.into(),
            ..GetInfoResponse::default()
        }))
    }

    async fn pull_images(
        &self,
        request: Request<PullImagesRequest>,
    ) -> Result<Response<Self::PullImagesStream>, Status> {
        let request = request.into_inner();
        let authority = self.authority(request.authority)?;
        let credentials: Vec<(CredentialId, Credential)> = request
            .credentials
            .into_iter()
            .map(|c| (CredentialId(self.number()), c))
            .collect();
        let images = request
            .images
            .into_iter()
            .map(|image| pull_request(image, &credentials))
            .collect::<Result<_, _>>()?;
        let stream = StreamId(self.number());
        let replies = self.send(stream, Event::Pull(stream, authority, images), credentials)?;
        let convert = |reply| {
            let event = match reply {
                Reply::Accepted(attached) => {
                    pull_images_response::Event::Accepted(Accepted { attached })
                }
                Reply::Pulled(outcomes) => pull_images_response::Event::Outcomes(PullOutcomes {
                    outcomes: outcomes.into_iter().map(pull_outcome).collect(),
                }),
                _ => return None,
            };
            Some(PullImagesResponse { event: Some(event) })
        };
        let heartbeat = || PullImagesResponse {
            event: Some(pull_images_response::Event::Heartbeat(Heartbeat {})),
        };
        Ok(Response::new(self.outgoing(replies, convert, heartbeat)))
    }

    async fn remove_images(
        &self,
        request: Request<RemoveImagesRequest>,
    ) -> Result<Response<Self::RemoveImagesStream>, Status> {
        let request = request.into_inner();
        let authority = self.authority(request.authority)?;
        let stream = StreamId(self.number());
        let event = Event::Remove {
            stream,
            authority,
            references: request.references,
            wanted: request.wanted,
            releasable: request.releasable,
        };
        let replies = self.send(stream, event, Vec::new())?;
        let convert = |reply| match reply {
            Reply::Removed(outcomes) => Some(RemoveImagesResponse {
                event: Some(remove_images_response::Event::Outcomes(RemoveOutcomes {
                    outcomes: outcomes.into_iter().map(remove_outcome).collect(),
                })),
            }),
            _ => None,
        };
        let heartbeat = || RemoveImagesResponse {
            event: Some(remove_images_response::Event::Heartbeat(Heartbeat {})),
        };
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
        let Reply::Checked(answers, highest_term) = replies.one().await? else {
            return Err(Status::internal("the queue gave another answer"));
        };
        Ok(Response::new(CheckImagesResponse {
            images: answers.into_iter().enumerate().map(checked_image).collect(),
            highest_term,
            ..CheckImagesResponse::default()
        }))
    }

    async fn cancel_pulls(
        &self,
        request: Request<CancelPullsRequest>,
    ) -> Result<Response<CancelPullsResponse>, Status> {
        let request = request.into_inner();
        let authority = self.authority(request.authority)?;
        let cancels = request
            .cancels
            .into_iter()
            .map(|c| (c.batch_id, c.references))
            .collect();
        let stream = StreamId(self.number());
        let mut replies = self.send(
            stream,
            Event::Cancel(stream, authority, cancels),
            Vec::new(),
        )?;
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

#[allow(clippy::result_large_err)] // tonic's own error
fn pull_request(
    image: ImagePull,
    credentials: &[(CredentialId, Credential)],
) -> Result<PullRequest, Status> {
    let policy = match image.policy() {
        PullPolicy::Always => Policy::Always,
        PullPolicy::IfNotPresent | PullPolicy::Unspecified => Policy::IfNotPresent,
    };
    let chosen = image
        .credentials
        .iter()
        .map(|index| credentials.get(*index as usize))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Status::invalid_argument("a credential index is out of range"))?;
    Ok(PullRequest {
        reference: image.reference,
        policy,
        freshness: image.freshness,
        priority: image.priority,
        deadline: (image.deadline_ms > 0).then(|| Duration::from_millis(image.deadline_ms.into())),
        credential_hash: hash(chosen.iter().map(|(_, credential)| credential)),
        credentials: chosen.into_iter().map(|(id, _)| *id).collect(),
    })
}

/// Salted with this process's own random state: it tells nothing outside.
fn hash<'a>(credentials: impl Iterator<Item = &'a Credential>) -> u64 {
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

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn pull_outcome(outcome: queue::PullOutcome) -> PullOutcome {
    let (result, reason, message) = match outcome.result {
        queue::PullResult::Present => (PullResult::Present, String::new(), String::new()),
        queue::PullResult::Pulled => (PullResult::Pulled, String::new(), String::new()),
        queue::PullResult::Cancelled => (PullResult::Cancelled, String::new(), String::new()),
        queue::PullResult::Superseded => (PullResult::Superseded, String::new(), String::new()),
        queue::PullResult::Failed { reason, message } => (PullResult::Failed, reason, message),
    };
    let image = outcome.image.unwrap_or_default();
    PullOutcome {
        index: number(outcome.index),
        result: result.into(),
        reason,
        message,
        image_id: image.id,
        repo_digests: image.digests,
        size_bytes: image.size,
        attempts: outcome.attempts,
        took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        retry_after_ms: 0,
    }
}

fn remove_outcome(outcome: queue::RemoveOutcome) -> RemoveOutcome {
    let (result, reason, message) = match outcome.result {
        queue::RemoveResult::Removed => (RemoveResult::Removed, String::new(), String::new()),
        queue::RemoveResult::Absent => (RemoveResult::Absent, String::new(), String::new()),
        queue::RemoveResult::Superseded => (RemoveResult::Superseded, String::new(), String::new()),
        queue::RemoveResult::Kept { reason, message } => (RemoveResult::Kept, reason, message),
        queue::RemoveResult::Failed { reason, message } => (RemoveResult::Failed, reason, message),
    };
    RemoveOutcome {
        index: number(outcome.index),
        result: result.into(),
        reason,
        message,
    }
}

fn checked_image((index, checked): (usize, queue::Checked)) -> CheckedImage {
    let mut image = CheckedImage {
        index: number(index),
        ..CheckedImage::default()
    };
    match checked {
        queue::Checked::Absent => image.set_state(ImageState::Absent),
        queue::Checked::Queued => image.set_state(ImageState::Queued),
        queue::Checked::Pulling => image.set_state(ImageState::Pulling),
        queue::Checked::Failed { reason, message } => {
            image.set_state(ImageState::Failed);
            (image.reason, image.message) = (reason, message);
        }
        queue::Checked::Unknown { reason, message } => {
            image.set_state(ImageState::Unspecified);
            (image.reason, image.message) = (reason, message);
        }
        queue::Checked::Present(seen) => {
            image.set_state(ImageState::Present);
            image.image_id = seen.id;
            image.repo_digests = seen.digests;
            image.pinned = seen.pinned;
            image.size_bytes = seen.size;
        }
    }
    image
}
