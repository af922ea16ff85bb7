//! Stories and a property, played against a runtime of a few lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

mod checks;
mod fair;
mod pins;
mod pulls;
mod removals;
mod room;
mod watch;

/// Answers calls when told to.
struct Node {
    queue: Queue,
    now: Tick,
    images: BTreeMap<String, Image>,
    containers: Vec<Container>,
    broken: BTreeMap<String, CallError>,
    /// Whether images can be looked at.
    looks: Result<(), CallError>,
    /// Whether the runtime says which pins are ours.
    pins_told: Result<(), CallError>,
    calls: Vec<(CallId, Call)>,
    cancelled: BTreeSet<CallId>,
    log: Vec<String>,
    pulled: BTreeMap<u64, Vec<PullOutcome>>,
    removed: BTreeMap<u64, Vec<RemoveOutcome>>,
    checked: Vec<Checked>,
    done: Vec<u64>,
    refused: Vec<u64>,
    attached: BTreeMap<u64, u32>,
    report: Report,
    overloaded: Vec<u64>,
    /// Ids with our pin.
    ours: BTreeSet<String>,
    /// Whether a label has any effect.
    pins_work: bool,
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

fn want(name: &str) -> PullRequest {
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
        ..want(name)
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

    fn unpin(&mut self, stream: u64, names: &[&str], wanted: &[&str], unpin: &[&str]) {
        self.tell(Event::Remove {
            stream: StreamId(stream),
            authority: authority(1, stream),
            references: texts(names),
            wanted: texts(wanted),
            releasable: Vec::new(),
            unpin_ours: true,
            unpin: texts(unpin),
        });
        self.run();
    }

    fn facts(&mut self, facts: RuntimeFacts) {
        self.tell(Event::Runtime(facts));
    }

    fn set(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings),
            now: Tick(1),
            images: BTreeMap::new(),
            containers: Vec::new(),
            broken: BTreeMap::new(),
            looks: Ok(()),
            pins_told: Ok(()),
            calls: Vec::new(),
            cancelled: BTreeSet::new(),
            log: Vec::new(),
            pulled: BTreeMap::new(),
            removed: BTreeMap::new(),
            checked: Vec::new(),
            done: Vec::new(),
            refused: Vec::new(),
            attached: BTreeMap::new(),
            report: Report::default(),
            overloaded: Vec::new(),
            ours: BTreeSet::new(),
            pins_work: true,
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

    fn tell(&mut self, event: Event) {
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
                Call::Pull(name, _) => Some(name),
                _ => None,
            })
        };
        let names: BTreeSet<&String> = pulls().collect();
        assert_eq!(names.len(), pulls().count(), "one pull of a name at a time");
        assert!(names.len() <= 3, "{names:?}");
        let most = if self.now <= Tick(20_000) { 2 } else { 3 };
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

    fn answer_one(&mut self, at: usize) {
        let (id, call) = self.calls.remove(at);
        let cancelled = self.cancelled.remove(&id);
        let answer = match call {
            Call::Inspect(name) => {
                let by_id = self.images.values().find(|image| image.id == name);
                let image = self.images.get(&name).or(by_id);
                Answer::Inspected(self.looks.clone().map(|()| image.cloned()))
            }
            Call::Pull(..) if cancelled => {
                Answer::Pulled(Err(error("Cancelled", "context canceled")))
            }
            Call::Pull(name, credential) => match self.broken.get(&name) {
                Some(error) if credential != Some(CredentialId(7)) => {
                    Answer::Pulled(Err(error.clone()))
                }
                _ => {
                    self.hold(&name);
                    Answer::Pulled(Ok(()))
                }
            },
            Call::Containers => Answer::Containers(Ok(self.containers.clone())),
            Call::Remove(target) => {
                self.images
                    .retain(|name, image| *name != target && image.id != target);
                self.ours.remove(&target);
                Answer::Removed(Ok(()))
            }
            Call::FsInfo => Answer::Disk(self.disk.clone()),
            Call::Pins => {
                let told = self.pins_told.clone();
                Answer::Pins(told.map(|()| self.ours.iter().cloned().collect()))
            }
            Call::Pin(id, on) => {
                self.pin(&id, on);
                Answer::Pinned(Ok(()))
            }
            Call::Progress(_) => Answer::Progress(Ok(self.bytes.clone())),
            Call::Credentials(_) => {
                let (given, trouble) = self.provided.clone();
                Answer::Credentials(given, trouble)
            }
        };
        self.tell(Event::Answered(id, answer));
    }

    fn pin(&mut self, id: &str, on: bool) {
        let images = self.images.values_mut().filter(|image| image.id == id);
        for image in images {
            image.pinned = on && self.pins_work;
        }
        if on {
            self.ours.insert(id.to_owned());
        } else {
            self.ours.remove(id);
        }
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

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.poll();
    }

    /// Ends a batch's interest in these names; none: in all of it.
    fn cancel(&mut self, authority: Authority, batch: u64, names: &[&str]) {
        let cancels = vec![(batch, texts(names))];
        self.tell(Event::Cancel(StreamId(9), authority, cancels));
    }

    fn remove(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        self.remove_with(stream, authority, names, &[], &[]);
    }

    fn remove_with(
        &mut self,
        stream: u64,
        authority: Authority,
        names: &[&str],
        wanted: &[&str],
        releasable: &[&str],
    ) {
        self.tell(Event::Remove {
            stream: StreamId(stream),
            authority,
            references: texts(names),
            wanted: texts(wanted),
            releasable: texts(releasable),
            unpin_ours: false,
            unpin: Vec::new(),
        });
    }

    fn pull(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        let images = names.iter().map(|name| want(name)).collect();
        self.tell(Event::Pull(StreamId(stream), authority, images));
    }

    fn pull_this(&mut self, stream: u64, authority: Authority, request: PullRequest) {
        self.tell(Event::Pull(StreamId(stream), authority, vec![request]));
    }

    fn check(&mut self, names: &[&str]) -> Vec<Checked> {
        self.tell(Event::Check(StreamId(5000), texts(names)));
        for name in names {
            self.answer(&format!("Inspect({name:?}"));
        }
        std::mem::take(&mut self.checked)
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
        ..want(name)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is asked, in whatever order the runtime answers and whatever it says: every request
    /// whose stream is open ends with one outcome per image, the invariants hold after each step,
    /// and an hour later nothing is left over.
    #[test]
    fn every_image_of_every_request_has_one_outcome(
        steps in proptest::collection::vec((0_u8..11, 0_usize..5, 0_usize..8), 1..80)
    ) {
        let mut node = Node::containerd(Settings {
            disk_watermark: Some(80),
            credential_providers: true,
            ..Settings::default()
        });
        node.provided = (vec![CredentialId(8)], None);
        let mut asked: BTreeMap<u64, usize> = BTreeMap::new();
        for (seq, (kind, image, pick)) in (1_u64..).zip(steps) {
            let names: Vec<String> = (0..=image).map(|i| format!("r.test/i{i}:1")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let stream = (pick as u64).min(seq);
            match kind {
                0 | 1 => {
                    node.pull(seq, authority(1, seq), &names);
                    asked.insert(seq, names.len());
                }
                2 => {
                    node.remove(seq, authority(1, seq), &names);
                    asked.insert(seq, names.len());
                }
                3 => {
                    let cancel = vec![(stream, Vec::new())];
                    node.tell(Event::Cancel(StreamId(1000 + seq), authority(1, seq), cancel));
                }
                4 => {
                    node.tell(Event::Closed(StreamId(stream)));
                    asked.remove(&stream);
                }
                5 => node.wait(pick as u64 * 4),
                6 => {
                    let error = match pick {
                        0..=2 => error("Unavailable", "gone"),
                        3..=4 => error("Cancelled", "context canceled"),
                        _ => error("Unknown", "401 Unauthorized"),
                    };
                    node.broken.insert(format!("r.test/i{image}:1"), error);
                }
                7 => {
                    let retention = [Retention::Leave, Retention::Pinned][pick % 2];
                    let images = names.iter().map(|name| PullRequest {
                        retention,
                        ..always(name, &pick.to_string())
                    });
                    node.tell(Event::Pull(StreamId(seq), authority(1, seq), images.collect()));
                    asked.insert(seq, names.len());
                }
                8 => {
                    let available = if pick == 0 { 1 } else { 90 };
                    node.disk = Ok(Disk { capacity: 100, available });
                    node.pins_work = pick != 1;
                    let bytes = Bytes { done: pick as u64, total: 9, active: pick > 3 };
                    node.bytes.insert(format!("r.test/i{image}:1"), bytes);
                }
                _ => if !node.calls.is_empty() {
                    let at = pick % node.calls.len();
                    node.answer_one(at);
                },
            }
        }
        node.run();
        while node.queue.depth() != (0, 0) {
            node.wait(1);
            node.run();
        }
        for (stream, count) in asked {
            let pulled = node.pulled.get(&stream).map_or(0, Vec::len);
            let removed = node.removed.get(&stream).map_or(0, Vec::len);
            prop_assert_eq!(pulled + removed, count);
            prop_assert_eq!(node.done.iter().filter(|done| **done == stream).count(), 1);
        }
        node.wait(3601);
        prop_assert_eq!(node.queue.remembers(), 0);
        prop_assert_eq!(node.queue.next_wakeup(), None);
    }
}
