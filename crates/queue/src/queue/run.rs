//! What runs next, and what follows from the runtime's answers.

use std::{cmp::Reverse, collections::BTreeSet};

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use super::{Caller, MEMORY, Queue, outcome};
use crate::{
    Answer, Call, CallId, Checked, Command, PullResult, RemoveOutcome, RemoveResult, StreamId,
    Tick, classify,
    intent::Wish,
    removal::{self, Circumstances, Step, normalized},
    task::{self, State, Task, TaskKey},
};

/// Looks at a time. They cost the runtime next to nothing and contact no registry, so that what is
/// present is told at once, however long pulls take.
const MOST_LOOKS: usize = 16;

impl Queue {
    fn call(&mut self, caller: Caller, call: Call) -> CallId {
        self.counter += 1;
        let id = CallId(self.counter);
        self.calls.insert(id, caller);
        self.replies.push(Command::Call(id, call));
        id
    }

    fn call_for(&mut self, key: &TaskKey, call: &Call) {
        let id = self.call(Caller::Task(key.clone()), call.clone());
        if let Some(task) = self.tasks.get_mut(key) {
            task.calling(id, call);
        }
    }

    // === ends

    /// Interests of older terms that nobody took up again.
    pub(super) fn end_interests(&mut self, now: Tick) {
        let mut told = Vec::new();
        for task in self.tasks.values_mut() {
            for interest in task.expire(now) {
                let outcome = outcome(task, &interest, PullResult::Cancelled, now);
                told.push((interest.stream, outcome));
            }
        }
        self.tell(told);
    }

    /// Tasks that nobody wants, or that took too long.
    pub(super) fn end_tasks(&mut self, now: Tick) {
        let open = self.tasks.iter().filter(|(_, task)| !task.finished());
        let (unwanted, wanted): (Vec<_>, Vec<_>) =
            open.partition(|(_, task)| task.interests.is_empty());
        let late = |task: &Task| task.deadline_at().is_some_and(|at| at <= now);
        let late: Vec<TaskKey> = wanted
            .into_iter()
            .filter(|(_, task)| late(task))
            .map(|(key, _)| key.clone())
            .collect();
        let unwanted: Vec<TaskKey> = unwanted.into_iter().map(|(key, _)| key.clone()).collect();
        for key in unwanted {
            self.abandon_call(&key);
            self.tasks.remove(&key);
        }
        for key in late {
            self.abandon_call(&key);
            let result = task::failed(
                failure::DEADLINE_EXCEEDED,
                "the pull did not end within its deadline: set pullDeadline higher",
            );
            self.finish(&key, result, now);
        }
    }

    /// A pull is ended, and its place stays taken until the runtime has let go of it. The answer to
    /// a look interests nobody any more.
    fn abandon_call(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        if let Some(id) = task.pulling() {
            self.ending.insert(id, key.image.clone());
            self.calls.insert(id, Caller::Ending);
            self.replies.push(Command::CancelCall(id));
        } else if let Some(id) = task.call() {
            self.calls.remove(&id);
        }
    }

