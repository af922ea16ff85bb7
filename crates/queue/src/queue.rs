//! The queue itself: who may do what, and what runs next.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use crate::{
    Answer, Authority, Call, CallId, Checked, Command, Event, PullOutcome, PullRequest, PullResult,
    RemoveOutcome, RemoveResult, Runtime, StreamId, Tick, classify,
    intent::{Intents, Wish},
    removal::{self, Removal, Step, normalized},
    task::{self, Interest, State, Task, TaskKey},
};

/// How long the end of a pull is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How long an interest of an older term lives on without being asked for again.
const TERM_GRACE: Duration = Duration::from_secs(60);

/// What the puller's flags say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pulls at a time.
    pub max_parallel_pulls: usize,
    /// Globs of image names that are never removed.
    pub protected_images: Vec<String>,
    /// How removals work here.
    pub runtime: Runtime,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_parallel_pulls: 2,
            protected_images: vec!["*/pause*".to_owned()],
            runtime: Runtime::Containerd,
        }
    }
}

#[derive(Debug)]
struct Check {
    stream: StreamId,
    names: Vec<String>,
    answers: Vec<Option<Checked>>,
}

#[derive(Debug)]
enum Caller {
    Task(TaskKey),
    Removal,
    Check(u64, usize),
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    term: u64,
    tasks: BTreeMap<TaskKey, Task>,
    /// The first is at hand.
    removals: VecDeque<Removal>,
    checks: BTreeMap<u64, Check>,
    calls: BTreeMap<CallId, Caller>,
    intents: Intents,
    /// Open outcomes by stream.
    open: BTreeMap<StreamId, usize>,
    replies: Vec<Command>,
    counter: u64,
}

