//! Requests to a queue whose runtime calls are answered by a model of a few lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;

mod artifacts;
mod checks;
mod ended;
mod fair;
mod outcomes;
mod pins;
mod pulls;
mod removals;
mod room;
mod runtime;
mod sharing;
mod short;
mod watch;

/// Answers calls when a test asks for it.
struct Node {
    queue: Queue,
    runtime: Runtime,
    /// The answer to removals.
    removals: Result<(), CallError>,
    /// Short names that CRI-O finds in the registries that it searches.
    aliases: BTreeMap<String, String>,
    now: Tick,
    images: BTreeMap<String, Image>,
    containers: Vec<Container>,
    broken: BTreeMap<String, CallError>,
    /// The answer to inspections.
    inspections: Result<(), CallError>,
    /// Whether the runtime says which pins are ours.
    pins_answer: Result<(), CallError>,
    calls: Vec<(CallId, Call)>,
    cancelled: BTreeSet<CallId>,
    log: Vec<String>,
    pulled: BTreeMap<u64, Vec<PullOutcome>>,
    transfers: Vec<(u64, Transfer)>,
    /// Where the layers of pulls come from.
    sources: Sources,
    removed: BTreeMap<u64, Vec<RemoveOutcome>>,
    checked: Vec<Checked>,
    done: Vec<u64>,
    refused: Vec<u64>,
    attached: BTreeMap<u64, u32>,
    report: Report,
    overloaded: Vec<u64>,
    /// Ids with our pin.
    ours: BTreeSet<String>,
    /// Names that we noted as pulled by us.
    marked: BTreeSet<String>,
    /// Whether a label has any effect.
    pins_work: bool,
    /// Pins show up when the test says so.
    pins_late: bool,
    disk: Result<Disk, CallError>,
    bytes: BTreeMap<String, Bytes>,
    /// What the node's credential providers give.
    provided: (Vec<CredentialId>, Option<String>),
}

fn authority(term: u64, seq: u64) -> Authority {
    Authority {
        term,
        seq,
        batch: seq,
    }
}

fn request(name: &str) -> PullRequest {
    PullRequest {
        reference: name.to_owned(),
        freshness: "t".to_owned(),
        ..PullRequest::default()
    }
}

fn always(name: &str, token: &str) -> PullRequest {
    PullRequest {
        policy: Policy::Always,
        freshness: token.to_owned(),
        ..request(name)
    }
}

