//! What a task does next: its first call, and what follows from each answer of the runtime.

use std::time::Duration;

use kubefledged_api_types::names::failure;

use super::{AfterCall, Phase, State, Task, TaskContext, failed};
use crate::{
    Answer, Call, CallError, Image, Mark, Policy, PullResult, Tick,
    classify::{self, Remedy},
    pins,
};

/// Most repeats of what concerns this node only.
const MOST_REPEATS: u32 = 3;
/// Before the first repeat where the runtime is away; each further one waits four times as long:
/// a restart of the runtime takes some seconds.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long an inspection holds. Somebody else may pull the image while the task waits for its slot, and a
/// pull of a present image contacts the registry and fails without credentials.
const INSPECTION_AGE: Duration = Duration::from_secs(5);

impl Task {
    /// The first call in a slot.
    pub fn begin(&mut self, now: Tick, around: TaskContext<'_>) -> (Call, Phase) {
        self.started.get_or_insert(now);
        self.telling.wanted = around.shares;
        let fresh = self
            .inspected
            .is_some_and(|at| at.after(INSPECTION_AGE) > now);
        if self.inspects_first() && !fresh {
            self.inspect()
        } else {
            self.pull_or_ask(now, around)
        }
    }

    /// Is it there?
    pub fn inspect(&self) -> (Call, Phase) {
        (Call::Inspect(self.name.clone()), Phase::Inspect)
    }

    /// Does the runtime show the pin by now?
    pub fn look_again(&self) -> Option<(Call, Phase)> {
        match &self.state {
            State::Paused(_, step) => {
                Some((Call::Inspect(self.name.clone()), Phase::Pin(step.clone())))
            }
            _ => None,
        }
    }

    /// The credentials of the request go first, and without any of the node either it is tried
    /// anonymously: the kubelet's rule.
    fn pull_or_ask(&mut self, now: Tick, around: TaskContext<'_>) -> (Call, Phase) {
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
        let call = Call::Pull(self.name.clone(), credential, self.sharing.clone());
        (call, Phase::Pull)
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, now: Tick, around: TaskContext<'_>) -> AfterCall {
        self.telling.wanted = around.shares;
        let State::Calling(_, phase) = &self.state else {
            return AfterCall::Wait(now);
        };
        match (phase.clone(), answer) {
            (Phase::Inspect, Answer::Inspected(Ok(Some(image)))) => {
                self.inspected = Some(now);
                let will_do = self.policy == Policy::IfNotPresent || self.remembered;
                if will_do || self.attempts > 0 {
                    return self.there(image, now, around);
                }
                self.before = Some(image);
                self.next_after_look(now, around)
            }
            (Phase::Inspect, Answer::Inspected(Ok(None))) => {
                self.inspected = Some(now);
                self.remembered = false;
                self.next_after_look(now, around)
            }
            (Phase::Credentials, Answer::Credentials(more, trouble)) => {
                self.credentials.extend(more);
                (self.asked_node, self.trouble) = (true, trouble);
                let used_up = self.next_credential >= self.credentials.len();
                match self.refusal.take().filter(|_| used_up) {
                    Some((reason, message)) => AfterCall::Finish(self.failure(reason, &message)),
                    None => self.pull(now).into(),
                }
            }
            (Phase::Pull, Answer::Pulled(Ok(sources))) => {
                self.sources = self.sources.and(sources);
                AfterCall::Call(Call::Inspect(self.name.clone()), Phase::Verify)
            }
            (Phase::Verify, Answer::Inspected(Ok(Some(image)))) => {
                if self.mark == Mark::Yes && self.brought(&image) {
                    self.image = Some(image);
                    return AfterCall::Call(Call::Mark(self.name.clone()), Phase::Mark);
                }
                self.there(image, now, around)
            }
            // Without the mark the image stays one day too long: that is the safe side.
            (Phase::Mark, Answer::Marked(_)) => {
                let image = self.image.take().unwrap_or_default();
                self.there(image, now, around)
            }
            // A removal of the image under another name came between; or the runtime is wrong.
            (Phase::Verify, Answer::Inspected(Ok(None))) => self.pull_again(now),
            (Phase::Pin(step), answer) => self.pin(&step, answer, now, around),
            (_, Answer::Pulled(Err(error)) | Answer::Inspected(Err(error))) => {
                self.went_wrong(&error, now, around)
            }
            (_, _) => AfterCall::Finish(failed(
                failure::ERR_IMAGE_PULL,
                "the runtime answered another question",
            )),
        }
    }

    /// Whether the pull changed what its name means. All artifacts have one id on containerd, and a new one shows by
    /// its digest.
    fn brought(&self, image: &Image) -> bool {
        self.before.as_ref().is_none_or(|before| {
            let known = |digest| before.digests.contains(digest);
            before.id != image.id || !image.digests.iter().all(known)
        })
    }

    fn next_after_look(&mut self, now: Tick, around: TaskContext<'_>) -> AfterCall {
        if self.started.is_some() {
            self.pull_or_ask(now, around).into()
        } else {
            AfterCall::Wait(now)
        }
    }

    /// The image is there; what is left is its pin.
    fn there(&mut self, image: Image, now: Tick, around: TaskContext<'_>) -> AfterCall {
        let mut found = pins::PinFindings::default();
        let next = pins::begin(&image, self.pinning(around), &mut found);
        self.image = Some(image);
        self.after_pin(next, found, now)
    }

    fn pin(
        &mut self,
        step: &pins::PinStep,
        answer: Answer,
        now: Tick,
        around: TaskContext<'_>,
    ) -> AfterCall {
        let mut found = pins::PinFindings::default();
        let image = self.image.clone().unwrap_or_default();
        let next = pins::answered(step, answer, &image, self.pinning(around), &mut found);
        self.after_pin(next, found, now)
    }

    fn pinning<'a>(&'a self, around: TaskContext<'a>) -> pins::PinContext<'a> {
        pins::PinContext {
            retention: self.retention,
            name: &self.name,
            before: self.before.as_ref().map(|image| image.id.as_str()),
            pins: around.pins,
            full: around.full,
        }
    }

    fn after_pin(
        &mut self,
        next: pins::AfterPin,
        found: pins::PinFindings,
        now: Tick,
    ) -> AfterCall {
        self.image = found.image.or(self.image.take());
        self.learnt = found.pins;
        if let Some(pin) = found.pin {
            self.pin = pin;
        }
        match next {
            pins::AfterPin::Call(call, step) => AfterCall::Call(call, Phase::Pin(step)),
            pins::AfterPin::Later(pause, step) => AfterCall::Pause(now.after(pause), step),
            pins::AfterPin::Done => AfterCall::Finish(self.done()),
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

    fn went_wrong(&mut self, error: &CallError, now: Tick, around: TaskContext<'_>) -> AfterCall {
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
                self.inspected = None;
                AfterCall::Wait(now)
            }
            Remedy::Repeat if self.repeats < MOST_REPEATS => {
                let pause = FIRST_PAUSE * 4_u32.pow(self.repeats);
                self.repeats += 1;
                self.inspected = None;
                AfterCall::Wait(now.after(pause))
            }
            _ => AfterCall::Finish(self.failure(class.reason, &error.message)),
        }
    }

    fn pull_again(&mut self, now: Tick) -> AfterCall {
        if self.repeats < MOST_REPEATS {
            self.repeats += 1;
            return AfterCall::Wait(now);
        }
        AfterCall::Finish(failed(
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
}
