//! One pull, shared by everybody who asked for it.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    Answer, Authority, Call, CallError, CallId, CredentialId, Image, Policy, PullRequest,
    PullResult, StreamId, Tick,
    classify::{self, Remedy},
};
use kubefledged_api_types::names::failure;

/// Most repeats of what concerns this node only.
const MOST_REPEATS: u32 = 3;
/// Before the first repeat where the runtime is away; each further one waits four times as long:
/// a restart of the runtime takes some seconds.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A pull that runs for so long must not delay small ones.
const LONG: Duration = Duration::from_secs(20);
/// How long a look holds. Somebody else may pull the image while the task waits for its slot, and a
/// pull of a present image contacts the registry and fails without credentials.
const LOOK_AGE: Duration = Duration::from_secs(5);
/// For requests without a deadline: nothing hangs for ever.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// What makes two requests one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// The image, whatever its spelling.
    pub image: String,
    /// Whether a present image will do.
    pub policy: Policy,
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
    /// For a look or a slot, and not before.
    Waiting(Tick),
    /// The runtime is asked whether the image is there; without a slot until the task has begun.
    Looking(CallId),
    /// The runtime pulls.
    Pulling(CallId),
    /// The runtime is asked what is there now.
    Verifying(CallId),
    /// Remembered until then.
    Finished(PullResult, Tick),
}

/// One pull.
#[derive(Debug)]
pub struct Task {
    /// What the runtime is asked for.
    pub name: String,
    /// Higher first.
    pub priority: i32,
    /// Older first.
    pub age: u64,
    /// Tried in this order.
    pub credentials: Vec<CredentialId>,
    /// Who wants it.
    pub interests: Vec<Interest>,
    /// Where it stands.
    pub state: State,
    /// When it got its first slot.
    pub started: Option<Tick>,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// As the runtime has it.
    pub image: Option<Image>,
    /// Somebody listened when it finished.
    pub heard: bool,
    policy: Policy,
    deadline: Option<Duration>,
    /// The pull of this token was done already: it counts, if the image is still there.
    remembered: bool,
    looked: Option<Tick>,
    next_credential: usize,
    repeats: u32,
}

/// What a task does next.
#[derive(Debug)]
pub enum Next {
    /// This call; the state follows it.
    Call(Call),
    /// Wait for a slot, and not before.
    Wait(Tick),
    /// It is over.
    Finish(PullResult),
}

impl Task {
    /// From its first request.
    pub fn new(name: String, request: &PullRequest, age: u64) -> Self {
        Self {
            name,
            priority: request.priority,
            age,
            credentials: request.credentials.clone(),
            interests: Vec::new(),
            state: State::Waiting(Tick(0)),
            started: None,
            attempts: 0,
            image: None,
            heard: false,
            policy: request.policy,
            deadline: request.deadline,
            remembered: false,
            looked: None,
            next_credential: 0,
            repeats: 0,
        }
    }

    /// The same pull was done a while ago.
    #[must_use]
    pub fn remembering(mut self, done: bool) -> Self {
        self.remembered = done;
        self
    }

    /// Another request: shared pulls take the highest priority and the longest deadline. It takes
    /// over from requests whose streams are gone, so that it alone can cancel what they began.
    pub fn share(&mut self, request: &PullRequest, interest: Interest) {
        self.priority = self.priority.max(request.priority);
        self.deadline = match (self.deadline, request.deadline) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        self.interests.retain(|known| known.stream.is_some());
        self.interests.push(interest);
    }

    /// The call under way.
    pub fn call(&self) -> Option<CallId> {
        match self.state {
            State::Looking(id) | State::Pulling(id) | State::Verifying(id) => Some(id),
            State::Waiting(_) | State::Finished(..) => None,
        }
    }

    /// The pull call under way.
    pub fn pulling(&self) -> Option<CallId> {
        match self.state {
            State::Pulling(id) => Some(id),
            _ => None,
        }
    }

    /// It is over and only remembered.
    pub fn finished(&self) -> bool {
        matches!(self.state, State::Finished(..))
    }

    /// Whether it takes one of the places of `--max-parallel-pulls`.
    pub fn holds_slot(&self) -> bool {
        self.call().is_some() && self.started.is_some()
    }

    /// It waits, and may go on now.
    pub fn due(&self, now: Tick) -> bool {
        matches!(self.state, State::Waiting(at) if at <= now)
    }

    /// It wants to know whether the image is there before it asks for a slot.
    pub fn wants_look(&self) -> bool {
        self.looks_first() && self.looked.is_none() && self.started.is_none()
    }

    /// The image may be there now: look again.
    pub fn forget_look(&mut self) {
        self.looked = None;
    }

    fn looks_first(&self) -> bool {
        self.policy == Policy::IfNotPresent || self.remembered
    }

