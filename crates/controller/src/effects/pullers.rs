//! Calls to the pullers: one connection per busy node, none when idle. One node's failure is one
//! node's outcome.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use kubefledged_api_types::ImagePullPolicy;
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CancelPulls, CredentialScope, Event, ImageOutcome, ImageResult,
    PullItem, Work,
};
use kubefledged_image::ImageRef;
use kubefledged_proto::puller::{
    Authority, BatchCancel, CancelPullsRequest, CheckImagesRequest, Credential, ImagePull,
    ImageState, PullImagesRequest, PullOutcome, PullPolicy, PullResult, RemoveImagesRequest,
    RemoveOutcome, RemoveResult, Retention, pull_images_response,
    puller_service_client::PullerServiceClient, remove_images_response,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::credentials::Credentials;

/// For making a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// For a call that is answered at once.
const UNARY_LIMIT: Duration = Duration::from_secs(30);
/// A stream that is silent for so long is lost; the puller speaks every 10 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const MESSAGE_LIMIT: usize = 8 << 20;
/// Metadata of a refusal: the term the puller has seen.
const SEEN_TERM: &str = "kubefledged-seen-term";

type PullerClient = PullerServiceClient<Channel>;

/// See the module.
#[derive(Clone)]
pub struct Pullers {
    inner: Arc<Inner>,
}

struct Inner {
    credentials: Credentials,
    /// Open connections; each lives as long as somebody uses it.
    channels: Mutex<HashMap<SocketAddr, Weak<Channel>>>,
    dials: Semaphore,
    calls: Arc<Semaphore>,
}

impl Pullers {
    /// At most so many connections being made, and so many calls, at a time.
    pub fn new(credentials: Credentials, max_dials: usize, max_calls: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                credentials,
                channels: Mutex::default(),
                dials: Semaphore::new(max_dials.max(1)),
                calls: Arc::new(Semaphore::new(max_calls.max(1))),
            }),
        }
    }

    /// Starts a batch; it answers by events, the last of which says how it ended.
    pub fn start(&self, batch: Batch, events: mpsc::Sender<Event>, shutdown: &CancellationToken) {
        let inner = self.inner.clone();
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let id = batch.id;
            let Ok(_call) = inner.calls.clone().acquire_owned().await else {
                return;
            };
            let end = tokio::select! {
                () = shutdown.cancelled() => BatchEnd::Lost,
                end = inner.carry_out(&batch, &events) => end,
            };
            if !matches!(end, BatchEnd::Done) {
                tracing::debug!(node = %batch.node, imagecache = %batch.cache, ?end, "batch ended early");
            }
            let _ = events.send(Event::BatchEnded(id, end)).await;
        });
    }

    /// Ends interests; what became of the pulls, their batch tells.
    pub fn cancel(&self, cancel: CancelPulls) {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            if let Err(error) = inner.cancel(&cancel).await {
                tracing::warn!(node = %cancel.node, %error, "cannot cancel pulls");
            }
        });
    }
}

