//! Calls to the pullers. The failure of one node does not affect another.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use kubefledged_contract::{SEEN_TERM, controller as contract};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CancelPulls, CredentialScope, Event, NodeName, PullItem, Puller,
    SecretProblems, Work,
};
use kubefledged_process::tls::Connector;
use kubefledged_proto::puller::{
    CheckImagesRequest, GetInfoRequest, GetInfoResponse, PullImagesRequest, RemoveImagesRequest,
    puller_service_client::PullerServiceClient,
};
use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::{
    credentials::{Credentials, Resolved},
    dial,
    dockercfg::MOST_LOGIN,
    pool::{Borrowed, Dial, Pool},
};
use crate::metrics::{Connected, Metrics};

/// Time limit for a unary call, and for the first message of a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A stream without a message for this time is lost. The puller sends a heartbeat every 10 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const MESSAGE_LIMIT: usize = 8 << 20;

type PullerClient = PullerServiceClient<Channel>;

/// Calls to pullers. Clones share their state.
#[derive(Clone)]
pub struct Pullers {
    pool: Pool<Dialer>,
    credentials: Arc<Credentials>,
    metrics: Metrics,
}

/// Connects, and verifies that the peer is the expected puller, because pod IPs are reused and endpoints
/// are updated late.
struct Dialer {
    connector: Connector,
    metrics: Metrics,
}

/// An open connection, and facts about its puller.
#[derive(Clone)]
struct Connection {
    client: PullerClient,
    parallel_pulls: u32,
    _counted: Arc<Connected>,
}

/// The puller's pod that an endpoint names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    node: NodeName,
    instance: Arc<str>,
    address: SocketAddr,
}

impl Target {
    fn new(node: &NodeName, puller: &Puller) -> Self {
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
        let (client, info) = connected.inspect_err(|_| self.metrics.not_connected())?;
        Ok(Connection {
            client,
            parallel_pulls: info.max_parallel_pulls,
            _counted: self.metrics.connected(),
        })
    }
}

impl Dialer {
    async fn connect(&self, target: &Target) -> Result<(PullerClient, GetInfoResponse), Arc<str>> {
        let channel = dial::connect(self.connector.clone(), target.address)
            .await
            .map_err(|error| Arc::from(sentence(&error)))?;
        let mut client = PullerServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
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
        Ok((client, info))
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

impl Pullers {
    /// Creates it with limits for dials and for open connections.
    pub fn new(
        connector: Connector,
        credentials: Credentials,
        metrics: Metrics,
        max_dials: usize,
        max_connections: usize,
    ) -> Self {
        Self {
            pool: Pool::new(
                Dialer {
                    connector,
                    metrics: metrics.clone(),
                },
                max_dials,
                max_connections,
            ),
            credentials: Arc::new(credentials),
            metrics,
        }
    }

    /// Carries out a batch. Outcomes are sent as events; the returned event says how the batch ended.
    pub async fn run(&self, batch: Batch, events: &mpsc::Sender<Event>) -> Event {
        let end = self.carry_out(&batch, events).await;
        if !matches!(end, BatchEnd::Done) {
            tracing::debug!(node = %batch.node, imagecache = ?batch.cache, ?end, "batch ended early");
        }
        Event::BatchEnded(batch.id, end)
    }

    /// Cancels pulls. Their batch reports the outcomes.
    pub async fn cancel(&self, cancel: CancelPulls) {
        if let Err(error) = self.send_cancel(&cancel).await {
            tracing::warn!(node = %cancel.node, error = &*error, "cannot cancel pulls");
        }
    }

    async fn carry_out(&self, batch: &Batch, events: &mpsc::Sender<Event>) -> BatchEnd {
        let borrowed = match self
            .pool
            .borrow(&Target::new(&batch.node, &batch.puller))
            .await
        {
            Ok(borrowed) => borrowed,
            Err(error) => {
                tracing::debug!(node = %batch.node, error = &*error, "cannot connect");
                return BatchEnd::Unreachable;
            }
        };
        // The call's memory is allocated only now, because thousands of nodes wait for a connection above.
        let began = Instant::now();
        let result = Box::pin(self.call(&borrowed, batch, events)).await;
        let method = match &batch.work {
            Work::Pull { .. } => "PullImages",
            Work::Remove { .. } => "RemoveImages",
            Work::Check { .. } => "CheckImages",
        };
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics.called(method, code, began.elapsed());
        result.unwrap_or_else(|status| self.ended_by(&status, &borrowed))
    }

    async fn call(
        &self,
        borrowed: &Borrowed<Dialer>,
        batch: &Batch,
        events: &mpsc::Sender<Event>,
    ) -> Result<BatchEnd, Status> {
        let mut client = borrowed.connection().client.clone();
        let parallel_pulls = borrowed.connection().parallel_pulls;
        match &batch.work {
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
                unpin,
            } => {
                let request =
                    contract::remove_request(batch, references, wanted, releasable, unpin);
                remove(&mut client, batch.id, request, events).await
            }
            Work::Check { references } => {
                let request = contract::check_request(batch, references);
                check(&mut client, batch.id, request, parallel_pulls, events).await
            }
        }
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
            Err(why) => return Ok(BatchEnd::CredentialsFailed(why.to_string())),
        };
        if let Some(cache) = &batch.cache {
            let useless = secret_problems(&resolved);
            let _ = events
                .send(Event::SecretsRead(cache.clone(), useless))
                .await;
        }
        let request = contract::pull_request(batch, images, &resolved.keyring);
        if let Some(why) = too_large(&request) {
            return Ok(BatchEnd::CredentialsFailed(why));
        }
        let mut stream = answered(client.pull_images(limited(request))).await?;
        while let Some(message) = next(&mut stream).await? {
            if let Some(outcomes) = contract::pulled(message) {
                let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
            }
        }
        Ok(BatchEnd::Done)
    }

