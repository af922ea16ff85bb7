//! The loop of the puller: it hands requests and answers to the queue, and carries out its commands.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kubefledged_proto::puller::Credential;
use kubefledged_queue::{
    Answer, Call, CallError, CallId, Command, CredentialId, Event, PullOutcome, PullResult,
    PullRow, Queue, RemoveOutcome, RemoveResult, Report, RuntimeFacts, StreamId, Support, Tick,
    Totals, Transfer,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Metrics, method},
    node::{Abilities, Node},
    unknown::UnknownErrors,
};

/// Time for which a shutdown waits for runtime calls in flight.
const GRACE: Duration = Duration::from_secs(25);
/// Time limit of a runtime call that needs no network. Pulls have deadlines in the queue, and credential
/// providers have a time limit of their own.
const QUERY_LIMIT: Duration = Duration::from_secs(30);
/// Time between searches for unused credentials while pulls are in flight.
const FORGET: Duration = Duration::from_secs(10);
/// Time limit of a removal. A large image has many files.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

/// Input of the driver.
#[derive(Debug)]
pub enum Input {
    /// A request, the receiver of its replies, and its credentials.
    Request(
        Event,
        Option<(StreamId, mpsc::UnboundedSender<Reply>)>,
        Vec<(CredentialId, Credential)>,
    ),
    /// The runtime answered.
    Answered(CallId, Answer),
    /// The node's credential providers answered, and what went wrong.
    Credentials(CallId, Vec<Credential>, Option<String>),
    /// A request for a page of the queue: pulls after this number, and the maximum number of them.
    View(u64, usize, oneshot::Sender<(Vec<PullRow>, Totals)>),
}

/// A reply to one request.
#[derive(Debug)]
pub enum Reply {
    /// Number of images whose pull existed already.
    Accepted(u32),
    /// Outcomes of pulls.
    Pulled(Vec<PullOutcome>),
    /// How far pulls are.
    Transfers(Vec<Transfer>),
    /// Outcomes of removals.
    Removed(Vec<RemoveOutcome>),
    /// Answer to a check.
    Checked(Report),
    /// Number of interests that ended.
    Cancelled(u32),
    /// The request was refused, because this later term was seen.
    Refused(u64),
    /// The request was refused, because it would take too much memory. No part of it was done.
    Overloaded,
    /// The last reply. A stream without it was interrupted.
    Done,
}

/// Owns the queue. Every runtime call runs in its own task.
pub struct Driver {
    queue: Queue,
    node: Node,
    metrics: Metrics,
    unknown: UnknownErrors,
    abilities: watch::Sender<Abilities>,
    counter: Arc<AtomicU64>,
    inbox: mpsc::UnboundedReceiver<Input>,
    answers: mpsc::UnboundedSender<Input>,
    streams: HashMap<StreamId, mpsc::UnboundedSender<Reply>>,
    calls: HashMap<CallId, CancellationToken>,
    credentials: HashMap<CredentialId, Credential>,
    start: Instant,
    forgot: Instant,
}

impl Driver {
    /// Returns a driver and the sender of its inputs. `counter` numbers credentials.
    pub fn new(
        queue: Queue,
        node: Node,
        metrics: Metrics,
        abilities: watch::Sender<Abilities>,
        counter: Arc<AtomicU64>,
    ) -> (Self, mpsc::UnboundedSender<Input>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let driver = Self {
            queue,
            node,
            metrics,
            unknown: UnknownErrors::default(),
            abilities,
            counter,
            inbox,
            answers: sender.clone(),
            streams: HashMap::new(),
            calls: HashMap::new(),
            credentials: HashMap::new(),
            start: Instant::now(),
            forgot: Instant::now(),
        };
        (driver, sender)
    }

    /// Returns the unknown error texts, which fill while it runs.
    pub fn unknown_errors(&self) -> UnknownErrors {
        self.unknown.clone()
    }

    fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Runs until the token is cancelled. Then it ends streams, starts nothing new, and waits for runtime calls
    /// in flight.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut commands = Vec::new();
        loop {
            let wait = self
                .queue
                .next_wakeup()
                .map(|at| Duration::from_millis(at.0.saturating_sub(self.now().0)));
            tokio::select! {
                () = shutdown.cancelled() => break,
                input = self.inbox.recv() => if let Some(input) = input { self.take(input) },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            while let Ok(input) = self.inbox.try_recv() {
                self.take(input);
            }
            let now = self.now();
            self.queue.poll(now, &mut commands);
            for command in commands.drain(..) {
                self.carry_out(command);
            }
            self.forget_credentials();
        }
        self.streams.clear();
        let deadline = tokio::time::Instant::now() + GRACE;
        while !self.calls.is_empty() {
            match tokio::time::timeout_at(deadline, self.inbox.recv()).await {
                Ok(Some(Input::Answered(id, _) | Input::Credentials(id, ..))) => {
                    self.calls.remove(&id);
                }
                Ok(Some(Input::Request(..) | Input::View(..))) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }

    fn take(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Request(event, reply, credentials) => {
                self.credentials.extend(credentials);
                self.streams.extend(reply);
                match &event {
                    Event::Closed(stream) => drop(self.streams.remove(stream)),
                    Event::Runtime(facts) => self.report_facts(facts),
                    _ => {}
                }
                self.queue.handle(now, event);
                self.report_pins();
            }
            Input::Answered(id, answer) => self.answered(now, id, answer),
            Input::Credentials(id, credentials, trouble) => {
                let number = || CredentialId(self.counter.fetch_add(1, Ordering::Relaxed));
                let credentials = credentials.into_iter().map(|c| (number(), c));
                let credentials: Vec<(CredentialId, Credential)> = credentials.collect();
                let ids = credentials.iter().map(|(id, _)| *id).collect();
                self.credentials.extend(credentials);
                self.answered(now, id, Answer::Credentials(ids, trouble));
            }
            Input::View(after, limit, answer) => {
                // The reader may have gone.
                let _ = answer.send((self.queue.view(now, after, limit), self.queue.totals()));
            }
        }
    }

    fn answered(&mut self, now: Tick, id: CallId, answer: Answer) {
        self.calls.remove(&id);
        self.queue.handle(now, Event::Answered(id, answer));
        self.report_pins();
    }

    fn report_facts(&self, facts: &RuntimeFacts) {
        let progress = if facts.progress {
            Support::Yes
        } else {
            Support::No
        };
        self.abilities.send_modify(|known| {
            (known.progress, known.peers) = (progress, facts.peers);
        });
    }

    /// The first pin shows whether pins work. If they do not, this is logged once.
    fn report_pins(&self) {
        let pins = self.queue.pins();
        let changed = self.abilities.send_if_modified(|known| {
            let changed = known.pins != pins;
            known.pins = pins;
            changed
        });
        if changed && pins == Support::No {
            tracing::warn!(
                "this runtime does not support pins: the kubelet's garbage collection may remove images \
                 of ImageCaches with retention Pinned"
            );
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Call(id, call) => self.call(id, call),
            Command::CancelCall(id) => {
                if let Some(token) = self.calls.get(&id) {
                    token.cancel();
                }
            }
            Command::Accepted(stream, attached) => self.reply(stream, Reply::Accepted(attached)),
            Command::Pulled(stream, outcomes) => {
                for outcome in &outcomes {
                    self.metrics.pulled(outcome);
                }
                self.reply(stream, Reply::Pulled(outcomes));
            }
            Command::Transfers(stream, transfers) => {
                self.reply(stream, Reply::Transfers(transfers));
            }
            Command::Removed(stream, outcomes) => {
                for outcome in &outcomes {
                    self.metrics.removed(&outcome.result);
                }
                self.reply(stream, Reply::Removed(outcomes));
            }
            Command::Checked(stream, report) => self.reply(stream, Reply::Checked(report)),
            Command::Cancelled(stream, count) => {
                self.reply(stream, Reply::Cancelled(count));
                self.streams.remove(&stream);
            }
            Command::Refused(stream, term) => {
                self.reply(stream, Reply::Refused(term));
                self.streams.remove(&stream);
            }
            Command::Overloaded(stream) => {
                self.reply(stream, Reply::Overloaded);
                self.streams.remove(&stream);
            }
            Command::Done(stream) => {
                self.reply(stream, Reply::Done);
                self.streams.remove(&stream);
            }
        }
    }

    fn reply(&self, stream: StreamId, reply: Reply) {
        if let Some(sender) = self.streams.get(&stream) {
            // If nobody listens any more, `Closed` follows.
            let _ = sender.send(reply);
        }
    }

    fn call(&mut self, id: CallId, call: Call) {
        let token = CancellationToken::new();
        self.calls.insert(id, token.clone());
        let credential = match &call {
            Call::Pull(_, Some(credential), _) => self.credentials.get(credential).cloned(),
            _ => None,
        };
        let (node, answers) = (self.node.clone(), self.answers.clone());
        let (metrics, began) = (self.metrics.clone(), Instant::now());
        let unknown = self.unknown.clone();
        tokio::spawn(async move {
            let limit = limit(&call);
            let failed = |code: &str, message: &str| {
                call.failed(CallError {
                    code: code.to_owned(),
                    message: message.to_owned(),
                })
            };
            let input = tokio::select! {
                input = node.carry_out(id, call.clone(), credential) => input,
                // Dropping the call cancels it in the runtime.
                () = token.cancelled() => {
                    Input::Answered(id, failed("Cancelled", "cancelled by the puller"))
                }
                () = tokio::time::sleep(limit) => {
                    let why = "the runtime does not answer in time";
                    Input::Answered(id, failed("DeadlineExceeded", why))
                }
            };
            if let Some(method) = method(&call) {
                let took = began.elapsed();
                metrics.called(method, &input, took);
                let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                tracing::debug!(method, took_us, "runtime answered");
            }
            if let Input::Answered(_, answer) = &input
                && let Some(code) = unknown.note(&call, answer)
            {
                metrics.unknown(code);
            }
            let _ = answers.send(input);
        });
    }

    /// Forgets credentials that no pull needs any more. It runs only every few seconds, because it reads
    /// all pulls.
    fn forget_credentials(&mut self) {
        if self.credentials.is_empty() || (!self.queue.idle() && self.forgot.elapsed() < FORGET) {
            return;
        }
        self.forgot = Instant::now();
        let Self {
            queue, credentials, ..
        } = self;
        credentials.retain(|id, _| queue.needs(*id));
    }
}

/// Returns the time limit of a call.
fn limit(call: &Call) -> Duration {
    match call {
        Call::Remove(_) | Call::Untag(_) => REMOVE_LIMIT,
        Call::Pull(..) | Call::Credentials(_) => Duration::MAX,
        Call::Inspect(_)
        | Call::Containers
        | Call::FsInfo
        | Call::Pins
        | Call::Mark(_)
        | Call::Trace(_)
        | Call::Pin(..)
        | Call::Progress(_) => QUERY_LIMIT,
    }
}

/// Returns the label values of metrics.
pub fn pull_label(result: &PullResult) -> (&'static str, &str) {
    match result {
        PullResult::Present => ("present", ""),
        PullResult::Pulled => ("pulled", ""),
        PullResult::Cancelled => ("cancelled", ""),
        PullResult::Superseded => ("superseded", ""),
        PullResult::Failed { reason, .. } => ("failed", reason),
    }
}

/// Returns the label values of metrics.
pub fn removal_label(result: &RemoveResult) -> &'static str {
    match result {
        RemoveResult::Removed => "removed",
        RemoveResult::Absent => "absent",
        RemoveResult::Kept { .. } => "kept",
        RemoveResult::Superseded => "superseded",
        RemoveResult::Failed { .. } => "failed",
    }
}
