//! One pull, shared by everybody who asked for it.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    Answer, Authority, Call, CallId, CredentialId, Image, Policy, PullRequest, PullResult,
    StreamId, Tick,
    classify::{self, Remedy},
};
use kubefledged_api_types::names::failure;

/// Most repeats of what concerns this node only.
const MOST_REPEATS: u32 = 3;
/// A pull that runs for so long must not delay small ones.
const LONG: Duration = Duration::from_secs(20);

/// What makes two requests one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// The image, whatever its spelling.
    pub image: String,
    /// The request's token.
    pub freshness: String,
    /// Of its credentials.
    pub credentials: u64,
}

/// Somebody who wants a task.
#[derive(Clone, Debug)]
pub struct Interest {
    /// Term and batch.
    pub authority: Authority,
    /// As that request wrote it.
    pub reference: String,
    /// Where its outcome goes, while somebody listens.
    pub stream: Option<StreamId>,
    /// Its index there.
    pub index: usize,
    /// It ends then: a higher term came without asking for it again.
    pub until: Option<Tick>,
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For a slot, and not before.
    Waiting(Tick),
    /// The runtime is asked whether the image is there.
    Inspecting(CallId),
    /// The runtime pulls.
    Pulling(CallId),
    /// The runtime is asked what is there now.
    Verifying(CallId),
    /// Its call was ended and is awaited; what becomes of the task.
    Ending(CallId, PullResult),
    /// Remembered until then.
    Finished(PullResult, Tick),
}

/// One pull.
#[derive(Debug)]
pub struct Task {
    /// What the runtime is asked for.
    pub name: String,
    /// Whether a present image will do.
    pub policy: Policy,
    /// Higher first.
    pub priority: i32,
    /// Older first.
    pub age: u64,
    /// For one attempt.
    pub deadline: Option<Duration>,
    /// Tried in this order.
    pub credentials: Vec<CredentialId>,
    /// Who wants it.
    pub interests: Vec<Interest>,
    /// Where it stands.
    pub state: State,
    /// The newest request.
    pub newest: Authority,
    /// First runtime call.
    pub started: Option<Tick>,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// As the runtime has it.
    pub image: Option<Image>,
    next_credential: usize,
    repeats: u32,
}

/// What a task does next.
#[derive(Debug)]
pub enum Next {
    /// This call; the state follows it.
    Call(Call),
    /// Wait for a slot again.
    Again(Tick),
    /// It is over.
    Finish(PullResult),
}

impl Task {
    /// From its first request.
    pub fn new(name: String, request: &PullRequest, authority: Authority, age: u64) -> Self {
        Self {
            name,
            policy: request.policy,
            priority: request.priority,
            age,
            deadline: request.deadline,
            credentials: request.credentials.clone(),
            interests: Vec::new(),
            state: State::Waiting(Tick(0)),
            newest: authority,
            started: None,
            attempts: 0,
            image: None,
            next_credential: 0,
            repeats: 0,
        }
    }

    /// Another request: shared pulls take the highest priority and the longest deadline.
    pub fn share(&mut self, request: &PullRequest, authority: Authority) {
        self.priority = self.priority.max(request.priority);
        self.deadline = match (self.deadline, request.deadline) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        self.newest = self.newest.max(authority);
    }

    /// The call under way.
    pub fn call(&self) -> Option<CallId> {
        match self.state {
            State::Inspecting(id)
            | State::Pulling(id)
            | State::Verifying(id)
            | State::Ending(id, _) => Some(id),
            State::Waiting(_) | State::Finished(..) => None,
        }
    }

    /// Has it run for long?
    pub fn long(&self, now: Tick) -> bool {
        self.long_at().is_some_and(|at| at <= now)
    }

    /// When it counts as long.
    pub fn long_at(&self) -> Option<Tick> {
        matches!(self.state, State::Pulling(_)).then(|| self.started.map(|at| at.after(LONG)))?
    }

    /// When its attempt must end.
    pub fn deadline_at(&self) -> Option<Tick> {
        let running = self.call().is_some() && !matches!(self.state, State::Ending(..));
        running.then(|| Some(self.started?.after(self.deadline?)))?
    }

    /// The first call of an attempt.
    pub fn begin(&mut self, now: Tick) -> Call {
        self.started.get_or_insert(now);
        match self.policy {
            Policy::IfNotPresent => Call::Inspect(self.name.clone()),
            Policy::Always => self.pull(),
        }
    }

    fn pull(&mut self) -> Call {
        self.attempts += 1;
        Call::Pull(
            self.name.clone(),
            self.credentials.get(self.next_credential).copied(),
        )
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, now: Tick) -> Next {
        match (self.state.clone(), answer) {
            (State::Ending(_, result), _) => Next::Finish(result),
            (State::Inspecting(_), Answer::Inspected(Ok(None))) => Next::Call(self.pull()),
            (State::Inspecting(_), Answer::Inspected(Ok(Some(image)))) => {
                self.image = Some(image);
                Next::Finish(PullResult::Present)
            }
            (State::Pulling(_), Answer::Pulled(Ok(()))) => {
                Next::Call(Call::Inspect(self.name.clone()))
            }
            (State::Verifying(_), Answer::Inspected(Ok(Some(image)))) => {
                self.image = Some(image);
                Next::Finish(PullResult::Pulled)
            }
            (State::Verifying(_), Answer::Inspected(Ok(None))) => Next::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime pulled the image and does not have it: was it removed at once?",
            )),
            (_, Answer::Pulled(Err(error)) | Answer::Inspected(Err(error))) => {
                let class = classify::classify(&error);
                match class.remedy {
                    Remedy::NextCredential if self.next_credential + 1 < self.credentials.len() => {
                        self.next_credential += 1;
                        Next::Call(self.pull())
                    }
                    Remedy::Repeat if self.repeats < MOST_REPEATS => {
                        self.repeats += 1;
                        Next::Again(now.after(Duration::from_millis(500) * self.repeats))
                    }
                    _ => Next::Finish(failed(class.reason, &error.message)),
                }
            }
            (_, _) => Next::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime answered another question",
            )),
        }
    }

    /// Where the task stands while this call runs.
    pub fn calling(&mut self, id: CallId, call: &Call) {
        self.state = match (call, &self.state) {
            (Call::Pull(..), _) => State::Pulling(id),
            (_, State::Pulling(_)) => State::Verifying(id),
            _ => State::Inspecting(id),
        };
    }

    /// Ends the interest of a batch. How many ended.
    pub fn lose_interest(
        &mut self,
        term: u64,
        batch: u64,
        names: &BTreeSet<String>,
    ) -> Vec<Interest> {
        let (gone, kept) = std::mem::take(&mut self.interests)
            .into_iter()
            .partition(|interest| {
                interest.authority.term == term
                    && interest.authority.batch == batch
                    && (names.is_empty() || names.contains(&interest.reference))
            });
        self.interests = kept;
        gone
    }
}

/// A failure with its message cut.
pub fn failed(reason: &str, message: &str) -> PullResult {
    PullResult::Failed {
        reason: reason.to_owned(),
        message: classify::cut(message),
    }
}
