//! Calls to the pullers. The failure of one node does not affect another.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use kubefledged_contract::{
    SEEN_TERM,
    checks::{self, PIECE_LIMIT, PieceSizes},
    controller as contract,
};
use kubefledged_engine::{
    Batch, BatchEnd, CancelPulls, CredentialScope, Event, ImageOutcome, NodeName, PullItem, Puller,
    SecretProblems, Transfer, Work,
};
use kubefledged_process::traces::{Context, TraceContextExt as _};
use kubefledged_proto::puller::RemoveImagesRequest;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use super::{
    claims::Claims,
    credentials::{Credentials, Resolved},
    dialer::{Dialer, PullerClient, Target, Verified},
    held::Held,
    limits::{answered, busy, is_late, limited, next, not_sent, too_large, within},
    peers::Entitlements,
    pool::{Borrowed, Line, Pool},
};
use crate::{metrics::Metrics, traces::Spans};

/// Calls to pullers. Clones share their state.
#[derive(Clone)]
pub struct Pullers {
    pool: Pool<Dialer>,
    credentials: Arc<Credentials>,
    metrics: Metrics,
    claims: Arc<Claims>,
    /// The term that pullers are believed to have seen; the Lease is taken above it.
    raise_term: watch::Sender<u64>,
    /// How many images each node is asked about at a time.
    sizes: Arc<Mutex<PieceSizes<NodeName>>>,
    /// What pulls need to take layers from other nodes.
    entitlements: Entitlements,
    spans: Spans,
    /// Connections whose next use the engine has not decided yet.
    pub(super) held: Held<Borrowed<Dialer>>,
}

impl Pullers {
    /// Creates it with limits for dials and for open connections.
    pub fn new(
        dialer: Dialer,
        credentials: Credentials,
        entitlements: Entitlements,
        raise_term: watch::Sender<u64>,
        max_dials: usize,
        max_connections: usize,
    ) -> Self {
        let metrics = dialer.metrics.clone();
        Self {
            pool: Pool::new(dialer, max_dials, max_connections),
            credentials: Arc::new(credentials),
            metrics,
            claims: Arc::default(),
            raise_term,
            sizes: Arc::default(),
            entitlements,
            spans: Spans::default(),
            held: Held::default(),
        }
    }

    /// Makes spans of images.
    #[must_use]
    pub fn traced(self, spans: Spans) -> Self {
        Self { spans, ..self }
    }

    /// The connections, also for questions that belong to no batch.
    pub(super) fn pool(&self) -> &Pool<Dialer> {
        &self.pool
    }

    /// Carries out a batch. Outcomes are sent as events. Returns how it ended, and its connection.
    pub async fn run(
        &self,
        batch: &Batch,
        events: &mpsc::Sender<Event>,
    ) -> (BatchEnd, Option<Borrowed<Dialer>>) {
        let (end, connection) = self.carry_out(batch, events).await;
        if !matches!(end, BatchEnd::Done) {
            tracing::debug!(node = %batch.node, imagecaches = ?batch.work.caches(), ?end, "batch ended early");
        }
        (end, connection)
    }

    /// The node's connection is about to be used again.
    pub fn keep(&self, node: &NodeName, puller: &Puller) {
        self.pool.keep(&Target::new(node, puller));
    }

    /// Cancels pulls. Their batch reports the outcomes.
    pub async fn cancel(&self, cancel: CancelPulls) {
        if let Err(error) = self.send_cancel(&cancel).await {
            tracing::warn!(node = %cancel.node, error = &*error, "cannot cancel pulls");
        }
    }

    async fn carry_out(
        &self,
        batch: &Batch,
        events: &mpsc::Sender<Event>,
    ) -> (BatchEnd, Option<Borrowed<Dialer>>) {
        let (node, method) = (&batch.node, method(&batch.work));
        tracing::debug!(%node, method, images = batch.work.images(), "call begins");
        let borrowed = match self
            .pool
            .borrow(&Target::new(&batch.node, &batch.puller), line(&batch.work))
            .await
        {
            Ok(borrowed) => borrowed,
            Err(error) => {
                tracing::debug!(%node, error = &*error, "cannot connect");
                return (BatchEnd::Unreachable, None);
            }
        };
        Context::current().span().add_event("connected", Vec::new());
        tracing::debug!(%node, method, "connected");
        // The call's memory is allocated only now, because thousands of nodes wait for a connection above.
        let began = Instant::now();
        let result = Box::pin(self.call(&borrowed, batch, events)).await;
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        tracing::debug!(%node, method, ?code, "call ended");
        self.metrics.called(method, code, began.elapsed());
        let end = match result {
            Ok(end) => end,
            // The connection and the puller are well: these images wait. A check that was not made is none.
            Err(status)
                if status.code() == Code::ResourceExhausted
                    && !matches!(batch.work, Work::Check { .. }) =>
            {
                busy(batch, &status, events).await
            }
            Err(status) => self.ended_by(&status, batch, &borrowed),
        };
        (end, Some(borrowed))
    }