impl Inner {
    async fn carry_out(&self, batch: &Batch, events: &mpsc::Sender<Event>) -> BatchEnd {
        let channel = match self.channel(batch.puller.address).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::debug!(node = %batch.node, %error, "cannot connect");
                return BatchEnd::Unreachable;
            }
        };
        let mut client = client(&channel);
        let result = match &batch.work {
            Work::Pull {
                images,
                credentials,
            } => {
                self.pull(&mut client, batch, images, credentials, events)
                    .await
            }
            Work::Remove {
                references,
                wanted,
                releasable,
            } => {
                let request = RemoveImagesRequest {
                    authority: Some(authority(batch)),
                    references: texts(references),
                    wanted: texts(wanted),
                    releasable: texts(releasable),
                    unpin_ours: false,
                };
                remove(&mut client, batch.id, request, events).await
            }
            Work::Check { references } => {
                let request = CheckImagesRequest {
                    node_name: batch.node.to_string(),
                    references: texts(references),
                };
                check(&mut client, batch.id, request, events).await
            }
        };
        match result {
            Ok(end) => end,
            Err(status) => ended_by(&status),
        }
    }

    /// The connection to a puller, made when nobody has it open.
    async fn channel(&self, address: SocketAddr) -> Result<Arc<Channel>, tonic::transport::Error> {
        let open = || {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            channels.retain(|_, channel| channel.strong_count() > 0);
            channels.get(&address).and_then(Weak::upgrade)
        };
        if let Some(channel) = open() {
            return Ok(channel);
        }
        let _dial = self.dials.acquire().await;
        if let Some(channel) = open() {
            return Ok(channel);
        }
        // The seam for mTLS: `connect_with_connector` with our own rustls connector.
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .connect()
            .await?;
        let channel = Arc::new(channel);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.insert(address, Arc::downgrade(&channel));
        Ok(channel)
    }

    async fn pull(
        &self,
        client: &mut PullerClient,
        batch: &Batch,
        images: &[PullItem],
        scope: &CredentialScope,
        events: &mpsc::Sender<Event>,
    ) -> Result<BatchEnd, Status> {
        let resolved = match self.credentials.resolve(scope).await {
            Ok(resolved) => resolved,
            Err(error) => {
                let message = format!("cannot read imagePullSecrets: {error}");
                return Ok(BatchEnd::CredentialsFailed(message));
            }
        };
        let missing = Event::SecretsMissing(batch.cache.clone(), resolved.missing.clone());
        if !resolved.missing.is_empty() {
            let _ = events.send(missing).await;
        }
        let mut sent: Vec<Credential> = Vec::new();
        let images = images
            .iter()
            .map(|item| {
                let matching = ImageRef::parse(&item.reference)
                    .map(|image| {
                        resolved
                            .keyring
                            .matching(&image)
                            .into_iter()
                            .cloned()
                            .collect()
                    })
                    .unwrap_or_default();
                image_pull(item, matching, &mut sent)
            })
            .collect();
        let request = PullImagesRequest {
            authority: Some(authority(batch)),
            images,
            credentials: sent,
            progress_interval_ms: 0,
        };
        let mut stream = client
            .pull_images(Request::new(request))
            .await?
            .into_inner();
        while let Some(message) = next(&mut stream).await? {
            if let Some(pull_images_response::Event::Outcomes(outcomes)) = message.event {
                let outcomes = outcomes.outcomes.into_iter().map(pull_outcome).collect();
                let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
            }
        }
        Ok(BatchEnd::Done)
    }

    async fn cancel(&self, cancel: &CancelPulls) -> anyhow::Result<()> {
        let channel = self.channel(cancel.puller.address).await?;
        let mut request = Request::new(CancelPullsRequest {
            authority: Some(Authority {
                node_name: cancel.node.to_string(),
                term: cancel.term,
                seq: cancel.seq,
                batch_id: cancel.batch.0,
            }),
            cancels: vec![BatchCancel {
                batch_id: cancel.batch.0,
                references: texts(&cancel.references),
            }],
        });
        request.set_timeout(UNARY_LIMIT);
        client(&channel).cancel_pulls(request).await?;
        Ok(())
    }
}

