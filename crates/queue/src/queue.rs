//! The queue itself: who asks for what, and who gets the replies. What runs next is in `run`.

mod answer;
mod check;
mod index;
mod places;
mod registries;
mod requests;
mod run;
mod view;
mod watch;

pub use view::{PullRow, PullState, Totals};

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    CallId, Command, CredentialId, Event, PullOutcome, PullResult, Runtime, RuntimeFacts, StreamId,
    Support, Tick,
    intent::Intents,
    removal::{self, Item, Removal, normalized},
    task::{Interest, State, Task, TaskKey},
};
use check::Check;
use index::{Tasks, Turn};
use places::Served;
use registries::Registries;
use watch::DiskObservation;

/// How long the end of a pull is remembered.
const MEMORY: Duration = Duration::from_secs(600);

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
    /// disk is not observed.
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
    disk: DiskObservation,
    term: u64,
    tasks: Tasks,
    /// The first is at hand.
    removals: VecDeque<Removal>,
    checks: BTreeMap<u64, Check>,
    calls: BTreeMap<CallId, Caller>,
    /// Pull calls that were ended and whose answers are awaited.
    ending: BTreeMap<CallId, Ending>,
    /// Until when a pull that was ended may still make this name.
    followed: BTreeMap<String, Tick>,
    /// By normalized name the ids of images whose removal was begun and not seen to its end, and until when that is
    /// remembered.
    unfinished: BTreeMap<String, (String, Tick)>,
    /// Ids from which our pin was taken off, until the runtime shows that.
    unpinned: BTreeMap<String, Tick>,
    intents: Intents,
    /// Open outcomes by stream.
    open: BTreeMap<StreamId, usize>,
    bytes_awaited: bool,
    /// When the first interest of an older term ends.
    interests_end: Option<Tick>,
    /// Some task may have lost its last interest.
    interests_left: bool,
    replies: Vec<Command>,
    /// Calls that wait until the removal at hand has ended.
    after_removal: Vec<Command>,
    counter: u64,
    polled: Tick,
    now: Tick,
    /// When whose turn was last, by `counter`.
    served: Served,
    registries: Registries,
}

/// A pull that was ended, and of which the runtime has not let go yet.
#[derive(Debug)]
struct Ending {
    /// The name it works on.
    image: String,
    /// Whose place it holds.
    turn: Turn,
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
            disk: DiskObservation::default(),
            term: 0,
            tasks: Tasks::default(),
            removals: VecDeque::new(),
            checks: BTreeMap::new(),
            calls: BTreeMap::new(),
            ending: BTreeMap::new(),
            followed: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            unpinned: BTreeMap::new(),
            intents: Intents::default(),
            open: BTreeMap::new(),
            bytes_awaited: false,
            interests_end: None,
            interests_left: false,
            replies: Vec::new(),
            after_removal: Vec::new(),
            counter: 0,
            polled: Tick(0),
            served: Served::default(),
            now: Tick(0),
            registries: Registries::default(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Tick, event: Event) {
        self.now = now;
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
                desired,
                releasable,
                only_pulled,
                unpin_ours,
                unpin,
            } => {
                let items = references.len() + unpin.len();
                let size = removal::size(items, desired.iter().chain(&releasable));
                if self.admit(stream, authority, now) && self.has_room(stream, size) {
                    let names = references.into_iter().map(|name| {
                        let normal = normalized(&name);
                        Item::Name(name, normal)
                    });
                    let items = names.chain(unpin.into_iter().map(Item::Pin)).collect();
                    let set = |names: Vec<String>| names.iter().map(|n| normalized(n)).collect();
                    let mut removal = Removal::new(stream, authority, items);
                    removal.desire(&desired);
                    removal.only_pulled = set(only_pulled);
                    removal.releasable = set(releasable);
                    removal.unpin_ours = unpin_ours;
                    self.take_removal(stream, removal, now);
                }
            }
            Event::Check(stream, names) => {
                // A node whose queue is full is checked none the less.
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
        (self.polled, self.now) = (now, now);
        self.end_pauses(now);
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

    /// What was waited for by time alone.
    fn end_pauses(&mut self, now: Tick) {
        self.followed.retain(|_, until| *until > now);
        self.unfinished.retain(|_, (_, until)| *until > now);
        let removal = self.removals.front();
        let since = removal.and_then(|removal| removal.inspected).unwrap_or(now);
        self.unpinned.retain(|_, until| *until > since);
        for removal in &mut self.removals {
            removal.paused = removal.paused.filter(|at| *at > now);
        }
        let due = |task: &Task| task.paused_until().is_some_and(|at| at <= now);
        let paused = self.tasks.active().filter(|(_, task)| due(task));
        let paused: Vec<TaskKey> = paused.map(|(key, _)| key.clone()).collect();
        for key in paused {
            if let Some((call, phase)) = self.tasks.get(&key).and_then(Task::look_again) {
                self.call_for(&key, call, phase);
            }
        }
    }

    /// When [`Queue::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        let tasks = self.tasks.active().flat_map(|(_, task)| {
            let waiting = match task.state {
                State::Waiting(at) => Some(at),
                _ => None,
            };
            let bytes = task.watch_at().filter(|_| self.facts.progress);
            [
                waiting,
                task.paused_until(),
                task.deadline_at(),
                task.long_at(),
                bytes,
            ]
        });
        let ends = [
            self.interests_end,
            self.tasks.next_end(),
            self.intents.next_expiry(),
            self.removals.front().and_then(|removal| removal.paused),
            self.disk_due(),
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
        let names = self.followed.len() + self.unfinished.len() + self.intents.len();
        let names = names + self.unpinned.len();
        work + self.ending.len() + self.open.len() + names
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

    fn reply(&mut self, outcomes: Vec<(Option<StreamId>, PullOutcome)>) {
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
