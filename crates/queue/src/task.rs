//! One pull, shared by everybody who asked for it.

mod bytes;
mod interests;
mod steps;

use std::{cmp::Reverse, time::Duration};

use crate::{
    Call, CallId, CredentialId, Image, Mark, PinResult, Policy, PullRequest, PullResult, Retention,
    Sharing, Sources, Support, Tick, classify, pins,
};
use bytes::{Telling, Watch};
pub use interests::Interest;

/// A pull that runs for this time is long: it no longer delays small ones, because one more slot opens
/// beside it. The controller counts the same, and then sends the node another batch.
pub const LONG_PULL: Duration = Duration::from_secs(20);
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

impl TaskKey {
    /// Not after any other key of the image.
    pub fn first(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            policy: Policy::IfNotPresent,
            freshness: String::new(),
            credentials: 0,
        }
    }
}

impl TaskKey {
    /// The host that the image comes from.
    pub fn registry(&self) -> &str {
        registry(&self.image)
    }
}

/// The host of a normalized name.
pub fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

/// What a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Is the image there?
    Inspect,
    /// Which credentials has the node for it?
    Credentials,
    /// The runtime pulls.
    Pull,
    /// What is there now?
    Verify,
    /// That we pulled it is remembered.
    Mark,
    /// The image is present, and its pin is set.
    Pin(pins::PinStep),
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For an inspection or a slot, and not before.
    Waiting(Tick),
    /// For the runtime.
    Calling(CallId, Phase),
    /// Until its image is inspected again: the runtime may not show the pin yet.
    Paused(Tick, pins::PinStep),
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
    /// The cache that asked first.
    pub cache: String,
    /// Tried in this order.
    pub credentials: Vec<CredentialId>,
    /// Who waits for it.
    pub interests: Vec<Interest>,
    /// Where it stands.
    pub state: State,
    /// When it got its first slot.
    pub started: Option<Tick>,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// As the runtime has it.
    pub image: Option<Image>,
    /// What became of the request to pin it.
    pub pin: PinResult,
    /// Somebody listened when it finished.
    pub heard: bool,
    /// Whether pins work here, if it has found out.
    pub learnt: Option<Support>,
    /// Where its layers came from, over all its calls.
    pub sources: Sources,
    sharing: Sharing,
    telling: Telling,
    policy: Policy,
    retention: Retention,
    deadline: Option<Duration>,
    fallback: Option<Duration>,
    no_progress: Duration,
    /// The pull of this token was done already: it counts, if the image is still there.
    remembered: bool,
    inspected: Option<Tick>,
    /// What the name meant before the pull.
    before: Option<Image>,
    /// It is to be remembered that we pulled it.
    mark: Mark,
    next_credential: usize,
    /// The node's own credentials were asked for.
    asked_node: bool,
    /// Why there may be too few of them.
    trouble: Option<String>,
    refusal: Option<(&'static str, String)>,
    repeats: u32,
    watch: Option<Watch>,
}

/// What a task does next.
#[derive(Debug)]
pub enum AfterCall {
    /// This call; the state follows it.
    Call(Call, Phase),
    /// Wait for a slot, and not before.
    Wait(Tick),
    /// Inspect the image for its pin, and not before.
    Pause(Tick, pins::PinStep),
    /// It is over.
    Finish(PullResult),
}

/// What else decides.
#[derive(Clone, Copy, Debug)]
pub struct TaskContext<'a> {
    /// Whether pins work here.
    pub pins: Support,
    /// Why nothing is pinned now.
    pub full: Option<&'a str>,
    /// The node shares layers with others, who wait for what is known of a pull.
    pub shares: bool,
    /// The node has credential providers.
    pub providers: bool,
}