    fn finish(&mut self, key: &TaskKey, result: PullResult, now: Tick) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let interests = std::mem::take(&mut task.interests);
        task.heard = interests.iter().any(|known| known.stream.is_some());
        let told = interests
            .iter()
            .map(|known| (known.stream, outcome(task, known, result.clone(), now)))
            .collect();
        let there = matches!(result, PullResult::Present | PullResult::Pulled);
        task.state = State::Finished(result, now.after(MEMORY));
        self.tell(told);
        if there {
            // Others who want the image, with other credentials or another token, may have it now.
            let same = self.tasks.iter_mut().filter(|(k, _)| k.image == key.image);
            same.for_each(|(_, task)| task.forget_look());
        }
    }

    pub(super) fn forget(&mut self, now: Tick) {
        let old = |task: &Task| matches!(task.state, State::Finished(_, until) if until <= now);
        self.tasks.retain(|_, task| !old(task));
        self.intents.expire(now);
    }

    // === starts

    /// Names on which the runtime works for us. Neither a pull nor a removal of one may begin.
    fn busy(&self) -> BTreeSet<String> {
        let mut busy: BTreeSet<String> = self.ending.values().cloned().collect();
        let pulls = self.tasks.iter().filter(|(_, task)| task.holds_slot());
        busy.extend(pulls.map(|(key, _)| key.image.clone()));
        busy.extend(self.removals.iter().flat_map(|r| r.held.iter().cloned()));
        busy
    }

    /// Tasks that may go on, the first to be served first.
    fn due(&self, now: Tick) -> Vec<TaskKey> {
        let busy = self.busy();
        let mut due: Vec<(&TaskKey, &Task)> = self
            .tasks
            .iter()
            .filter(|(key, task)| task.due(now) && !busy.contains(&key.image))
            .collect();
        due.sort_by_key(|(_, task)| (Reverse(task.priority), task.age));
        due.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// Checks first: somebody waits for them.
    pub(super) fn start_looks(&mut self, now: Tick) {
        let checks = self.calls.values();
        let checks = checks.filter(|caller| matches!(caller, Caller::Check(..)));
        let tasks = self.tasks.values();
        let tasks = tasks.filter(|task| task.call().is_some() && !task.holds_slot());
        let mut free = MOST_LOOKS.saturating_sub(checks.count() + tasks.count());

        let ids: Vec<u64> = self.checks.keys().copied().collect();
        for id in ids {
            while free > 0
                && let Some((index, name)) = self.next_in_check(id)
            {
                self.call(Caller::Check(id, index), Call::Inspect(name));
                free -= 1;
            }
        }
        if free == 0 || !self.tasks.values().any(Task::wants_look) {
            return;
        }
        for key in self.due(now) {
            let Some(task) = self.tasks.get(&key).filter(|task| task.wants_look()) else {
                continue;
            };
            if free == 0 {
                return;
            }
            let look = task.look();
            self.call_for(&key, &look);
            free -= 1;
        }
    }

    fn next_in_check(&mut self, id: u64) -> Option<(usize, String)> {
        let check = self.checks.get_mut(&id)?;
        let name = check.names.get(check.asked)?;
        let name = ImageRef::parse(name).map_or_else(|_| name.clone(), |i| i.runtime_name());
        check.asked += 1;
        Some((check.asked - 1, name))
    }

    /// Slots are for pulls that run. One more serves tasks never tried, beside a long pull: a pull
    /// of 10 GB does not delay one of 5 MB.
    pub(super) fn start_pulls(&mut self, now: Tick) {
        let most = self.settings.max_parallel_pulls.max(1);
        for key in self.due(now) {
            let slots = self.tasks.values().filter(|task| task.holds_slot());
            let long = slots.clone().filter_map(Task::long_at).any(|at| at <= now);
            let taken = slots.count() + self.ending.len();
            let Some(task) = self.tasks.get_mut(&key) else {
                continue;
            };
            let may = taken < most || (taken == most && long && task.started.is_none());
            if taken > most || (taken == most && !long) {
                return;
            }
            if may && !task.wants_look() {
                let call = task.begin(now);
                self.call_for(&key, &call);
                if self.tasks.keys().filter(|k| k.image == key.image).count() > 1 {
                    // The same image with other credentials waits until this one is through.
                    return self.start_pulls(now);
                }
            }
        }
    }

    pub(super) fn start_removal(&mut self) {
        while let Some(removal) = self.removals.front() {
            if removal.call().is_some() {
                return;
            }
            if removal.at >= removal.names.len() || removal.stream.is_none() {
                self.removals.pop_front();
                continue;
            }
            let (_, normal) = &removal.names[removal.at];
            if !self.intents.stands(normal, removal.authority, Wish::Remove) {
                self.removed(RemoveResult::Superseded);
                continue;
            }
            let busy = self.busy();
            let name = removal.runtime_name();
            if removal.names.iter().any(|(_, name)| busy.contains(name)) {
                // The runtime lets go of a pull that was ended for this removal.
                return;
            }
            let id = self.call(Caller::Removal, Call::Inspect(name));
            if let Some(removal) = self.removals.front_mut() {
                removal.step = Step::Looking(id);
            }
            return;
        }
    }

    // === answers

    pub(super) fn answered(&mut self, id: CallId, answer: Answer, now: Tick) {
        match self.calls.remove(&id) {
            Some(Caller::Task(key)) => self.task_answered(&key, answer, now),
            Some(Caller::Ending) => drop(self.ending.remove(&id)),
            Some(Caller::Removal) => self.removal_answered(answer),
            Some(Caller::Check(at, index)) => self.check_answered(at, index, answer),
            None => {}
        }
    }

    fn task_answered(&mut self, key: &TaskKey, answer: Answer, now: Tick) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        match task.answered(answer, now) {
            task::Next::Call(call) => self.call_for(key, &call),
            task::Next::Wait(at) => task.state = State::Waiting(at),
            task::Next::Finish(result) => self.finish(key, result, now),
        }
    }

    fn removal_answered(&mut self, answer: Answer) {
        if !self.removal_stands() {
            self.removed(RemoveResult::Superseded);
            return;
        }
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        let mut claimed: BTreeSet<String> = self
            .intents
            .pulled_since(removal.authority)
            .cloned()
            .collect();
        let open = self.tasks.iter().filter(|(_, task)| !task.finished());
        claimed.extend(open.map(|(key, _)| key.image.clone()));
        let around = Circumstances {
            runtime: self.settings.runtime,
            protected: &self.settings.protected_images,
            claimed: &claimed,
        };
        match removal.answered(answer, &around) {
            removal::Next::Finish(result) => self.removed(result),
            removal::Next::Call(call) => {
                let id = self.call(Caller::Removal, call);
                if let Some(removal) = self.removals.front_mut() {
                    removal.called(id);
                }
            }
        }
    }

    /// Looked at again before each step, so also right before the runtime removes. What it has
    /// removed is removed.
    fn removal_stands(&self) -> bool {
        self.removals.front().is_some_and(|removal| {
            let (_, normal) = &removal.names[removal.at];
            let stands = self.intents.stands(normal, removal.authority, Wish::Remove);
            removal.acting() || (stands && removal.stream.is_some())
        })
    }

    fn removed(&mut self, result: RemoveResult) {
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        let index = removal.at;
        removal.next();
        let stream = removal.stream;
        self.tell_removed(stream, RemoveOutcome { index, result });
    }

    fn tell_removed(&mut self, stream: Option<StreamId>, outcome: RemoveOutcome) {
        let Some(stream) = stream else { return };
        if let Some(open) = self.open.get_mut(&stream) {
            *open = open.saturating_sub(1);
            self.replies.push(Command::Removed(stream, vec![outcome]));
            self.done_if_empty(stream);
        }
    }

    fn check_answered(&mut self, at: u64, index: usize, answer: Answer) {
        let Some(check) = self.checks.get(&at) else {
            return;
        };
        let unknown = |message: &str| Checked::Unknown {
            reason: failure::IMAGE_INSPECT_ERROR.to_owned(),
            message: classify::tidy(message),
        };
        let saw = match answer {
            Answer::Inspected(Ok(Some(image))) => Checked::Present(image),
            Answer::Inspected(Ok(None)) => self.absent(&normalized(&check.names[index])),
            Answer::Inspected(Err(error)) => unknown(&error.message),
            _ => unknown("the runtime answered another question"),
        };
        if let Some(check) = self.checks.get_mut(&at) {
            check.answers.insert(index, saw);
        }
        self.finish_check(at);
    }

    /// What is known of an image that is not there.
    fn absent(&self, image: &str) -> Checked {
        let tasks = || {
            let known = self.tasks.iter();
            known
                .filter(|(key, _)| key.image == image)
                .map(|(_, task)| task)
        };
        if tasks().any(Task::holds_slot) {
            return Checked::Pulling;
        }
        if tasks().any(|task| !task.finished()) {
            return Checked::Queued;
        }
        tasks()
            .find_map(|task| match &task.state {
                State::Finished(PullResult::Failed { reason, message }, _) => {
                    let (reason, message) = (reason.clone(), message.clone());
                    Some(Checked::Failed { reason, message })
                }
                _ => None,
            })
            .unwrap_or(Checked::Absent)
    }

    pub(super) fn finish_check(&mut self, at: u64) {
        let whole = |check: &super::Check| check.answers.len() == check.names.len();
        if self.checks.get(&at).is_some_and(whole)
            && let Some(check) = self.checks.remove(&at)
        {
            let answers = check.answers.into_values().collect();
            let checked = Command::Checked(check.stream, answers, self.term);
            self.replies.push(checked);
            self.replies.push(Command::Done(check.stream));
        }
    }
}