    async fn call(
        &self,
        borrowed: &Borrowed<Dialer>,
        batch: &Batch,
        events: &mpsc::Sender<Event>,
    ) -> Result<BatchEnd, Status> {
        match &batch.work {
            Work::Check { references } => self.check(borrowed, batch, references, events).await,
            Work::Pull {
                images,
                credentials,
            } => {
                let Ok(puller) = self.verified(borrowed).await else {
                    return Ok(BatchEnd::Unreachable);
                };
                let work = (&images[..], credentials);
                self.pull(&puller, batch, work, events).await
            }
            Work::Remove {
                references,
                desired,
                releasable,
                only_pulled,
                unpin,
            } => {
                let Ok(puller) = self.verified(borrowed).await else {
                    return Ok(BatchEnd::Unreachable);
                };
                let mut client = puller.client(batch.work.images());
                let (some, all) = (only_pulled, references);
                let request =
                    contract::remove_request(batch, all, desired, releasable, some, unpin);
                remove(&mut client, batch, request, events, &self.spans).await
            }
        }
    }

    /// The puller of a connection, if it is the expected one. Otherwise the connection is used by nobody again.
    pub(super) async fn verified<'a>(
        &self,
        borrowed: &'a Borrowed<Dialer>,
    ) -> Result<Verified<'a>, Arc<str>> {
        let verified = borrowed.connection().verified().await;
        verified.inspect_err(|error| self.is_wrong(borrowed, error))
    }

    fn is_wrong(&self, borrowed: &Borrowed<Dialer>, error: &str) {
        tracing::debug!(error, "not the expected puller");
        self.pool.discard(borrowed);
    }

    async fn pull(
        &self,
        puller: &Verified<'_>,
        batch: &Batch,
        (images, scope): (&[PullItem], &CredentialScope),
        events: &mpsc::Sender<Event>,
    ) -> Result<BatchEnd, Status> {
        let resolved = match self.credentials.resolve(scope).await {
            Ok(resolved) => resolved,
            Err(why) => return Ok(BatchEnd::CredentialsFailed(why.to_string())),
        };
        let caches = batch.work.caches().into_iter().cloned().collect();
        let useless = secret_problems(&resolved);
        let read = Event::SecretsRead(caches, scope.clone(), useless);
        let _ = events.send(read).await;
        let mut request = contract::pull_request(batch, images, &resolved.keyring);
        self.entitlements
            .add(&mut request, &batch.node, images, puller)
            .await;
        let refused = too_large(&request);
        if !refused.is_empty() {
            return Ok(not_sent(batch, refused, events).await);
        }
        let node = &batch.node;
        let mut client = puller.client(images.len());
        tracing::debug!(%node, "pull request sent");
        let mut stream = answered(client.pull_images(limited(request))).await?;
        tracing::debug!(%node, "pull request taken");
        let mut open = images.len();
        while let Some(message) = next(&mut stream).await? {
            self.spans.pulled(batch, &message);
            if let Some(transfers) = contract::transfers(&message) {
                let known = |transfer: &Transfer| transfer.index < images.len();
                let transfers = transfers.into_iter().filter(known).take(images.len());
                let transfers = Event::Transfers(batch.id, transfers.collect());
                let _ = events.send(transfers).await;
            } else if let Some(outcomes) = contract::pulled(message) {
                count(&mut open, &outcomes)?;
                tracing::debug!(%node, images = outcomes.len(), open, "pulls ended");
                let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
            }
        }
        Ok(BatchEnd::Done)
    }

    async fn send_cancel(&self, cancel: &CancelPulls) -> Result<(), Arc<str>> {
        let target = Target::new(&cancel.node, &cancel.puller);
        let borrowed = self.pool.borrow(&target, Line::Front).await?;
        let mut client = self.verified(&borrowed).await?.client(0);
        let request = limited(contract::cancel_request(cancel));
        answered(client.cancel_pulls(request))
            .await
            .map_err(|status| Arc::from(status.message()))?;
        Ok(())
    }

    /// In pieces as large as the node answers in time: where a look takes a second, 512 of them in one call
    /// would never be answered. What is not looked at in time is left to the next check. The answer to the first piece also tells
    /// which puller it is.
    async fn check(
        &self,
        borrowed: &Borrowed<Dialer>,
        batch: &Batch,
        references: &[Arc<str>],
        events: &mpsc::Sender<Event>,
    ) -> Result<BatchEnd, Status> {
        let began = Instant::now();
        let connection = borrowed.connection();
        let mut client = connection.unverified(references.len());
        let mut done = 0;
        loop {
            let size = self.sizes().of(&batch.node);
            let piece = &references[done..(done + size).min(references.len())];
            let mut request = contract::check_request(batch, piece);
            request.with_info = !connection.is_verified();
            let asked = Instant::now();
            let answer = within(PIECE_LIMIT, client.check_images(request)).await;
            let time_left = checks::has_time(began.elapsed());
            let mut response = match answer {
                Ok(response) => response,
                Err(status) if is_late(&status) => {
                    let smaller = self.sizes().late(&batch.node, piece.len());
                    tracing::debug!(node = %batch.node, images = piece.len(), "a check takes long");
                    if smaller && time_left {
                        continue;
                    }
                    // What was seen counts. A node that answered nothing is asked for less next time.
                    return if done > 0 {
                        Ok(BatchEnd::Done)
                    } else {
                        Err(status)
                    };
                }
                Err(status) => return Err(status),
            };
            let took = asked.elapsed();
            let puller = match connection.verified_by(response.info.take()).await {
                Ok(puller) => puller,
                Err(error) => {
                    self.is_wrong(borrowed, &error);
                    return Ok(BatchEnd::Unreachable);
                }
            };
            self.sizes().answered(&batch.node, piece.len(), took);
            let (mut outcomes, mut report) = contract::checked(response);
            let mut open = piece.len();
            count(&mut open, &outcomes)?;
            self.heard(batch, report.highest_term);
            if done == 0 {
                report.parallel_pulls = puller.parallel_pulls();
                if self.entitlements.are_possible() == Some(false) {
                    // Without a certificate for other pullers it takes nothing from them.
                    report.can_share = Some(false);
                }
                let _ = events.send(Event::Checked(batch.id, report)).await;
            }
            for outcome in &mut outcomes {
                outcome.index = outcome.index.saturating_add(done);
            }
            let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
            done += piece.len();
            if done >= references.len() || !time_left {
                return Ok(BatchEnd::Done);
            }
        }
    }

    /// How many images each node is asked about in one call.
    pub(super) fn sizes(&self) -> MutexGuard<'_, PieceSizes<NodeName>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The puller has seen this term: ours rises if it is believed.
    fn heard(&self, batch: &Batch, seen_term: u64) {
        let now = tokio::time::Instant::now();
        if let Some(term) = self.claims.heard(&batch.node, seen_term, batch.term, now) {
            self.raise_term.send_if_modified(|known| {
                let higher = term > *known;
                *known = term.max(*known);
                higher
            });
        }
    }

    fn ended_by(&self, status: &Status, batch: &Batch, borrowed: &Borrowed<Dialer>) -> BatchEnd {
        tracing::debug!(code = ?status.code(), message = status.message(), "call failed");
        if status.code() == Code::FailedPrecondition {
            let seen_term = status.metadata().get(SEEN_TERM);
            let seen_term = seen_term
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .unwrap_or_default();
            if seen_term > batch.term {
                self.heard(batch, seen_term);
            }
            return BatchEnd::Refused;
        }
        // The next call connects and verifies the peer again.
        borrowed.connection().failed();
        self.pool.discard(borrowed);
        BatchEnd::Lost
    }
}

