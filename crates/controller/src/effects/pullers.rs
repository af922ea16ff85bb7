//! Calls to the pullers: one connection per busy node, none when idle. One node's failure is one
//! node's outcome.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use kubefledged_contract::{SEEN_TERM, controller as contract};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CancelPulls, CredentialScope, Event, PullItem, Work,
};
use kubefledged_proto::puller::{
    CheckImagesRequest, RemoveImagesRequest, puller_service_client::PullerServiceClient,
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
                let request = contract::remove_request(batch, references, wanted, releasable);
                remove(&mut client, batch.id, request, events).await
            }
            Work::Check { references } => {
                let request = contract::check_request(batch, references);
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
        let request = contract::pull_request(batch, images, &resolved.keyring);
        let mut stream = client
            .pull_images(Request::new(request))
            .await?
            .into_inner();
        while let Some(message) = next(&mut stream).await? {
            if let Some(outcomes) = contract::pulled(message) {
                let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
            }
        }
        Ok(BatchEnd::Done)
    }

    async fn cancel(&self, cancel: &CancelPulls) -> anyhow::Result<()> {
        let channel = self.channel(cancel.puller.address).await?;
        let mut request = Request::new(contract::cancel_request(cancel));
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
        if let Some(outcomes) = contract::removed(message) {
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
    let outcomes = contract::checked(response);
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
