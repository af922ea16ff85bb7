//! The loop between requests, the queue and the runtime.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kubefledged_proto::puller::Credential;
use kubefledged_queue::{
    Answer, Call, CallError, CallId, Checked, Command, CredentialId, Event, PullOutcome,
    PullResult, Queue, RemoveOutcome, RemoveResult, StreamId, Tick,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{app::Metrics, cri::Cri};

/// How long a shutdown waits for runtime calls under way.
const GRACE: Duration = Duration::from_secs(25);
/// For a call that the runtime answers from what it knows. Pulls have deadlines in the queue.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
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
    Answered(Event),
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
    /// Of a check, and the highest term seen.
    Checked(Vec<Checked>, u64),
    /// So many interests ended.
    Cancelled(u32),
    /// By this later term.
    Refused(u64),
    /// Nothing more comes. A stream without this end was cut.
    Done,
}

/// Owns the queue; everything that acts is a task of its own.
pub struct Driver {
    queue: Queue,
    cri: Cri,
    metrics: Metrics,
    inbox: mpsc::UnboundedReceiver<Input>,
    answers: mpsc::UnboundedSender<Input>,
    streams: HashMap<StreamId, mpsc::UnboundedSender<Reply>>,
    calls: HashMap<CallId, CancellationToken>,
    credentials: HashMap<CredentialId, Credential>,
    start: Instant,
}

impl Driver {
    /// A driver and where its inputs go.
    pub fn new(queue: Queue, cri: Cri, metrics: Metrics) -> (Self, mpsc::UnboundedSender<Input>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let driver = Self {
            queue,
            cri,
            metrics,
            inbox,
            answers: sender.clone(),
            streams: HashMap::new(),
            calls: HashMap::new(),
            credentials: HashMap::new(),
            start: Instant::now(),
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
                Ok(Some(Input::Answered(Event::Answered(id, _)))) => drop(self.calls.remove(&id)),
                Ok(Some(_)) => {}
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
                if let Event::Closed(stream) = &event {
                    self.streams.remove(stream);
                }
                self.queue.handle(now, event);
            }
            Input::Answered(event) => {
                if let Event::Answered(id, _) = &event {
                    self.calls.remove(id);
                }
                self.queue.handle(now, event);
            }
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
            Command::Checked(stream, answers, term) => {
                self.reply(stream, Reply::Checked(answers, term));
            }
            Command::Cancelled(stream, count) => {
                self.reply(stream, Reply::Cancelled(count));
                self.streams.remove(&stream);
            }
            Command::Refused(stream, term) => {
                self.reply(stream, Reply::Refused(term));
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
        let (cri, answers) = (self.cri.clone(), self.answers.clone());
        tokio::spawn(async move {
            let (limit, failed) = limit(&call);
            let answer = tokio::select! {
                answer = cri.carry_out(call, credential) => answer,
                // Dropping the call ends it in the runtime.
                () = token.cancelled() => failed("Cancelled", "cancelled by the puller"),
                () = tokio::time::sleep(limit) => {
                    failed("DeadlineExceeded", "the runtime does not answer in time")
                }
            };
            let _ = answers.send(Input::Answered(Event::Answered(id, answer)));
        });
    }

    /// A credential lives as long as a pull may need it.
    fn forget_credentials(&mut self) {
        let Self {
            queue, credentials, ..
        } = self;
        credentials.retain(|id, _| queue.needs(*id));
    }
}

/// How long a call may take, and what its failure answers.
fn limit(call: &Call) -> (Duration, fn(&str, &str) -> Answer) {
    fn error<T>(code: &str, message: &str) -> Result<T, CallError> {
        Err(CallError {
            code: code.to_owned(),
            message: message.to_owned(),
        })
    }

    match call {
        Call::Inspect(_) => (LOOK_LIMIT, |code, message| {
            Answer::Inspected(error(code, message))
        }),
        Call::Containers => (LOOK_LIMIT, |code, message| {
            Answer::Containers(error(code, message))
        }),
        Call::Remove(_) => (REMOVE_LIMIT, |code, message| {
            Answer::Removed(error(code, message))
        }),
        Call::Pull(..) => (Duration::MAX, |code, message| {
            Answer::Pulled(error(code, message))
        }),
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