    async fn send_cancel(&self, cancel: &CancelPulls) -> Result<(), Arc<str>> {
        let target = Target::new(&cancel.node, &cancel.puller);
        let borrowed = self.pool.borrow(&target).await?;
        let mut client = borrowed.connection().client.clone();
        let request = limited(contract::cancel_request(cancel));
        answered(client.cancel_pulls(request))
            .await
            .map_err(|status| Arc::from(status.message()))?;
        Ok(())
    }

    fn ended_by(&self, status: &Status, borrowed: &Borrowed<Dialer>) -> BatchEnd {
        tracing::debug!(code = ?status.code(), message = status.message(), "call failed");
        if status.code() == Code::FailedPrecondition {
            let seen_term = status.metadata().get(SEEN_TERM);
            return BatchEnd::Refused {
                seen_term: seen_term
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .unwrap_or_default(),
            };
        }
        // The next call connects and verifies the peer again.
        self.pool.discard(borrowed);
        BatchEnd::Lost
    }
}

/// Whether the credentials of a request are more than is sent: whoever writes a cache and its secrets
/// is told, and its node has nothing to do with it.
fn too_large(request: &PullImagesRequest) -> Option<String> {
    let sizes: Vec<usize> = request
        .credentials
        .iter()
        .map(Message::encoded_len)
        .collect();
    for image in &request.images {
        let matching = image.credentials.iter();
        let matching = matching.filter_map(|at| sizes.get(usize::try_from(*at).ok()?));
        if matching.sum::<usize>() > MOST_LOGIN {
            return Some(format!(
                "the pull secrets hold more than {} KiB of logins for {}: remove those that are not needed",
                MOST_LOGIN >> 10,
                image.reference
            ));
        }
    }
    (request.encoded_len() > MESSAGE_LIMIT).then(|| {
        format!(
            "the logins for {} images make a request larger than {} MiB: use fewer pull secrets, or one login for more images",
            request.images.len(),
            MESSAGE_LIMIT >> 20
        )
    })
}

/// Returns the secrets of an ImageCache that cannot be used.
fn secret_problems(resolved: &Resolved) -> SecretProblems {
    let Resolved {
        keyring: _,
        missing,
        unusable,
    } = resolved;
    SecretProblems {
        missing: missing.clone(),
        unusable: unusable.clone(),
    }
}

async fn remove(
    client: &mut PullerClient,
    id: BatchId,
    request: RemoveImagesRequest,
    events: &mpsc::Sender<Event>,
) -> Result<BatchEnd, Status> {
    let mut stream = answered(client.remove_images(limited(request))).await?;
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
    parallel_pulls: u32,
    events: &mpsc::Sender<Event>,
) -> Result<BatchEnd, Status> {
    let response = answered(client.check_images(limited(request))).await?;
    let (outcomes, mut report) = contract::checked(response);
    report.parallel_pulls = parallel_pulls;
    let _ = events.send(Event::Checked(id, report)).await;
    let _ = events.send(Event::Outcomes(id, outcomes)).await;
    Ok(BatchEnd::Done)
}

/// Sends the time limit with the call, so that the puller stops when nobody waits any more.
fn limited<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(ANSWER_LIMIT);
    request
}

async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(ANSWER_LIMIT, call).await {
        Ok(response) => Ok(response?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("the puller does not answer")),
    }
}

/// Returns the next message. A stream without a message in time is an error.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match timeout(SILENCE_LIMIT, stream.message()).await {
        Ok(message) => message,
        Err(_) => Err(Status::deadline_exceeded("the puller is silent")),
    }
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

#[cfg(test)]
mod tests {
    use kubefledged_proto::puller::{Credential, ImagePull};

    use super::*;

    fn request(images: usize, logins: usize, length: usize) -> PullImagesRequest {
        let image = |i: usize| ImagePull {
            reference: format!("r.test/i{i}:1"),
            credentials: (0..logins)
                .map(|login| u32::try_from(i * logins + login).unwrap())
                .collect(),
            ..ImagePull::default()
        };
        let login = |i| Credential::login(&format!("u{i}"), &"p".repeat(length));
        PullImagesRequest {
            images: (0..images).map(image).collect(),
            credentials: (0..images * logins).map(login).collect(),
            ..PullImagesRequest::default()
        }
    }

    #[test]
    fn what_credentials_are_too_many_is_said_before_a_node_is_asked() {
        assert_eq!(too_large(&request(512, 2, 4 << 10)), None);
        let why = too_large(&request(3, 9, 10 << 10)).unwrap();
        assert!(
            why.contains("more than 64 KiB of logins for r.test/i0:1"),
            "{why}"
        );
        let why = too_large(&request(200, 1, 60 << 10)).unwrap();
        assert!(why.contains("larger than 8 MiB"), "{why}");
    }
}