fn error(code: &str, message: &str) -> CallError {
    CallError {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

impl Node {
    fn new() -> Self {
        Self::with(Runtime::Containerd)
    }

    fn with(runtime: Runtime) -> Self {
        let mut node = Self::set(Settings {
            runtime,
            ..Settings::default()
        });
        node.facts(RuntimeFacts {
            runtime,
            pins: Support::No,
            ..RuntimeFacts::default()
        });
        node
    }

    /// A containerd whose own interface is there.
    fn containerd(settings: Settings) -> Self {
        let mut node = Self::set(settings);
        node.facts(RuntimeFacts {
            progress: true,
            ..RuntimeFacts::default()
        });
        node
    }

    fn pinned(mut self, name: &str, ours: bool) -> Self {
        self.hold(name);
        let image = self.held(name);
        image.pinned = true;
        let id = image.id.clone();
        if ours {
            self.ours.insert(id);
        }
        self
    }

    fn unpin(&mut self, stream: u64, names: &[&str], desired: &[&str], unpin: &[&str]) {
        self.ask_to_unpin(stream, names, desired, unpin);
        self.run();
    }

    /// The same, and nothing is answered yet.
    fn ask_to_unpin(&mut self, stream: u64, names: &[&str], desired: &[&str], unpin: &[&str]) {
        self.handle(Event::Remove {
            stream: StreamId(stream),
            authority: authority(1, stream),
            references: texts(names),
            desired: texts(desired),
            releasable: Vec::new(),
            only_pulled: Vec::new(),
            unpin_ours: true,
            unpin: texts(unpin),
        });
    }

    fn facts(&mut self, facts: RuntimeFacts) {
        self.handle(Event::Runtime(facts));
    }

    fn set(settings: Settings) -> Self {
        Self {
            runtime: settings.runtime,
            removals: Ok(()),
            aliases: BTreeMap::new(),
            queue: Queue::new(settings),
            now: Tick(1),
            images: BTreeMap::new(),
            containers: Vec::new(),
            broken: BTreeMap::new(),
            inspections: Ok(()),
            pins_answer: Ok(()),
            calls: Vec::new(),
            cancelled: BTreeSet::new(),
            log: Vec::new(),
            pulled: BTreeMap::new(),
            transfers: Vec::new(),
            sources: Sources::default(),
            removed: BTreeMap::new(),
            checked: Vec::new(),
            done: Vec::new(),
            refused: Vec::new(),
            attached: BTreeMap::new(),
            report: Report::default(),
            overloaded: Vec::new(),
            ours: BTreeSet::new(),
            marked: BTreeSet::new(),
            pins_work: true,
            pins_late: false,
            disk: Ok(Disk::default()),
            bytes: BTreeMap::new(),
            provided: (Vec::new(), None),
        }
    }

    fn hold(&mut self, name: &str) {
        let image = Image {
            id: format!("sha256:{name}"),
            tags: vec![name.to_owned()],
            ..Image::default()
        };
        self.images.insert(name.to_owned(), image);
    }

    fn held(&mut self, name: &str) -> &mut Image {
        self.images.get_mut(name).unwrap()
    }

    fn handle(&mut self, event: Event) {
        self.queue.handle(self.now, event);
        self.poll();
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        self.queue.poll(self.now, &mut out);
        for command in out {
            match command {
                Command::Call(id, call) => {
                    self.log.push(format!("{call:?}"));
                    self.calls.push((id, call));
                }
                Command::CancelCall(id) => {
                    let (_, call) = self.calls.iter().find(|(other, _)| *other == id).unwrap();
                    self.log.push(format!("cancel {call:?}"));
                    self.cancelled.insert(id);
                }
                Command::Transfers(stream, transfers) => {
                    let transfers = transfers.into_iter().map(|told| (stream.0, told));
                    self.transfers.extend(transfers);
                }
                Command::Pulled(stream, outcomes) => {
                    self.pulled.entry(stream.0).or_default().extend(outcomes);
                }
                Command::Removed(stream, outcomes) => {
                    self.removed.entry(stream.0).or_default().extend(outcomes);
                }
                Command::Checked(_, report) => {
                    self.checked = report.images.clone();
                    self.report = report;
                }
                Command::Overloaded(stream) => self.overloaded.push(stream.0),
                Command::Done(stream) => self.done.push(stream.0),
                Command::Refused(_, seen) => self.refused.push(seen),
                Command::Accepted(stream, attached) => {
                    self.attached.insert(stream.0, attached);
                }
                Command::Cancelled(..) => {}
            }
        }
        self.check_invariants();
    }

    fn check_invariants(&self) {
        let pulls = || {
            let calls = self.calls.iter().map(|(_, call)| call);
            calls.filter_map(|call| match call {
                Call::Pull(name, ..) => Some(name),
                _ => None,
            })
        };
        let names: BTreeSet<&String> = pulls().collect();
        assert_eq!(names.len(), pulls().count(), "one pull of a name at a time");
        assert!(names.len() <= 4, "{names:?}");
        // One more for another namespace.
        let most = if self.now <= Tick(20_000) { 3 } else { 4 };
        for name in &names {
            let host = |name: &str| name.split('/').next().unwrap().to_owned();
            let same = names.iter().filter(|other| host(other) == host(name));
            assert!(same.count() <= most, "{names:?}");
        }
        for (_, call) in &self.calls {
            if let Call::Remove(target) = call {
                let name = target.trim_start_matches("sha256:").to_owned();
                assert!(
                    !names.contains(&name),
                    "{name} is pulled and removed at once"
                );
            }
        }
        assert!(self.queue.next_wakeup().is_none_or(|at| at > self.now));
    }

    /// Answers the first call whose text begins so.
    fn answer(&mut self, call: &str) {
        let found = |(_, known): &(CallId, Call)| format!("{known:?}").starts_with(call);
        let at = self.calls.iter().position(found);
        self.answer_one(at.unwrap_or_else(|| panic!("no {call} among {:?}", self.calls)));
    }

    fn run(&mut self) {
        for _ in 0..100_000 {
            if self.calls.is_empty() {
                return;
            }
            self.answer_one(0);
        }
        panic!("the queue does not come to rest");
    }

    /// Lets this time pass, and answers everything meanwhile.
    fn rest(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.wait(1);
            self.run();
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.poll();
    }

    /// Ends a batch's interest in these names; none: in all of it.
    fn cancel(&mut self, authority: Authority, batch: u64, names: &[&str]) {
        let cancels = vec![(batch, texts(names))];
        self.handle(Event::Cancel(StreamId(9), authority, cancels));
    }

    fn remove(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        self.remove_with(stream, authority, names, &[], &[]);
    }

    fn remove_with(
        &mut self,
        stream: u64,
        authority: Authority,
        names: &[&str],
        desired: &[&str],
        releasable: &[&str],
    ) {
        self.handle(Event::Remove {
            stream: StreamId(stream),
            authority,
            references: texts(names),
            desired: texts(desired),
            releasable: texts(releasable),
            only_pulled: Vec::new(),
            unpin_ours: false,
            unpin: Vec::new(),
        });
    }

    fn pull(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        let images = names.iter().map(|name| request(name)).collect();
        self.handle(Event::Pull(StreamId(stream), authority, images));
    }

    fn pull_this(&mut self, stream: u64, authority: Authority, request: PullRequest) {
        self.handle(Event::Pull(StreamId(stream), authority, vec![request]));
    }

    fn check(&mut self, names: &[&str]) -> Vec<Checked> {
        self.handle(Event::Check(StreamId(5000), texts(names)));
        for name in names {
            self.answer(&format!("Inspect({name:?}"));
        }
        std::mem::take(&mut self.checked)
    }

    /// Answers an observation of bytes, if one is open.
    fn answer_progress(&mut self) {
        let mut calls = self.calls.iter();
        if calls.any(|(_, call)| matches!(call, Call::Progress(_))) {
            self.answer("Progress");
        }
    }

    fn count(&self, call: &str) -> usize {
        let lines = self.log.iter();
        lines.filter(|line| line.starts_with(call)).count()
    }

    fn failure(&self, stream: u64) -> &str {
        match &self.pulled[&stream][0].result {
            PullResult::Failed { reason, .. } => reason,
            other => panic!("{other:?} is no failure"),
        }
    }

    fn result(&self, stream: u64) -> &PullResult {
        assert_eq!(self.pulled[&stream].len(), 1);
        &self.pulled[&stream][0].result
    }

    fn removal(&self, stream: u64) -> String {
        match &self.removed[&stream][0].result {
            RemoveResult::Kept { reason, .. } => reason.clone(),
            other => format!("{other:?}"),
        }
    }
}

fn pinned(name: &str) -> PullRequest {
    PullRequest {
        retention: Retention::Pinned,
        ..request(name)
    }
}
