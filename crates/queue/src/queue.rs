//! The queue itself: who asks for what, and who is told. What runs next is in `run`.

mod answer;
mod check;
mod index;
mod registries;
mod run;
mod view;
mod watch;

pub use view::{PullRow, PullState, Totals};

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use crate::{
    Authority, CallId, Command, CredentialId, Event, PinResult, PullOutcome, PullRequest,
    PullResult, Runtime, RuntimeFacts, StreamId, Support, Tick,
    intent::{Intents, Wish},
    removal::{self, Item, Removal, normalized},
    task::{self, Interest, State, Task, TaskKey},
};
use check::Check;
use index::{Tasks, Turn};
use registries::Registries;
use watch::DiskLook;

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
    /// Our own images, which are never removed.
    pub own_images: Vec<String>,
    /// How removals work here, until [`Event::Runtime`] says more.
    pub runtime: Runtime,
    /// Share of the disk in use, in percent, from which on nothing is pulled or pinned; `None`: the
    /// disk is not looked at.
    pub disk_watermark: Option<u8>,
    /// A pull in which too few bytes arrive for this time is ended, where the runtime reports them.
    pub no_progress: Duration,
    /// The node has credential providers.
    pub credential_providers: bool,
    /// Images of all requests together that are kept at a time, some 1 KiB each. A request that
    /// would exceed it is refused as a whole.
    pub most_open: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_parallel_pulls: 2,
            protected_images: vec!["*/pause*".to_owned()],
            own_images: Vec::new(),
            runtime: Runtime::Containerd,
            disk_watermark: None,
            no_progress: Duration::from_secs(120),
            credential_providers: false,
            most_open: 16_384,
        }
    }
}

#[derive(Debug)]
enum Caller {
    Task(TaskKey),
    /// Nobody: the pull was ended.
    Ending,
    Removal,
    /// One name of a check.
    Check(u64, usize),
    /// The pins of a check.
    CheckPins(u64),
    Disk,
    Progress,
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    facts: RuntimeFacts,
    disk: DiskLook,
    term: u64,
    tasks: Tasks,
    /// The first is at hand.
    removals: VecDeque<Removal>,
    checks: BTreeMap<u64, Check>,
    calls: BTreeMap<CallId, Caller>,
    /// Pull calls that were ended and whose answers are awaited; the names they work on.
    ending: BTreeMap<CallId, String>,
    intents: Intents,
    /// Open outcomes by stream.
    open: BTreeMap<StreamId, usize>,
    looking_at_bytes: bool,
    /// When the first interest of an older term ends.
    interests_end: Option<Tick>,
    /// Some task may have lost its last interest.
    interests_left: bool,
    replies: Vec<Command>,
    /// Calls that wait until the removal at hand has ended.
    after_removal: Vec<Command>,
    counter: u64,
    polled: Tick,
    /// When whose turn was last, by `counter`.
    served: BTreeMap<Turn, u64>,
    registries: Registries,
}

