//! What ends and what runs next.

use std::{cell::OnceCell, collections::BTreeSet};

use kubefledged_api_types::names::failure;

use super::{Caller, Ending, MEMORY, Queue, index::Turn, outcome, places::Running};
use crate::{
    Call, CallId, Command, PullResult, RemoveResult, Support, Tick,
    intent::Intent,
    removal::{self, Removal},
    task::{self, Phase, State, Task, TaskContext, TaskKey},
};

/// Inspections at a time. They cost the runtime next to nothing and contact no registry, so that what is
/// present is reported at once, however long pulls take.
const MOST_LOOKS: usize = 16;

impl Queue {
    pub(super) fn call(&mut self, caller: Caller, call: Call) -> CallId {
        let id = self.expect(caller);
        self.replies.push(Command::Call(id, call));
        id
    }

    /// A call that is about to be made.
    fn expect(&mut self, caller: Caller) -> CallId {
        self.counter += 1;
        let id = CallId(self.counter);
        self.calls.insert(id, caller);
        id
    }

    /// Whether a pull's image is there is seen only when no removal is at work that might take it
    /// under another name.
    pub(super) fn call_for(&mut self, key: &TaskKey, call: Call, phase: Phase) {
        let id = self.expect(Caller::Task(key.clone()));
        let removing = self.removals.front().is_some_and(Removal::acting);
        let calls = if removing && phase == Phase::Verify {
            &mut self.after_removal
        } else {
            &mut self.replies
        };
        calls.push(Command::Call(id, call));
        self.tasks
            .change(key, |task| task.state = State::Calling(id, phase));
    }

    // === ends

    /// Interests of older terms that nobody took up again.
    pub(super) fn end_interests(&mut self, now: Tick) {
        if self.interests_end.is_none_or(|end| end > now) {
            return;
        }
        let mut replies = Vec::new();
        let mut next: Option<Tick> = None;
        self.tasks.change_interests(|task| {
            for interest in task.expire(now) {
                let outcome = outcome(task, &interest, PullResult::Cancelled, now);
                replies.push((interest.stream, outcome));
            }
            let ends = task.interests.iter().filter_map(|known| known.until);
            next = next.into_iter().chain(ends).min();
        });
        self.interests_end = next;
        self.interests_left = true;
        self.reply(replies);
    }