/// Where a call waits for a connection.
fn line(work: &Work) -> Line {
    match work {
        // It has places in its registry's budget, or at the nodes that have its layers.
        Work::Pull { .. } => Line::Front,
        Work::Remove { .. } | Work::Check { .. } => Line::Back,
    }
}

/// The method that carries out a batch.
fn method(work: &Work) -> &'static str {
    match work {
        Work::Pull { .. } => "PullImages",
        Work::Remove { .. } => "RemoveImages",
        Work::Check { .. } => "CheckImages",
    }
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
    batch: &Batch,
    request: RemoveImagesRequest,
    events: &mpsc::Sender<Event>,
    spans: &Spans,
) -> Result<BatchEnd, Status> {
    let began = SystemTime::now();
    let mut stream = answered(client.remove_images(limited(request))).await?;
    let mut open = batch.work.images();
    while let Some(message) = next(&mut stream).await? {
        spans.removed(batch, began, &message);
        if let Some(outcomes) = contract::removed(message) {
            count(&mut open, &outcomes)?;
            let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
        }
    }
    Ok(BatchEnd::Done)
}

/// Refuses more outcomes than images are `open`.
#[allow(clippy::result_large_err)] // tonic's own error
fn count(open: &mut usize, outcomes: &[ImageOutcome]) -> Result<(), Status> {
    *open = open.checked_sub(outcomes.len()).ok_or_else(|| {
        Status::out_of_range("the puller tells of more images than it was asked about")
    })?;
    Ok(())
}
