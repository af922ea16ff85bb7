//! One pull, shared by everybody who asked for it.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use crate::{
    Answer, Authority, Bytes, Call, CallError, CallId, CredentialId, Image, PinResult, Policy,
    PullRequest, PullResult, Retention, StreamId, Support, Tick,
    classify::{self, Remedy},
    keep,
};
use kubefledged_api_types::names::failure;

/// Most repeats of what concerns this node only.
const MOST_REPEATS: u32 = 3;
/// In milliseconds; the shortest limit of a runtime in use is ten seconds.
const STOOD_STILL: u64 = 8_000;
/// Before the first repeat where the runtime is away; each further one waits four times as long:
/// a restart of the runtime takes some seconds.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A pull that runs for this time is long: it no longer delays small ones, because one more slot opens
/// beside it. The controller counts the same, and then sends the node another batch.
pub const LONG_PULL: Duration = Duration::from_secs(20);
/// How long a look holds. Somebody else may pull the image while the task waits for its slot, and a
/// pull of a present image contacts the registry and fails without credentials.
const LOOK_AGE: Duration = Duration::from_secs(5);
/// Longest and shortest time between two observations of the bytes of a pull, for its no-progress limit.
const WATCH: Duration = Duration::from_secs(10);
const OFTEN: Duration = Duration::from_secs(1);
/// Bytes per second that count as progress.
const SLOWEST: u64 = 512;
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

/// What a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Is the image there?
    Look,
    /// Which credentials has the node for it?
    Credentials,
    /// The runtime pulls.
    Pull,
    /// What is there now?
    Verify,
    /// It is there, and its pin is seen to.
    Keep(keep::Step),
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For a look or a slot, and not before.
    Waiting(Tick),
    /// For the runtime.
    Calling(CallId, Phase),
    /// Remembered until then.
    Finished(PullResult, Tick),
}

/// The bytes of a pull as they were seen.
#[derive(Clone, Copy, Debug)]
struct Watch {
    /// When they are looked at again.
    next: Tick,
    /// None: they could not be seen.
    bytes: Option<Bytes>,
    /// When enough had arrived, or nothing was being fetched.
    moved: Tick,
    /// How many were there then.
    mark: u64,
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
    /// What became of the wish to pin it.
    pub pin: PinResult,
    /// Somebody listened when it finished.
    pub heard: bool,
    /// Whether pins work here, if it has found out.
    pub learnt: Option<Support>,
    policy: Policy,
    retention: Retention,
    deadline: Option<Duration>,
    fallback: Option<Duration>,
    no_progress: Duration,
    /// The pull of this token was done already: it counts, if the image is still there.
    remembered: bool,
    looked: Option<Tick>,
    /// The id of the name before the pull.
    before: Option<String>,
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
pub enum Next {
    /// This call; the state follows it.
    Call(Call, Phase),
    /// Wait for a slot, and not before.
    Wait(Tick),
    /// It is over.
    Finish(PullResult),
}

/// What else decides.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Whether pins work here.
    pub pins: Support,
    /// Why nothing is pinned now.
    pub full: Option<&'a str>,
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
            policy: request.policy,
            retention: request.retention,
            deadline: request.deadline,
            fallback: request.fallback_deadline,
            no_progress,
            remembered: false,
            looked: None,
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

    /// Another request: shared pulls take the highest priority, the strongest retention and the
    /// longest limits. It takes over from requests whose streams are gone, so that it alone can
    /// cancel what they began.
    pub fn share(&mut self, request: &PullRequest, interest: Interest) {
        let longest = |a: Option<Duration>, b: Option<Duration>| Some(a?.max(b?));
        self.priority = self.priority.max(request.priority);
        self.retention = self.retention.max(request.retention);
        self.deadline = longest(self.deadline, request.deadline);
        self.fallback = longest(self.fallback, request.fallback_deadline);
        self.interests.retain(|known| known.stream.is_some());
        self.interests.push(interest);
    }