impl Queue {
    /// An empty queue that has seen no term.
    pub fn new(settings: Settings) -> Self {
        let facts = RuntimeFacts {
            runtime: settings.runtime,
            ..RuntimeFacts::default()
        };
        Self {
            settings,
            facts,
            disk: DiskLook::default(),
            term: 0,
            tasks: Tasks::default(),
            removals: VecDeque::new(),
            checks: BTreeMap::new(),
            calls: BTreeMap::new(),
            ending: BTreeMap::new(),
            intents: Intents::default(),
            open: BTreeMap::new(),
            looking_at_bytes: false,
            interests_end: None,
            interests_left: false,
            replies: Vec::new(),
            after_removal: Vec::new(),
            counter: 0,
            polled: Tick(0),
            served: BTreeMap::new(),
            registries: Registries::default(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Tick, event: Event) {
        match event {
            Event::Pull(stream, authority, images) => {
                if self.admit(stream, authority, now) && self.has_room(stream, images.len()) {
                    self.take_pulls(stream, authority, images, now);
                }
            }
            Event::Remove {
                stream,
                authority,
                references,
                wanted,
                releasable,
                unpin_ours,
                unpin,
            } => {
                let items = references.len() + unpin.len();
                let size = removal::size(items, wanted.iter().chain(&releasable));
                if self.admit(stream, authority, now) && self.has_room(stream, size) {
                    let names = references.into_iter().map(|name| {
                        let normal = normalized(&name);
                        Item::Name(name, normal)
                    });
                    let items = names.chain(unpin.into_iter().map(Item::Pin)).collect();
                    let set = |names: Vec<String>| names.iter().map(|n| normalized(n)).collect();
                    let mut removal = Removal::new(stream, authority, items);
                    removal.wanted = set(wanted);
                    removal.releasable = set(releasable);
                    removal.unpin_ours = unpin_ours;
                    self.take_removal(stream, removal, now);
                }
            }
            Event::Check(stream, names) => {
                // A node whose queue is full is looked at none the less.
                let checks: usize = self.checks.values().map(Check::size).sum();
                if checks + names.len() <= self.settings.most_open {
                    self.take_check(stream, names, now);
                } else {
                    self.replies.push(Command::Overloaded(stream));
                }
            }
            Event::Cancel(stream, authority, cancels) => {
                if self.admit(stream, authority, now) {
                    self.cancel(stream, authority, cancels, now);
                }
            }
            Event::Closed(stream) => self.closed(stream),
            Event::Answered(call, answer) => self.answered(call, answer, now),
            Event::Runtime(facts) => self.facts = facts,
        }
    }

    /// Decides what runs next.
    pub fn poll(&mut self, now: Tick, out: &mut Vec<Command>) {
        self.polled = now;
        self.end_interests(now);
        self.end_tasks(now);
        self.look_at_disk(now);
        self.start_removal();
        self.start_looks(now);
        self.start_pulls(now);
        self.look_at_bytes(now);
        self.forget(now);
        out.append(&mut self.replies);
    }

    /// When [`Queue::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        let tasks = self.tasks.active().flat_map(|(_, task)| {
            let waiting = match task.state {
                State::Waiting(at) => Some(at),
                _ => None,
            };
            let bytes = task.watch_at().filter(|_| self.facts.progress);
            [waiting, task.deadline_at(), task.long_at(), bytes]
        });
        let ends = [
            self.interests_end,
            self.tasks.next_end(),
            self.intents.next_expiry(),
        ];
        tasks
            .chain(ends)
            .flatten()
            // What was due at the last poll waits for something else than time: a slot, an answer.
            .filter(|at| *at > self.polled)
            .min()
    }

    /// Nothing is under way and nothing waits.
    pub fn idle(&self) -> bool {
        !self.tasks.any_open() && self.calls.is_empty() && self.removals.is_empty()
    }

    /// Tasks that wait and that run.
    pub fn depth(&self) -> (usize, usize) {
        let open = self.tasks.iter().filter(|(_, task)| !task.finished());
        let running = self
            .tasks
            .active()
            .filter(|(_, task)| task.call().is_some());
        let running = running.count();
        (open.count() - running, running + self.ending.len())
    }

    /// Whether images can be pinned here, as far as that was tried.
    pub fn pins(&self) -> Support {
        self.facts.pins
    }

    /// Whether a pull may still need this credential.
    pub fn needs(&self, credential: CredentialId) -> bool {
        let mut open = self.tasks.iter().filter(|(_, task)| !task.finished());
        open.any(|(_, task)| task.credentials.contains(&credential))
    }

    /// How many things are kept in memory.
    pub fn remembers(&self) -> usize {
        let work = self.tasks.len() + self.removals.len() + self.checks.len() + self.calls.len();
        work + self.ending.len() + self.open.len() + self.intents.len()
    }

    // === requests

    /// Refuses what would take too much memory.
    fn has_room(&mut self, stream: StreamId, more: usize) -> bool {
        let most = self.settings.most_open;
        let mut load = self.load() + more;
        // What is only remembered makes room.
        while load > most && self.tasks.forget_oldest() {
            load -= 1;
        }
        let refused = load > most;
        if refused {
            self.replies.push(Command::Overloaded(stream));
        }
        !refused
    }

    /// Images of requests that are kept in memory. Checks have as much room of their own.
    fn load(&self) -> usize {
        let tasks = self
            .tasks
            .iter()
            .map(|(_, task)| task.interests.len().max(1));
        let removals = self.removals.iter().map(Removal::size);
        tasks.chain(removals).sum()
    }

    /// Refuses leaders that have been replaced.
    fn admit(&mut self, stream: StreamId, authority: Authority, now: Tick) -> bool {
        if authority.term < self.term {
            self.replies.push(Command::Refused(stream, self.term));
            return false;
        }
        if authority.term > self.term {
            self.term = authority.term;
            let end = now.after(TERM_GRACE);
            for interest in self
                .tasks
                .interests()
                .flat_map(|(_, task)| &mut task.interests)
            {
                interest.until.get_or_insert(end);
                self.interests_end.get_or_insert(end);
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
        for (index, mut request) in images.into_iter().enumerate() {
            if request.cache.is_empty() {
                request.cache = format!("batch {}", authority.batch);
            }
            let at_once = |result: PullResult| PullOutcome {
                index,
                result,
                image: None,
                pin: PinResult::NotAsked,
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
            let mut task = Task::new(
                image.runtime_name(),
                &request,
                self.settings.no_progress,
                self.counter,
            );
            match self.tasks.get(&key) {
                Some(known) if !known.finished() => {
                    attached += 1;
                    self.tasks
                        .change(&key, |known| known.share(&request, interest));
                    continue;
                }
                Some(known) => match &known.state {
                    // A failure that nobody heard of is told once; one that was told is what the
                    // controller waited to try again.
                    State::Finished(result @ PullResult::Failed { .. }, _) if !known.heard => {
                        attached += 1;
                        outcomes.push(outcome(known, &interest, result.clone(), now));
                        self.tasks.hear(&key);
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
            self.tasks.insert(&key, task);
        }
        self.replies.push(Command::Accepted(stream, attached));
        self.reply_pulled(stream, outcomes);
        self.done_if_empty(stream);
    }

    fn take_removal(&mut self, stream: StreamId, removal: Removal, now: Tick) {
        self.open.insert(stream, removal.items.len());
        for item in &removal.items {
            // Where a newer pull stands, the removal finds out when its turn comes.
            let stands = self
                .intents
                .note(item.normal(), removal.authority, Wish::Remove, now);
            if let Item::Name(_, normal) = item
                && stands
            {
                self.supersede(normal, removal.authority, now);
            }
        }
        self.removals.push_back(removal);
        self.done_if_empty(stream);
    }

    /// A newer removal ends pulls of its name at once, also those that run.
    fn supersede(&mut self, image: &str, removal: Authority, now: Tick) {
        let keys: Vec<TaskKey> = self.tasks.of(image).map(|(key, _)| key.clone()).collect();
        let mut told = Vec::new();
        for key in keys {
            self.tasks.change(&key, |task| {
                for interest in task.supersede(removal) {
                    let outcome = outcome(task, &interest, PullResult::Superseded, now);
                    told.push((interest.stream, outcome));
                }
            });
            if self.tasks.get(&key).is_some_and(Task::finished) {
                self.tasks.remove(&key);
            }
        }
        self.interests_left = true;
        self.tell(told);
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
            for (_, task) in self.tasks.interests() {
                for interest in task.cancel(authority.term, batch, &names) {
                    let outcome = outcome(task, &interest, PullResult::Cancelled, now);
                    told.push((interest.stream, outcome));
                }
            }
        }
        self.interests_left = true;
        let count = u32::try_from(told.len()).unwrap_or(u32::MAX);
        self.tell(told);
        self.replies.push(Command::Cancelled(stream, count));
    }

    fn closed(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        for interest in self
            .tasks
            .interests()
            .flat_map(|(_, task)| &mut task.interests)
        {
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
        pin: task.pin.clone(),
        attempts: task.attempts,
        took: Duration::from_millis(task.started.map_or(0, |at| now.0.saturating_sub(at.0))),
    }
}
