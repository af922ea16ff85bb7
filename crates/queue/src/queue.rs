//! The queue itself: who asks for what, and who is told. What runs next is in `run`.

mod run;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use crate::{
    Authority, CallId, Checked, Command, CredentialId, Event, PullOutcome, PullRequest, PullResult,
    Runtime, StreamId, Tick,
    intent::{Intents, Wish},
    removal::{Removal, Step, normalized},
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
    /// Of the names that the runtime was asked about.
    asked: usize,
    answers: BTreeMap<usize, Checked>,
}

#[derive(Debug)]
enum Caller {
    Task(TaskKey),
    /// Nobody: the pull was ended.
    Ending,
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
    /// Pull calls that were ended and whose answers are awaited; the names they work on.
    ending: BTreeMap<CallId, String>,
    intents: Intents,
    /// Open outcomes by stream.
    open: BTreeMap<StreamId, usize>,
    replies: Vec<Command>,
    counter: u64,
    polled: Tick,
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
            ending: BTreeMap::new(),
            intents: Intents::default(),
            open: BTreeMap::new(),
            replies: Vec::new(),
            counter: 0,
            polled: Tick(0),
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
        self.polled = now;
        self.end_interests(now);
        self.end_tasks(now);
        self.start_removal();
        self.start_looks(now);
        self.start_pulls(now);
        self.forget(now);
        out.append(&mut self.replies);
    }

    /// When [`Queue::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        let tasks = self.tasks.values().flat_map(|task| {
            let waiting = match task.state {
                State::Waiting(at) | State::Finished(_, at) => Some(at),
                _ => None,
            };
            let interests = task.interests.iter().filter_map(|known| known.until).min();
            [waiting, task.deadline_at(), task.long_at(), interests]
        });
        tasks
            .chain([self.intents.next_expiry()])
            .flatten()
            // What was due at the last poll waits for something else than time: a slot, an answer.
            .filter(|at| *at > self.polled)
            .min()
    }

    /// Tasks that wait and that run.
    pub fn depth(&self) -> (usize, usize) {
        let open = self.tasks.values().filter(|task| !task.finished());
        let (running, waiting): (Vec<&Task>, Vec<&Task>) =
            open.partition(|task| task.call().is_some());
        (waiting.len(), running.len() + self.ending.len())
    }

    /// Whether a pull may still need this credential.
    pub fn needs(&self, credential: CredentialId) -> bool {
        let mut open = self.tasks.values().filter(|task| !task.finished());
        open.any(|task| task.credentials.contains(&credential))
    }

    /// Everything that is kept in memory.
    #[cfg(test)]
    pub(crate) fn remembers(&self) -> usize {
        let work = self.tasks.len() + self.removals.len() + self.checks.len() + self.calls.len();
        work + self.ending.len() + self.open.len() + self.intents.len()
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
                policy: request.policy,
                freshness: request.freshness.clone(),
                credentials: request.credential_hash,
            };
            if !self.intents.note(&key.image, authority, Wish::Pull, now) {
                outcomes.push(at_once(PullResult::Superseded));
                continue;
            }
            let interest = Interest {
                authority,
                reference: request.reference.clone(),
                stream: Some(stream),
                index,
                until: None,
            };
            self.counter += 1;
            let mut task = Task::new(image.runtime_name(), &request, self.counter);
            match self.tasks.get_mut(&key) {
                Some(known) if !known.finished() => {
                    attached += 1;
                    known.share(&request, interest);
                    continue;
                }
                Some(known) => match &known.state {
                    // A failure that nobody heard of is told once; one that was told is what the
                    // controller waited to try again.
                    State::Finished(result @ PullResult::Failed { .. }, _) if !known.heard => {
                        attached += 1;
                        outcomes.push(outcome(known, &interest, result.clone(), now));
                        known.heard = true;
                        continue;
                    }
                    // Done already, if garbage collection has not taken it since.
                    State::Finished(PullResult::Pulled, _) => {
                        attached += 1;
                        task = task.remembering(!key.freshness.is_empty());
                    }
                    _ => {}
                },
                None => {}
            }
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
            if self.intents.note(normal, authority, Wish::Remove, now) {
                self.supersede(normal, authority, now);
            }
        }
        self.removals.push_back(Removal {
            stream: Some(stream),
            authority,
            names,
            wanted: wanted.iter().map(|name| normalized(name)).collect(),
            releasable: releasable.iter().map(|name| normalized(name)).collect(),
            at: 0,
            step: Step::Begin,
            held: BTreeSet::new(),
        });
        self.done_if_empty(stream);
    }

    /// A newer removal ends pulls of its name at once, also those that run.
    fn supersede(&mut self, image: &str, removal: Authority, now: Tick) {
        let mut told = Vec::new();
        for (key, task) in &mut self.tasks {
            if key.image == image {
                for interest in task.supersede(removal) {
                    let outcome = outcome(task, &interest, PullResult::Superseded, now);
                    told.push((interest.stream, outcome));
                }
            }
        }
        self.tasks
            .retain(|key, task| key.image != image || !task.finished());
        self.tell(told);
    }

    fn take_check(&mut self, stream: StreamId, names: Vec<String>) {
        self.counter += 1;
        let check = Check {
            stream,
            names,
            asked: 0,
            answers: BTreeMap::new(),
        };
        self.checks.insert(self.counter, check);
        self.finish_check(self.counter);
    }

    fn cancel(
        &mut self,
        stream: StreamId,
        authority: Authority,
        cancels: Vec<(u64, Vec<String>)>,
        now: Tick,
    ) {
        let mut told = Vec::new();
        for (batch, names) in cancels {
            let names: BTreeSet<String> = names.into_iter().collect();
            for task in self.tasks.values_mut() {
                for interest in task.cancel(authority.term, batch, &names) {
                    let outcome = outcome(task, &interest, PullResult::Cancelled, now);
                    told.push((interest.stream, outcome));
                }
            }
        }
        let count = u32::try_from(told.len()).unwrap_or(u32::MAX);
        self.tell(told);
        self.replies.push(Command::Cancelled(stream, count));
    }

    fn closed(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        for interest in self.tasks.values_mut().flat_map(|task| &mut task.interests) {
            if interest.stream == Some(stream) {
                interest.stream = None;
            }
        }
        // Nobody waits for what is left of a removal; the controller asks again for what it owes.
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

    fn tell(&mut self, outcomes: Vec<(Option<StreamId>, PullOutcome)>) {
        let mut streams: BTreeMap<StreamId, Vec<PullOutcome>> = BTreeMap::new();
        for (stream, outcome) in outcomes {
            if let Some(stream) = stream {
                streams.entry(stream).or_default().push(outcome);
            }
        }
        for (stream, outcomes) in streams {
            self.reply_pulled(stream, outcomes);
            self.done_if_empty(stream);
        }
    }

    fn done_if_empty(&mut self, stream: StreamId) {
        if self.open.get(&stream) == Some(&0) {
            self.open.remove(&stream);
            self.replies.push(Command::Done(stream));
        }
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