fn client(channel: &Arc<Channel>) -> PullerClient {
    PullerServiceClient::new(Channel::clone(channel))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

async fn remove(
    client: &mut PullerClient,
    id: BatchId,
    request: RemoveImagesRequest,
    events: &mpsc::Sender<Event>,
) -> Result<BatchEnd, Status> {
    let mut stream = client
        .remove_images(Request::new(request))
        .await?
        .into_inner();
    while let Some(message) = next(&mut stream).await? {
        if let Some(remove_images_response::Event::Outcomes(outcomes)) = message.event {
            let outcomes = outcomes.outcomes.into_iter().map(remove_outcome).collect();
            let _ = events.send(Event::Outcomes(id, outcomes)).await;
        }
    }
    Ok(BatchEnd::Done)
}

async fn check(
    client: &mut PullerClient,
    id: BatchId,
    request: CheckImagesRequest,
    events: &mpsc::Sender<Event>,
) -> Result<BatchEnd, Status> {
    let mut request = Request::new(request);
    request.set_timeout(UNARY_LIMIT);
    let response = client.check_images(request).await?.into_inner();
    let outcomes = response
        .images
        .into_iter()
        .map(|image| {
            let result = match image.state() {
                ImageState::Present => ImageResult::Present,
                ImageState::Queued | ImageState::Pulling => ImageResult::Pulling,
                ImageState::Absent | ImageState::Failed => ImageResult::Absent,
                ImageState::Unspecified => failed(image.reason, image.message),
            };
            ImageOutcome {
                index: index(image.index),
                result,
            }
        })
        .collect();
    let _ = events.send(Event::Outcomes(id, outcomes)).await;
    Ok(BatchEnd::Done)
}

/// The next message; silence is a broken stream.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match tokio::time::timeout(SILENCE_LIMIT, stream.message()).await {
        Ok(message) => message,
        Err(_) => Err(Status::deadline_exceeded("the puller is silent")),
    }
}

fn authority(batch: &Batch) -> Authority {
    Authority {
        node_name: batch.node.to_string(),
        term: batch.term,
        seq: batch.seq,
        batch_id: batch.id.0,
    }
}

fn texts(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// One image of a request. Each credential is sent once, however many images it is for.
fn image_pull(item: &PullItem, matching: Vec<Credential>, sent: &mut Vec<Credential>) -> ImagePull {
    let credentials = matching
        .into_iter()
        .map(|credential| {
            let at = sent
                .iter()
                .position(|known| *known == credential)
                .unwrap_or_else(|| {
                    sent.push(credential);
                    sent.len() - 1
                });
            u32::try_from(at).unwrap_or(u32::MAX)
        })
        .collect();
    let policy = match item.policy {
        ImagePullPolicy::IfNotPresent => PullPolicy::IfNotPresent,
        ImagePullPolicy::Always => PullPolicy::Always,
    };
    ImagePull {
        reference: item.reference.to_string(),
        policy: policy.into(),
        freshness: item.freshness.clone(),
        priority: item.priority,
        deadline_ms: u32::try_from(item.deadline.as_millis()).unwrap_or(u32::MAX),
        no_progress_ms: 0,
        retention: Retention::Leave.into(),
        credentials,
    }
}

fn failed(reason: String, message: String) -> ImageResult {
    ImageResult::Failed { reason, message }
}

fn pull_outcome(outcome: PullOutcome) -> ImageOutcome {
    let result = match outcome.result() {
        PullResult::Present => ImageResult::Present,
        PullResult::Pulled => ImageResult::Pulled,
        PullResult::Cancelled => ImageResult::Cancelled,
        PullResult::Superseded => ImageResult::Superseded,
        PullResult::Failed | PullResult::Unspecified => failed(outcome.reason, outcome.message),
    };
    ImageOutcome {
        index: index(outcome.index),
        result,
    }
}

fn remove_outcome(outcome: RemoveOutcome) -> ImageOutcome {
    let result = match outcome.result() {
        RemoveResult::Removed => ImageResult::Removed,
        RemoveResult::Absent => ImageResult::Absent,
        RemoveResult::Kept => ImageResult::Kept(outcome.reason),
        RemoveResult::Superseded => ImageResult::Superseded,
        RemoveResult::Failed | RemoveResult::Unspecified => failed(outcome.reason, outcome.message),
    };
    ImageOutcome {
        index: index(outcome.index),
        result,
    }
}

fn ended_by(status: &Status) -> BatchEnd {
    tracing::debug!(code = ?status.code(), message = status.message(), "call failed");
    match status.code() {
        Code::FailedPrecondition => BatchEnd::Refused {
            seen_term: status
                .metadata()
                .get(SEEN_TERM)
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .unwrap_or_default(),
        },
        _ => BatchEnd::Lost,
    }
}