    /// Its place among others.
    pub fn rank(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.age)
    }

    /// How far its pull is, where that can be seen.
    pub fn bytes(&self) -> Option<Bytes> {
        self.watch?.bytes
    }

    /// It pins, so that it matters how full the disk is.
    pub fn pins(&self) -> bool {
        self.retention == Retention::Pinned
    }

    /// The call under way.
    pub fn call(&self) -> Option<CallId> {
        match self.state {
            State::Calling(id, _) => Some(id),
            State::Waiting(_) | State::Finished(..) => None,
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
            State::Calling(_, Phase::Look | Phase::Credentials | Phase::Pull)
        );
        pulls && self.started.is_some()
    }

    /// Whether the runtime works on its name.
    pub fn holds_name(&self) -> bool {
        match &self.state {
            State::Calling(_, Phase::Keep(_)) => true,
            State::Calling(..) => self.started.is_some(),
            State::Waiting(_) | State::Finished(..) => false,
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

    /// It wants to know whether the image is there before it asks for a slot.
    pub fn wants_look(&self) -> bool {
        self.looks_first() && self.looked.is_none() && self.started.is_none()
    }

    /// The image may be there now: look again.
    pub fn forget_look(&mut self) {
        self.looked = None;
    }

    /// Always asks the registry; but the image that the name leaves behind may carry our pin.
    fn looks_first(&self) -> bool {
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
        if self.finished() || matches!(self.state, State::Calling(_, Phase::Keep(_))) {
            return None;
        }
        let seen = self.watch.is_some_and(|watch| watch.bytes.is_some());
        let limit = self.deadline.or(self.fallback.filter(|_| !seen));
        Some(self.started?.after(limit.unwrap_or(LONGEST)))
    }

    /// The first call in a slot.
    pub fn begin(&mut self, now: Tick, around: Circumstances<'_>) -> (Call, Phase) {
        self.started.get_or_insert(now);
        let fresh = self.looked.is_some_and(|at| at.after(LOOK_AGE) > now);
        if self.looks_first() && !fresh {
            self.look()
        } else {
            self.pull_or_ask(now, around)
        }
    }

    /// Is it there?
    pub fn look(&self) -> (Call, Phase) {
        (Call::Inspect(self.name.clone()), Phase::Look)
    }

    /// The credentials of the request go first, and without any of the node either it is tried
    /// anonymously: the kubelet's rule.
    fn pull_or_ask(&mut self, now: Tick, around: Circumstances<'_>) -> (Call, Phase) {
        let used_up = self.next_credential >= self.credentials.len();
        if used_up && around.providers && !self.asked_node {
            return (Call::Credentials(self.name.clone()), Phase::Credentials);
        }
        self.pull(now)
    }

    fn pull(&mut self, now: Tick) -> (Call, Phase) {
        self.attempts += 1;
        let credential = self.credentials.get(self.next_credential).copied();
        self.watch_from(now);
        (Call::Pull(self.name.clone(), credential), Phase::Pull)
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, now: Tick, around: Circumstances<'_>) -> Next {
        let State::Calling(_, phase) = &self.state else {
            return Next::Wait(now);
        };
        match (phase.clone(), answer) {
            (Phase::Look, Answer::Inspected(Ok(Some(image)))) => {
                self.looked = Some(now);
                let will_do = self.policy == Policy::IfNotPresent || self.remembered;
                if will_do || self.attempts > 0 {
                    return self.there(image, around);
                }
                self.before = Some(image.id);
                self.next_after_look(now, around)
            }
            (Phase::Look, Answer::Inspected(Ok(None))) => {
                self.looked = Some(now);
                self.remembered = false;
                self.next_after_look(now, around)
            }
            (Phase::Credentials, Answer::Credentials(more, trouble)) => {
                self.credentials.extend(more);
                (self.asked_node, self.trouble) = (true, trouble);
                let used_up = self.next_credential >= self.credentials.len();
                match self.refusal.take().filter(|_| used_up) {
                    Some((reason, message)) => Next::Finish(self.failure(reason, &message)),
                    None => self.pull(now).into(),
                }
            }
            (Phase::Pull, Answer::Pulled(Ok(()))) => {
                Next::Call(Call::Inspect(self.name.clone()), Phase::Verify)
            }
            (Phase::Verify, Answer::Inspected(Ok(Some(image)))) => self.there(image, around),
            // A removal of the image under another name came between; or the runtime is wrong.
            (Phase::Verify, Answer::Inspected(Ok(None))) => self.pull_again(now),
            (Phase::Keep(step), answer) => self.keep(&step, answer, around),
            (_, Answer::Pulled(Err(error)) | Answer::Inspected(Err(error))) => {
                self.went_wrong(&error, now, around)
            }
            (_, _) => Next::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime answered another question",
            )),
        }
    }

    fn next_after_look(&mut self, now: Tick, around: Circumstances<'_>) -> Next {
        if self.started.is_some() {
            self.pull_or_ask(now, around).into()
        } else {
            Next::Wait(now)
        }
    }

    /// The image is there; what is left is its pin.
    fn there(&mut self, image: Image, around: Circumstances<'_>) -> Next {
        let mut found = keep::Found::default();
        let next = keep::begin(&image, self.keeping(around), &mut found);
        self.image = Some(image);
        self.kept(next, found)
    }

    fn keep(&mut self, step: &keep::Step, answer: Answer, around: Circumstances<'_>) -> Next {
        let mut found = keep::Found::default();
        let image = self.image.clone().unwrap_or_default();
        let next = keep::answered(step, answer, &image, self.keeping(around), &mut found);
        self.kept(next, found)
    }

    fn keeping<'a>(&'a self, around: Circumstances<'a>) -> keep::Circumstances<'a> {
        keep::Circumstances {
            retention: self.retention,
            name: &self.name,
            before: self.before.as_deref(),
            pins: around.pins,
            full: around.full,
        }
    }

    fn kept(&mut self, next: keep::Next, found: keep::Found) -> Next {
        self.image = found.image.or(self.image.take());
        self.learnt = found.pins;
        if let Some(pin) = found.pin {
            self.pin = pin;
        }
        match next {
            keep::Next::Call(call, step) => Next::Call(call, Phase::Keep(step)),
            keep::Next::Done => Next::Finish(self.done()),
        }
    }

    /// What became of it once its image is there.
    pub fn done(&self) -> PullResult {
        if self.remembered || self.attempts > 0 {
            PullResult::Pulled
        } else {
            PullResult::Present
        }
    }

    fn went_wrong(&mut self, error: &CallError, now: Tick, around: Circumstances<'_>) -> Next {
        let class = classify::classify(error, &self.name);
        let more = self.next_credential + 1 < self.credentials.len();
        match class.remedy {
            Remedy::NextCredential if more => {
                self.next_credential += 1;
                self.pull(now).into()
            }
            Remedy::NextCredential if around.providers && !self.asked_node => {
                self.next_credential = self.credentials.len();
                self.refusal = Some((class.reason, error.message.clone()));
                self.pull_or_ask(now, around).into()
            }
            // CRI-O cancels a second caller's pull with the first one's.
            Remedy::RepeatAtOnce if self.repeats < MOST_REPEATS && !self.stood_still(now) => {
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
            _ => Next::Finish(self.failure(class.reason, &error.message)),
        }
    }

    fn pull_again(&mut self, now: Tick) -> Next {
        if self.repeats < MOST_REPEATS {
            self.repeats += 1;
            return Next::Wait(now);
        }
        Next::Finish(failed(
            failure::ERR_IMAGE_PULL,
            "the runtime pulled the image and does not have it: is it removed at once?",
        ))
    }

    /// What kept the node's own credentials away belongs to the refusal.
    fn failure(&self, reason: &str, message: &str) -> PullResult {
        match &self.trouble {
            Some(trouble) if reason == failure::UNAUTHORIZED => {
                failed(reason, &format!("{message}; {trouble}"))
            }
            _ => failed(reason, message),
        }
    }

    // === bytes

    fn watch_from(&mut self, now: Tick) {
        self.watch = Some(Watch {
            next: now.after(self.often()),
            bytes: self.watch.and_then(|watch| watch.bytes),
            moved: now,
            mark: 0,
        });
    }

    /// Time between two observations of its bytes: none is longer than the limit.
    fn often(&self) -> Duration {
        self.no_progress.clamp(OFTEN, WATCH)
    }

    /// When its bytes are to be looked at.
    pub fn watch_at(&self) -> Option<Tick> {
        self.pulling()?;
        self.watch.map(|watch| watch.next)
    }

    /// Takes in an observation of its bytes. Returns for how long too few bytes have arrived although a
    /// layer is being fetched: none is while layers are unpacked. Within the no-progress limit there must be
    /// as many bytes as at [`SLOWEST`], or a tenth of a small image: a registry that sends a byte a minute
    /// makes no progress.
    pub fn saw(&mut self, bytes: Option<Bytes>, now: Tick) -> Duration {
        let (often, limit) = (self.often(), self.no_progress);
        let Some(watch) = &mut self.watch else {
            return Duration::ZERO;
        };
        let total = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.total);
        let same_total = |bytes: &Bytes| total(watch.bytes) == Some(bytes.total);
        let fetching = bytes.filter(|bytes| bytes.active && same_total(bytes));
        if let Some(Bytes { done, total, .. }) = fetching {
            let enough = (SLOWEST * limit.as_secs()).min(total / 10).max(1);
            if done >= watch.mark.saturating_add(enough) {
                (watch.moved, watch.mark) = (now, done);
            }
            // A layer begins anew.
            watch.mark = watch.mark.min(done);
        } else {
            watch.moved = now;
            watch.mark = bytes.map_or(watch.mark, |bytes| bytes.done);
        }
        watch.bytes = bytes.or(watch.bytes);
        watch.next = now.after(often);
        Duration::from_millis(now.0.saturating_sub(watch.moved.0))
    }

    /// Whether bytes were awaited and none arrived: then the runtime gave up by itself, and would do
    /// so again.
    fn stood_still(&self, now: Tick) -> bool {
        self.watch.is_some_and(|watch| {
            let waits = watch.bytes.is_some_and(|bytes| bytes.active);
            waits && now.0.saturating_sub(watch.moved.0) >= STOOD_STILL
        })
    }

    // === interests

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

impl From<(Call, Phase)> for Next {
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