    /// Tasks that no request waits for, or that took too long.
    pub(super) fn end_tasks(&mut self, now: Tick) {
        if std::mem::take(&mut self.interests_left) {
            let open = self.tasks.iter().filter(|(_, task)| !task.finished());
            let undesired = open.filter(|(_, task)| task.interests.is_empty());
            let undesired: Vec<TaskKey> = undesired.map(|(key, _)| key.clone()).collect();
            for key in undesired {
                self.abandon_call(&key);
                self.tasks.remove(&key);
            }
        }
        let late = |task: &Task| task.deadline_at().is_some_and(|at| at <= now);
        let late = self.tasks.active().filter(|(_, task)| late(task));
        let late: Vec<TaskKey> = late.map(|(key, _)| key.clone()).collect();
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
    /// an inspection interests nobody any more.
    pub(super) fn abandon_call(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        if let Some(id) = task.pulling() {
            let (image, turn) = (key.image.clone(), Turn::of(key, task));
            self.ending.insert(id, Ending { image, turn });
            self.calls.insert(id, Caller::Ending);
            self.replies.push(Command::CancelCall(id));
        } else if let State::Calling(id, phase) = &task.state {
            self.calls.remove(id);
            if *phase == Phase::Credentials {
                self.replies.push(Command::CancelCall(*id));
            }
        }
    }

    pub(super) fn finish(&mut self, key: &TaskKey, result: PullResult, now: Tick) {
        let there = matches!(result, PullResult::Present | PullResult::Pulled);
        if self.tasks.get(key).is_some_and(|task| task.attempts > 0) {
            self.registries.heard(key.registry(), &result);
        }
        let replies = self.tasks.change(key, |task| {
            let interests = std::mem::take(&mut task.interests);
            task.heard = interests.iter().any(|known| known.stream.is_some());
            let replies = interests
                .iter()
                .map(|known| (known.stream, outcome(task, known, result.clone(), now)));
            let replies = replies.collect();
            task.state = State::Finished(result, now.after(MEMORY));
            replies
        });
        self.reply(replies.unwrap_or_default());
        if there {
            // Other requests for the image, with other credentials or another token, may have it now.
            let others = self
                .tasks
                .of(&key.image)
                .filter(|(_, task)| !task.finished());
            let others: Vec<TaskKey> = others.map(|(key, _)| key.clone()).collect();
            for key in others {
                self.tasks.change(&key, Task::forget_look);
            }
        }
    }

    pub(super) fn forget(&mut self, now: Tick) {
        self.tasks.forget(now);
        self.intents.expire(now);
    }

    // === starts

    /// Names on which the runtime works for us. Neither a pull nor a removal of one may begin.
    fn busy(&self) -> BTreeSet<&str> {
        let ending = self.ending.values().map(|ending| &*ending.image);
        let pulls = self.tasks.active().filter(|(_, task)| task.holds_name());
        let pulls = pulls.map(|(key, _)| key.image.as_str());
        let held = self
            .removals
            .iter()
            .flat_map(|r| r.held.iter().map(String::as_str));
        ending.chain(pulls).chain(held).collect()
    }

    /// The runtime still works on a pull of such a name that was ended.
    pub(super) fn lets_go_of(&self, is: impl Fn(&str) -> bool) -> bool {
        self.ending.values().any(|ending| is(&ending.image))
    }

    pub(super) fn around<'a>(&self, full: Option<&'a str>) -> TaskContext<'a> {
        TaskContext {
            pins: self.facts.pins,
            shares: self.facts.peers == Support::Yes,
            full,
            providers: self.settings.credential_providers,
        }
    }

    /// Checks first: somebody waits for them.
    pub(super) fn start_looks(&mut self, now: Tick) {
        let checks = self.calls.values();
        let checks = checks.filter(|caller| matches!(caller, Caller::Check(..)));
        let tasks = self.tasks.active();
        let tasks = tasks.filter(|(_, task)| task.call().is_some() && !task.holds_slot());
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
        for key in self.next_looks(now, free) {
            if let Some((call, phase)) = self.tasks.get(&key).map(Task::inspect) {
                self.call_for(&key, call, phase);
            }
        }
    }

    fn next_looks(&self, now: Tick, most: usize) -> Vec<TaskKey> {
        let busy = OnceCell::new();
        let awaited = self.disk.awaited(now);
        let inspections = self.tasks.inspections().filter(|(key, task)| {
            let busy = || busy.get_or_init(|| self.busy()).contains(&*key.image);
            task.due(now) && !(awaited && task.pins()) && !busy()
        });
        inspections.take(most).map(|(key, _)| key.clone()).collect()
    }

    /// The next pull for which there is a place: highest priority first, then by turn.
    fn next_pull(&self, now: Tick) -> Option<(TaskKey, Turn)> {
        if !self.tasks.any_waits_for_slot() {
            return None;
        }
        let running = self.running(now);
        if !running.any_place() {
            return None;
        }
        let busy = OnceCell::new();
        let is_busy = |image: &str| busy.get_or_init(|| self.busy()).contains(image);
        for turns in self.tasks.slots() {
            let candidates = turns.filter_map(|(turn, tasks)| {
                if !running.place_for(turn) {
                    return None;
                }
                let registry = &turn.registry;
                if self.registries.on_probation(registry) && running.of_registry(registry) > 0 {
                    return None;
                }
                let (key, task) =
                    { tasks }.find(|(key, task)| task.due(now) && !is_busy(&key.image))?;
                let last = running.last_of_registry(registry);
                let served = &self.served;
                let order = (served.namespace(turn), last, served.turn(turn), task.age);
                Some((order, (key, turn)))
            });
            if let Some((_, (key, turn))) = candidates.min_by_key(|(order, _)| *order) {
                return Some((key.clone(), turn.clone()));
            }
        }
        None
    }

    fn running(&self, now: Tick) -> Running<'_> {
        let slots = self.tasks.active().filter(|(_, task)| task.holds_slot());
        let mut long = slots.clone().filter_map(|(_, task)| task.long_at());
        let ending = self.ending.values().map(|ending| &ending.turn);
        let ending = ending.map(|turn| (&*turn.registry, &*turn.cache));
        Running {
            most: self.settings.max_parallel_pulls.max(1),
            long: long.any(|at| at <= now),
            pulls: slots
                .map(|(key, task)| (key.registry(), &*task.cache))
                .chain(ending)
                .collect(),
        }
    }

    /// Something is about to begin for which it matters how full the disk is.
    pub(super) fn disk_matters(&self, now: Tick) -> bool {
        self.tasks
            .inspections()
            .next()
            .is_some_and(|(_, task)| task.pins())
            || self.next_pull(now).is_some()
    }

    pub(super) fn start_pulls(&mut self, now: Tick) {
        while !self.disk.awaited(now)
            && let Some((key, turn)) = self.next_pull(now)
        {
            if let Some(why) = self.full() {
                self.finish(&key, task::failed(failure::DISK_PRESSURE, &why), now);
                continue;
            }
            self.counter += 1;
            self.served.serve(turn, self.counter);
            let around = self.around(None);
            if let Some((call, phase)) = self.tasks.change(&key, |task| task.begin(now, around)) {
                self.call_for(&key, call, phase);
            }
        }
    }

    /// A pull has ended, and of which image it made a name is not known yet.
    pub(super) fn unverified(&self) -> bool {
        let mut tasks = self.tasks.active();
        tasks.any(|(_, task)| matches!(task.state, State::Calling(_, Phase::Verify)))
    }

    pub(super) fn start_removal(&mut self) {
        while let Some(removal) = self.removals.front() {
            if removal.call.is_some() {
                return;
            }
            if removal.at >= removal.items.len() || removal.stream.is_none() {
                self.removals.pop_front();
                continue;
            }
            let normal = removal.items[removal.at].normal();
            if !self
                .intents
                .stands(normal, removal.authority, Intent::Remove)
            {
                self.removed(RemoveResult::Superseded);
                continue;
            }
            let busy = self.busy();
            let mut names = removal.items.iter().map(removal::Item::normal);
            if names.any(|name| busy.contains(name))
                || self.lets_go_of(|name| removal.releasable.contains(name))
                || self.unverified()
            {
                // The runtime lets go of a pull that was ended for this removal, or has ended one that
                // may have named the same image.
                return;
            }
            let Some(removal) = self.removals.front_mut() else {
                return;
            };
            match removal.begin(&self.facts) {
                removal::AfterRemoval::Finish(result) => self.removed(result),
                removal::AfterRemoval::Call(call) => return self.call_for_removal(call),
                removal::AfterRemoval::Again | removal::AfterRemoval::Later(_) => return,
            }
        }
    }

    pub(super) fn call_for_removal(&mut self, call: Call) {
        let inspected = matches!(call, Call::Inspect(_)).then_some(self.now);
        let id = self.call(Caller::Removal, call);
        if let Some(removal) = self.removals.front_mut() {
            removal.call = Some(id);
            removal.inspected = inspected.or(removal.inspected);
        }
    }
}
