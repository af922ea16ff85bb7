//! The loop between requests, the queue and the runtime.

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
    Answer, Call, CallId, Command, CredentialId, Event, Progress, PullOutcome, PullResult, PullRow,
    Queue, RemoveOutcome, RemoveResult, Report, StreamId, Support, Tick, Totals,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Metrics, method},
    node::{Abilities, Node},
};

/// How long a shutdown waits for runtime calls under way.
const GRACE: Duration = Duration::from_secs(25);
/// For a call that the runtime answers from what it knows. Pulls have deadlines in the queue,
/// credential providers one of their own.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// Between looks for credentials that nobody needs any more, while pulls are under way.
const FORGET: Duration = Duration::from_secs(10);
/// For a removal: a big image is a lot of files.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// A request, where its replies go, and the credentials it brought.
    Request(
        Event,
        Option<(StreamId, mpsc::UnboundedSender<Reply>)>,
        Vec<(CredentialId, Credential)>,
    ),
    /// The runtime answered.
    Answered(CallId, Answer),
    /// The node's credential providers answered, and what went wrong.
    Credentials(CallId, Vec<Credential>, Option<String>),
    /// Somebody wants to see a page of the queue: pulls after this number, at most so many.
    View(u64, usize, oneshot::Sender<(Vec<PullRow>, Totals)>),
}

/// What goes out to one request.
#[derive(Debug)]
pub enum Reply {
    /// So many images attached to pulls that were there.
    Accepted(u32),
    /// Of pulls.
    Pulled(Vec<PullOutcome>),
    /// Of removals.
    Removed(Vec<RemoveOutcome>),
    /// Of pulls.
    Progress(Vec<Progress>),
    /// Of a check.
    Checked(Report),
    /// So many interests ended.
    Cancelled(u32),
    /// By this later term.
    Refused(u64),
    /// It was too much; nothing of it was taken.
    Overloaded,
    /// Nothing more comes. A stream without this end was cut.
    Done,
}

/// Owns the queue; everything that acts is a task of its own.
pub struct Driver {
    queue: Queue,
    node: Node,
    metrics: Metrics,
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
    /// A driver and where its inputs go. `counter` numbers credentials.
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

    fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Runs until the token is cancelled; then streams end, nothing new begins, and runtime calls
    /// under way may end.
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
                    Event::Runtime(facts) => self.tell_progress(facts.progress),
                    _ => {}
                }
                self.queue.handle(now, event);
                self.tell_pins();
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
                // Whoever asked may have gone.
                let _ = answer.send((self.queue.view(now, after, limit), self.queue.totals()));
            }
        }
    }

    fn answered(&mut self, now: Tick, id: CallId, answer: Answer) {
        self.calls.remove(&id);
        self.queue.handle(now, Event::Answered(id, answer));
        self.tell_pins();
    }

    fn tell_progress(&self, seen: bool) {
        let progress = if seen { Support::Yes } else { Support::No };
        self.abilities
            .send_modify(|known| known.progress = progress);
    }

    /// Whether pins work here is found out by the first one; a runtime that cannot is named once.
    fn tell_pins(&self) {
        let pins = self.queue.pins();
        let changed = self.abilities.send_if_modified(|known| {
            let changed = known.pins != pins;
            known.pins = pins;
            changed
        });
        if changed && pins == Support::No {
            tracing::warn!(
                "protection from garbage collection is not supported by this runtime: images of caches \
                 with retention Pinned are as easily removed by the kubelet as others"
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
            Command::Removed(stream, outcomes) => {
                for outcome in &outcomes {
                    self.metrics.removed(&outcome.result);
                }
                self.reply(stream, Reply::Removed(outcomes));
            }
            Command::Progress(stream, images) => self.reply(stream, Reply::Progress(images)),
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
            // Nobody listens any more: `Closed` follows.
            let _ = sender.send(reply);
        }
    }

    fn call(&mut self, id: CallId, call: Call) {
        let token = CancellationToken::new();
        self.calls.insert(id, token.clone());
        let credential = match &call {
            Call::Pull(_, Some(credential)) => self.credentials.get(credential).cloned(),
            _ => None,
        };
        let (node, answers) = (self.node.clone(), self.answers.clone());
        let (metrics, began) = (self.metrics.clone(), Instant::now());
        tokio::spawn(async move {
            let limit = limit(&call);
            let failed = |code, message| node.failed(&call, code, message);
            let input = tokio::select! {
                input = node.carry_out(id, call.clone(), credential) => input,
                // Dropping the call ends it in the runtime.
                () = token.cancelled() => {
                    Input::Answered(id, failed("Cancelled", "cancelled by the puller"))
                }
                () = tokio::time::sleep(limit) => {
                    let why = "the runtime does not answer in time";
                    Input::Answered(id, failed("DeadlineExceeded", why))
                }
            };
            if let Some(method) = method(&call) {
                metrics.called(method, &input, began.elapsed());
            }
            let _ = answers.send(input);
        });
    }

    /// A credential lives as long as a pull may need it, and some seconds longer: all pulls are
    /// looked at for it.
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

/// How long a call may take.
fn limit(call: &Call) -> Duration {
    match call {
        Call::Remove(_) => REMOVE_LIMIT,
        Call::Pull(..) | Call::Credentials(_) => Duration::MAX,
        Call::Inspect(_)
        | Call::Containers
        | Call::FsInfo
        | Call::Pins
        | Call::Pin(..)
        | Call::Progress(_) => LOOK_LIMIT,
    }
}

/// As a metric label.
pub fn pull_label(result: &PullResult) -> (&'static str, &str) {
    match result {
        PullResult::Present => ("present", ""),
        PullResult::Pulled => ("pulled", ""),
        PullResult::Cancelled => ("cancelled", ""),
        PullResult::Superseded => ("superseded", ""),
        PullResult::Failed { reason, .. } => ("failed", reason),
    }
}

/// As a metric label.
pub fn removal_label(result: &RemoveResult) -> &'static str {
    match result {
        RemoveResult::Removed => "removed",
        RemoveResult::Absent => "absent",
        RemoveResult::Kept { .. } => "kept",
        RemoveResult::Superseded => "superseded",
        RemoveResult::Failed { .. } => "failed",
    }
}