    /// When it counts as long.
    pub fn long_at(&self) -> Option<Tick> {
        self.pulling().and(self.started).map(|at| at.after(LONG))
    }

    /// When its attempt must end.
    pub fn deadline_at(&self) -> Option<Tick> {
        let started = self.started.filter(|_| !self.finished())?;
        Some(started.after(self.deadline.unwrap_or(LONGEST)))
    }

    /// The first call in a slot.
    pub fn begin(&mut self, now: Tick) -> Call {
        self.started.get_or_insert(now);
        let fresh = self.looked.is_some_and(|at| at.after(LOOK_AGE) > now);
        if self.looks_first() && !fresh {
            self.look()
        } else {
            self.pull()
        }
    }

    /// Is it there?
    pub fn look(&self) -> Call {
        Call::Inspect(self.name.clone())
    }

    fn pull(&mut self) -> Call {
        self.attempts += 1;
        let credential = self.credentials.get(self.next_credential).copied();
        Call::Pull(self.name.clone(), credential)
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, now: Tick) -> Next {
        match (&self.state, answer) {
            (State::Looking(_), Answer::Inspected(Ok(Some(image)))) => {
                self.image = Some(image);
                let ours = self.remembered || self.attempts > 0;
                Next::Finish(if ours {
                    PullResult::Pulled
                } else {
                    PullResult::Present
                })
            }
            (State::Looking(_), Answer::Inspected(Ok(None))) => {
                self.looked = Some(now);
                self.remembered = false;
                if self.started.is_some() {
                    Next::Call(self.pull())
                } else {
                    Next::Wait(now)
                }
            }
            (State::Pulling(_), Answer::Pulled(Ok(()))) => Next::Call(self.look()),
            (State::Verifying(_), Answer::Inspected(Ok(Some(image)))) => {
                self.image = Some(image);
                Next::Finish(PullResult::Pulled)
            }
            (State::Verifying(_), Answer::Inspected(Ok(None))) => Next::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime pulled the image and does not have it: was it removed at once?",
            )),
            (_, Answer::Pulled(Err(error)) | Answer::Inspected(Err(error))) => {
                self.went_wrong(&error, now)
            }
            (_, _) => Next::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime answered another question",
            )),
        }
    }

    fn went_wrong(&mut self, error: &CallError, now: Tick) -> Next {
        let class = classify::classify(error);
        match class.remedy {
            Remedy::NextCredential if self.next_credential + 1 < self.credentials.len() => {
                self.next_credential += 1;
                Next::Call(self.pull())
            }
            // CRI-O cancels a second caller's pull with the first one's.
            Remedy::RepeatAtOnce if self.repeats < MOST_REPEATS => {
                self.repeats += 1;
                self.looked = None;
                Next::Wait(now)
            }
            Remedy::Repeat if self.repeats < MOST_REPEATS => {
                let pause = FIRST_PAUSE * 4_u32.pow(self.repeats);
                self.repeats += 1;
                self.looked = None;
                Next::Wait(now.after(pause))
            }
            _ => Next::Finish(failed(class.reason, &error.message)),
        }
    }

    /// Where the task stands while this call runs.
    pub fn calling(&mut self, id: CallId, call: &Call) {
        self.state = match (call, &self.state) {
            (Call::Pull(..), _) => State::Pulling(id),
            (_, State::Pulling(_)) => State::Verifying(id),
            _ => State::Looking(id),
        };
    }

    /// Ends the interests of a batch in these names, as its request wrote them; none: in all.
    #[must_use = "those who lost their interest are to be told"]
    pub fn cancel(&mut self, term: u64, batch: u64, names: &BTreeSet<String>) -> Vec<Interest> {
        self.take(|interest| {
            interest.authority.term == term
                && interest.authority.batch == batch
                && (names.is_empty() || names.contains(&interest.reference))
        })
    }

    /// Ends the interests that a newer removal beats.
    #[must_use = "those who lost their interest are to be told"]
    pub fn supersede(&mut self, removal: Authority) -> Vec<Interest> {
        let newest = (removal.term, removal.seq);
        self.take(|interest| (interest.authority.term, interest.authority.seq) < newest)
    }

    /// Ends the interests of older terms that nobody took up again.
    #[must_use = "those who lost their interest are to be told"]
    pub fn expire(&mut self, now: Tick) -> Vec<Interest> {
        self.take(|interest| interest.until.is_some_and(|until| until <= now))
    }

    fn take(&mut self, gone: impl Fn(&Interest) -> bool) -> Vec<Interest> {
        let all = std::mem::take(&mut self.interests);
        let (gone, kept) = all.into_iter().partition(gone);
        self.interests = kept;
        gone
    }
}

/// A failure with its message cut.
pub fn failed(reason: &str, message: &str) -> PullResult {
    PullResult::Failed {
        reason: reason.to_owned(),
        message: classify::tidy(message),
    }
}