impl Queue {
    /// An empty queue that has seen no term.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            term: 0,
            tasks: BTreeMap::new(),
            removals: VecDeque::new(),
            checks: BTreeMap::new(),
            calls: BTreeMap::new(),
            intents: Intents::default(),
            open: BTreeMap::new(),
            replies: Vec::new(),
            counter: 0,
        }
    }

    /// The runtime is known now, or is another.
    pub fn set_runtime(&mut self, runtime: Runtime) {
        self.settings.runtime = runtime;
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Tick, event: Event) {
        match event {
            Event::Pull(stream, authority, images) => {
                if self.admit(stream, authority, now) {
                    self.take_pulls(stream, authority, images, now);
                }
            }
            Event::Remove {
                stream,
                authority,
                references,
                wanted,
                releasable,
            } => {
                if self.admit(stream, authority, now) {
                    self.take_removal(stream, authority, references, &wanted, &releasable, now);
                }
            }
            Event::Check(stream, names) => self.take_check(stream, names),
            Event::Cancel(stream, authority, cancels) => {
                if self.admit(stream, authority, now) {
                    self.cancel(stream, authority, cancels, now);
                }
            }
            Event::Closed(stream) => self.closed(stream),
            Event::Answered(call, answer) => self.answered(call, answer, now),
        }
    }

    /// Decides what runs next.
    pub fn poll(&mut self, now: Tick, out: &mut Vec<Command>) {
        self.pass_deadlines(now, out);
        self.start_checks(out);
        self.start_pulls(now, out);
        self.start_removal(out);
        out.append(&mut self.replies);
        self.expire(now);
    }

    /// When [`Queue::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        let tasks = self.tasks.values().flat_map(|task| {
            let waiting = match task.state {
                State::Waiting(at) => Some(at).filter(|at| *at > Tick(0)),
                State::Finished(_, at) => Some(at),
                _ => None,
            };
            let interests = task
                .interests
                .iter()
                .filter_map(|interest| interest.until)
                .min();
            [waiting, task.deadline_at(), task.long_at(), interests]
                .into_iter()
                .flatten()
        });
        tasks.min()
    }

    /// Tasks that wait and that run.
    pub fn depth(&self) -> (usize, usize) {
        let waiting = self
            .tasks
            .values()
            .filter(|t| matches!(t.state, State::Waiting(_)))
            .count();
        let running = self.tasks.values().filter(|t| t.call().is_some()).count();
        (waiting, running)
    }

    // === requests

    /// Refuses leaders that have been replaced.
    fn admit(&mut self, stream: StreamId, authority: Authority, now: Tick) -> bool {
        if authority.term < self.term {
            self.replies.push(Command::Refused(stream, self.term));
            return false;
        }
        if authority.term > self.term {
            self.term = authority.term;
            for interest in self.tasks.values_mut().flat_map(|task| &mut task.interests) {
                interest.until.get_or_insert(now.after(TERM_GRACE));
            }
        }
        true
    }

    fn take_pulls(
        &mut self,
        stream: StreamId,
        authority: Authority,
        images: Vec<PullRequest>,
        now: Tick,
    ) {
        self.open.insert(stream, images.len());
        let mut attached = 0;
        let mut outcomes = Vec::new();
        for (index, request) in images.into_iter().enumerate() {
            let at_once = |result: PullResult| PullOutcome {
                index,
                result,
                image: None,
                attempts: 0,
                took: Duration::ZERO,
            };
            let image = match ImageRef::parse(&request.reference) {
                Ok(image) => image,
                Err(error) => {
                    let result = task::failed(failure::INVALID_IMAGE_NAME, &error.to_string());
                    outcomes.push(at_once(result));
                    continue;
                }
            };
            let key = TaskKey {
                image: image.normalized(),
                freshness: request.freshness.clone(),
                credentials: request.credential_hash,
            };
            if !self.intents.note(&key.image, authority, Wish::Pull, now) {
                outcomes.push(at_once(PullResult::Superseded));
                continue;
            }
            self.counter += 1;
            let interest = Interest {
                authority,
                reference: request.reference.clone(),
                stream: Some(stream),
                index,
                until: None,
            };
            if let Some(task) = self.tasks.get_mut(&key) {
                attached += 1;
                task.share(&request, authority);
                if let State::Finished(result, _) = &task.state {
                    outcomes.push(outcome(task, &interest, result.clone(), now));
                } else {
                    task.interests.push(interest);
                }
                continue;
            }
            let mut task = Task::new(image.runtime_name(), &request, authority, self.counter);
            task.interests.push(interest);
            self.tasks.insert(key, task);
        }
        self.replies.push(Command::Accepted(stream, attached));
        self.reply_pulled(stream, outcomes);
        self.done_if_empty(stream);
    }

    fn take_removal(
        &mut self,
        stream: StreamId,
        authority: Authority,
        references: Vec<String>,
        wanted: &[String],
        releasable: &[String],
        now: Tick,
    ) {
        self.open.insert(stream, references.len());
        let names: Vec<_> = references
            .into_iter()
            .map(|name| {
                let normal = normalized(&name);
                (name, normal)
            })
            .collect();
        for (_, normal) in &names {
            // Where a newer pull stands, the removal finds out when its turn comes.
            self.intents.note(normal, authority, Wish::Remove, now);
        }
        self.removals.push_back(Removal {
            stream: Some(stream),
            authority,
            names,
            wanted: wanted.iter().map(|name| normalized(name)).collect(),
            releasable: releasable.iter().map(|name| normalized(name)).collect(),
            at: 0,
            step: Step::Begin,
        });
        self.done_if_empty(stream);
    }

    fn take_check(&mut self, stream: StreamId, names: Vec<String>) {
        self.counter += 1;
        let answers = vec![None; names.len()];
        self.checks.insert(
            self.counter,
            Check {
                stream,
                names,
                answers,
            },
        );
    }

    fn cancel(
        &mut self,
        stream: StreamId,
        authority: Authority,
        cancels: Vec<(u64, Vec<String>)>,
        now: Tick,
    ) {
        let mut ended = Vec::new();
        for (batch, names) in cancels {
            let names: BTreeSet<String> = names.into_iter().collect();
            for task in self.tasks.values_mut() {
                for interest in task.lose_interest(authority.term, batch, &names) {
                    ended.push(
                        outcome(task, &interest, PullResult::Cancelled, now).with(interest.stream),
                    );
                }
            }
        }
        let count = u32::try_from(ended.len()).unwrap_or(u32::MAX);
        for (to, outcome) in ended {
            self.reply_one(to, outcome);
        }
        self.replies.push(Command::Cancelled(stream, count));
    }

    fn closed(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        for interest in self.tasks.values_mut().flat_map(|task| &mut task.interests) {
            if interest.stream == Some(stream) {
                interest.stream = None;
            }
        }
        for removal in &mut self.removals {
            if removal.stream == Some(stream) {
                removal.stream = None;
            }
        }
        self.checks.retain(|_, check| check.stream != stream);
    }

    // === replies

    fn reply_pulled(&mut self, stream: StreamId, outcomes: Vec<PullOutcome>) {
        if outcomes.is_empty() {
            return;
        }
        if let Some(open) = self.open.get_mut(&stream) {
            *open = open.saturating_sub(outcomes.len());
            self.replies.push(Command::Pulled(stream, outcomes));
        }
    }

    fn reply_one(&mut self, stream: Option<StreamId>, outcome: PullOutcome) {
        if let Some(stream) = stream {
            self.reply_pulled(stream, vec![outcome]);
            self.done_if_empty(stream);
        }
    }

    fn done_if_empty(&mut self, stream: StreamId) {
        if self.open.get(&stream) == Some(&0) {
            self.open.remove(&stream);
            self.replies.push(Command::Done(stream));
        }
    }

    // === what runs

    fn call(&mut self, caller: Caller) -> CallId {
        self.counter += 1;
        let id = CallId(self.counter);
        self.calls.insert(id, caller);
        id
    }

    fn start_checks(&mut self, out: &mut Vec<Command>) {
        let mut asked = Vec::new();
        for (at, check) in &mut self.checks {
            for (index, answer) in check.answers.iter_mut().enumerate() {
                if answer.is_none() {
                    // A place holder until the runtime has answered.
                    *answer = Some(Checked::Queued);
                    asked.push((*at, index, check.names[index].clone()));
                }
            }
        }
        for (at, index, name) in asked {
            let id = self.call(Caller::Check(at, index));
            let name = ImageRef::parse(&name).map_or(name, |image| image.runtime_name());
            out.push(Command::Call(id, Call::Inspect(name)));
        }
        let empty: Vec<u64> = self
            .checks
            .iter()
            .filter(|(_, c)| c.names.is_empty())
            .map(|(at, _)| *at)
            .collect();
        for at in empty {
            self.finish_check(at);
        }
    }

    /// Slots are for pulls that run; one more opens for tasks never tried beside a long one.
    fn start_pulls(&mut self, now: Tick, out: &mut Vec<Command>) {
        loop {
            let running: Vec<&Task> = self
                .tasks
                .values()
                .filter(|task| task.call().is_some())
                .collect();
            let busy: BTreeSet<&str> = self.running_names();
            let any_long = running.iter().any(|task| task.long(now));
            let full = running.len() >= self.settings.max_parallel_pulls;
            let extra = running.len() == self.settings.max_parallel_pulls && any_long;
            if full && !extra {
                return;
            }
            let next = self
                .tasks
                .iter()
                .filter(|(_, task)| matches!(task.state, State::Waiting(at) if at <= now))
                .filter(|(key, task)| {
                    !busy.contains(key.image.as_str()) && (!full || task.started.is_none())
                })
                .min_by_key(|(_, task)| (std::cmp::Reverse(task.priority), task.age))
                .map(|(key, _)| key.clone());
            let Some(key) = next else { return };
            self.begin(&key, now, out);
        }
    }

    /// Images that the runtime works on: one pull or one removal at a time.
    fn running_names(&self) -> BTreeSet<&str> {
        let pulls = self.tasks.iter().filter(|(_, task)| task.call().is_some());
        let mut names: BTreeSet<&str> = pulls.map(|(key, _)| key.image.as_str()).collect();
        if let Some(removal) = self.removals.front()
            && removal.call().is_some()
        {
            names.insert(&removal.names[removal.at].1);
        }
        names
    }

    fn begin(&mut self, key: &TaskKey, now: Tick, out: &mut Vec<Command>) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        if !self.intents.stands(&key.image, task.newest, Wish::Pull) {
            self.finish(key, &PullResult::Superseded, now);
            return;
        }
        let id = self.call(Caller::Task(key.clone()));
        if let Some(task) = self.tasks.get_mut(key) {
            let call = task.begin(now);
            task.calling(id, &call);
            out.push(Command::Call(id, call));
        }
    }

    fn start_removal(&mut self, out: &mut Vec<Command>) {
        while let Some(removal) = self.removals.front() {
            if removal.at >= removal.names.len() {
                self.removals.pop_front();
                continue;
            }
            if removal.call().is_some() {
                return;
            }
            let normal = removal.names[removal.at].1.clone();
            let authority = removal.authority;
            if !self.intents.stands(&normal, authority, Wish::Remove) {
                self.removed(RemoveResult::Superseded);
                continue;
            }
            if self.running_names().contains(normal.as_str()) {
                // A pull of it runs: its turn comes when that has ended.
                return;
            }
            let id = self.call(Caller::Removal);
            if let Some(removal) = self.removals.front_mut() {
                removal.step = Step::Looking(id);
                out.push(Command::Call(id, Call::Inspect(removal.runtime_name())));
            }
            return;
        }
    }

    fn removed(&mut self, result: RemoveResult) {
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        let outcome = RemoveOutcome {
            index: removal.at,
            result,
        };
        removal.at += 1;
        removal.step = Step::Begin;
        let Some(stream) = removal.stream else { return };
        if let Some(open) = self.open.get_mut(&stream) {
            *open = open.saturating_sub(1);
            self.replies.push(Command::Removed(stream, vec![outcome]));
            self.done_if_empty(stream);
        }
    }

    fn answered(&mut self, id: CallId, answer: Answer, now: Tick) {
        match self.calls.remove(&id) {
            Some(Caller::Task(key)) => self.task_answered(&key, answer, now),
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
            task::Next::Call(call) => {
                let newest = task.newest;
                if matches!(call, Call::Pull(..))
                    && !self.intents.stands(&key.image, newest, Wish::Pull)
                {
                    self.finish(key, &PullResult::Superseded, now);
                    return;
                }
                let id = self.call(Caller::Task(key.clone()));
                if let Some(task) = self.tasks.get_mut(key) {
                    task.calling(id, &call);
                }
                self.replies.push(Command::Call(id, call));
            }
            task::Next::Again(at) => task.state = State::Waiting(at),
            task::Next::Finish(result) => self.finish(key, &result, now),
        }
    }

    fn removal_answered(&mut self, answer: Answer) {
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        match removal.answered(
            answer,
            self.settings.runtime,
            &self.settings.protected_images,
        ) {
            removal::Next::Finish(result) => self.removed(result),
            removal::Next::Call(call) => {
                let normal = removal.names[removal.at].1.clone();
                let authority = removal.authority;
                if matches!(call, Call::Remove(_))
                    && !self.intents.stands(&normal, authority, Wish::Remove)
                {
                    self.removed(RemoveResult::Superseded);
                    return;
                }
                let id = self.call(Caller::Removal);
                if let Some(removal) = self.removals.front_mut() {
                    removal.step = match std::mem::replace(&mut removal.step, Step::Begin) {
                        Step::Asking(_, image) => Step::Asking(id, image),
                        Step::Removing(_) => Step::Removing(id),
                        _ => Step::Verifying(id),
                    };
                }
                self.replies.push(Command::Call(id, call));
            }
        }
    }

    fn check_answered(&mut self, at: u64, index: usize, answer: Answer) {
        let Some(check) = self.checks.get_mut(&at) else {
            return;
        };
        let normal = normalized(&check.names[index]);
        let saw = match answer {
            Answer::Inspected(Ok(Some(image))) => Checked::Present(image),
            Answer::Inspected(Ok(None)) => self
                .tasks
                .iter()
                .filter(|(key, _)| key.image == normal)
                .find_map(|(_, task)| match task.state {
                    State::Waiting(_) => Some(Checked::Queued),
                    State::Finished(..) => None,
                    _ => Some(Checked::Pulling),
                })
                .unwrap_or(Checked::Absent),
            Answer::Inspected(Err(error)) => Checked::Failed {
                reason: failure::IMAGE_INSPECT_ERROR.to_owned(),
                message: classify::cut(&error.message),
            },
            _ => Checked::Failed {
                reason: failure::IMAGE_INSPECT_ERROR.to_owned(),
                message: "the runtime answered another question".to_owned(),
            },
        };
        check.answers[index] = Some(saw);
        let waiting = self
            .calls
            .values()
            .any(|caller| matches!(caller, Caller::Check(other, _) if *other == at));
        if !waiting {
            self.finish_check(at);
        }
    }

    fn finish_check(&mut self, at: u64) {
        if let Some(check) = self.checks.remove(&at) {
            let answers = check
                .answers
                .into_iter()
                .map(|answer| answer.unwrap_or(Checked::Absent))
                .collect();
            self.replies
                .push(Command::Checked(check.stream, answers, self.term));
            self.replies.push(Command::Done(check.stream));
        }
    }

    fn finish(&mut self, key: &TaskKey, result: &PullResult, now: Tick) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.state = State::Finished(result.clone(), now.after(MEMORY));
        let interests = std::mem::take(&mut task.interests);
        let outcomes: Vec<_> = interests
            .iter()
            .map(|i| outcome(task, i, result.clone(), now).with(i.stream))
            .collect();
        for (to, outcome) in outcomes {
            self.reply_one(to, outcome);
        }
        // What did not end by itself is no answer to a later request.
        if matches!(result, PullResult::Cancelled | PullResult::Superseded) {
            self.tasks.remove(key);
        }
    }

    fn pass_deadlines(&mut self, now: Tick, out: &mut Vec<Command>) {
        let mut unwanted = Vec::new();
        for (key, task) in &mut self.tasks {
            task.interests
                .retain(|interest| interest.until.is_none_or(|until| until > now));
            let wanted = !task.interests.is_empty();
            let late = task.deadline_at().is_some_and(|at| at <= now);
            match (&task.state, task.call()) {
                (State::Finished(..) | State::Ending(..), _) => {}
                (_, None) if !wanted => unwanted.push(key.clone()),
                (_, Some(call)) if !wanted => {
                    task.state = State::Ending(call, PullResult::Cancelled);
                    out.push(Command::CancelCall(call));
                }
                (_, Some(call)) if late => {
                    let result = task::failed(
                        failure::DEADLINE_EXCEEDED,
                        "the pull did not end within its deadline: set pullDeadline higher",
                    );
                    task.state = State::Ending(call, result);
                    out.push(Command::CancelCall(call));
                }
                _ => {}
            }
        }
        for key in unwanted {
            self.tasks.remove(&key);
        }
    }

    fn expire(&mut self, now: Tick) {
        self.tasks
            .retain(|_, task| !matches!(task.state, State::Finished(_, until) if until <= now));
        self.intents.expire(now);
    }
}

fn outcome(task: &Task, interest: &Interest, result: PullResult, now: Tick) -> PullOutcome {
    PullOutcome {
        index: interest.index,
        result,
        image: task.image.clone(),
        attempts: task.attempts,
        took: Duration::from_millis(task.started.map_or(0, |at| now.0.saturating_sub(at.0))),
    }
}

impl PullOutcome {
    fn with(self, stream: Option<StreamId>) -> (Option<StreamId>, Self) {
        (stream, self)
    }
}