impl Task {
    /// Returns a task for its first request. It may be `no_progress` long without enough bytes.
    pub fn new(name: String, request: &PullRequest, no_progress: Duration, age: u64) -> Self {
        Self {
            name,
            priority: request.priority,
            age,
            cache: request.cache.clone(),
            credentials: request.credentials.clone(),
            interests: Vec::new(),
            state: State::Waiting(Tick(0)),
            started: None,
            attempts: 0,
            image: None,
            pin: PinResult::NotAsked,
            heard: false,
            learnt: None,
            sources: Sources::default(),
            sharing: request.sharing.clone(),
            telling: Telling::default(),
            policy: request.policy,
            retention: request.retention,
            mark: request.mark,
            deadline: request.deadline,
            fallback: request.fallback_deadline,
            no_progress,
            remembered: false,
            inspected: None,
            before: None,
            next_credential: 0,
            asked_node: false,
            trouble: None,
            refusal: None,
            repeats: 0,
            watch: None,
        }
    }

    /// The same pull was done a while ago.
    #[must_use]
    pub fn remembering(mut self, done: bool) -> Self {
        self.remembered = done;
        self
    }

    /// Its place among others.
    pub fn rank(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.age)
    }

    /// It pins, so that it matters how full the disk is.
    pub fn pins(&self) -> bool {
        self.retention == Retention::Pinned
    }

    /// The call under way.
    pub fn call(&self) -> Option<CallId> {
        match self.state {
            State::Calling(id, _) => Some(id),
            State::Waiting(_) | State::Paused(..) | State::Finished(..) => None,
        }
    }

    /// The pull call under way.
    pub fn pulling(&self) -> Option<CallId> {
        match self.state {
            State::Calling(id, Phase::Pull) => Some(id),
            _ => None,
        }
    }

    /// It is over and only remembered.
    pub fn finished(&self) -> bool {
        matches!(self.state, State::Finished(..))
    }

    /// Whether it takes one of the places of `--max-parallel-pulls`: while it pulls, and what leads
    /// up to it. What follows contacts no registry.
    pub fn holds_slot(&self) -> bool {
        let pulls = matches!(
            self.state,
            State::Calling(_, Phase::Inspect | Phase::Credentials | Phase::Pull)
        );
        pulls && self.started.is_some()
    }

    /// Whether the runtime works on its name.
    pub fn holds_name(&self) -> bool {
        match &self.state {
            State::Calling(_, Phase::Pin(_)) | State::Paused(..) => true,
            State::Calling(..) => self.started.is_some(),
            State::Waiting(_) | State::Finished(..) => false,
        }
    }

    /// When its image is inspected again for its pin.
    pub fn paused_until(&self) -> Option<Tick> {
        match self.state {
            State::Paused(until, _) => Some(until),
            _ => None,
        }
    }

    /// It waits, and may go on now.
    pub fn due(&self, now: Tick) -> bool {
        matches!(self.state, State::Waiting(at) if at <= now)
    }

    /// The runtime was away, and is asked again.
    pub fn repeats(&self) -> bool {
        self.repeats > 0
    }

    /// It is inspected before it asks for a slot.
    pub fn wants_look(&self) -> bool {
        self.inspects_first() && self.inspected.is_none() && self.started.is_none()
    }

    /// The image may be there now: it is inspected again.
    pub fn forget_look(&mut self) {
        self.inspected = None;
    }

    /// Always asks the registry; but the image that the name leaves behind may carry our pin.
    fn inspects_first(&self) -> bool {
        self.policy == Policy::IfNotPresent
            || self.remembered
            || self.retention == Retention::Pinned
    }

    /// When it counts as long.
    pub fn long_at(&self) -> Option<Tick> {
        self.pulling()
            .and(self.started)
            .map(|at| at.after(LONG_PULL))
    }

    /// When its attempt must end. An image that is there is no longer late.
    pub fn deadline_at(&self) -> Option<Tick> {
        if self.finished()
            || matches!(
                self.state,
                State::Calling(_, Phase::Pin(_)) | State::Paused(..)
            )
        {
            return None;
        }
        let fallback = self.fallback.filter(|_| self.bytes().is_none());
        let limit = self.deadline.or(fallback);
        Some(self.started?.after(limit.unwrap_or(LONGEST)))
    }
}

impl From<(Call, Phase)> for AfterCall {
    fn from((call, phase): (Call, Phase)) -> Self {
        Self::Call(call, phase)
    }
}

/// A failure with its message cut.
pub fn failed(reason: &str, message: &str) -> PullResult {
    PullResult::Failed {
        reason: reason.to_owned(),
        message: classify::tidy(message),
    }
}
