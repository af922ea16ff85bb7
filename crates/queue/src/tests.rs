//! Stories and a property, played against a runtime of a few lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

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
    progress: BTreeMap<u64, Vec<Progress>>,
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
            progress: BTreeMap::new(),
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
                Command::Progress(stream, images) => {
                    self.progress.entry(stream.0).or_default().extend(images);
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
        let most = if self.now <= Tick(20_000) { 2 } else { 3 };
        assert!(names.len() <= most, "{names:?}");
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

#[test]
fn an_absent_image_is_pulled_and_a_present_one_is_not() {
    let mut node = Node::new();
    node.hold("r.test/b:1");
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.run();
    let results: Vec<_> = node.pulled[&1]
        .iter()
        .map(|o| (o.index, o.result.clone()))
        .collect();
    assert!(
        results.contains(&(0, PullResult::Pulled)) && results.contains(&(1, PullResult::Present))
    );
    assert_eq!(node.count("Pull"), 1);
    assert_eq!(node.done, [1]);
}

#[test]
fn a_name_that_does_not_parse_fails_at_once_and_alone() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["UPPER/case:x", "r.test/a:1"]);
    node.run();
    assert!(
        matches!(&node.pulled[&1][0].result, PullResult::Failed { reason, .. } if reason == "InvalidImageName")
    );
    assert_eq!(node.pulled[&1].len(), 2);
}

#[test]
fn the_next_credential_is_tried_when_one_is_refused_and_none_is_burnt_when_the_registry_asks_to_wait()
 {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.broken.insert(
        "r.test/b:1".into(),
        error("Unknown", "429 Too Many Requests"),
    );
    let with = |name: &str| PullRequest {
        credentials: vec![CredentialId(1), CredentialId(7)],
        ..want(name)
    };
    node.tell(Event::Pull(
        StreamId(1),
        authority(1, 1),
        vec![with("r.test/a:1"), with("r.test/b:1")],
    ));
    node.run();
    let result = |index| node.pulled[&1].iter().find(|o| o.index == index).unwrap();
    assert_eq!(
        (&result(0).result, result(0).attempts),
        (&PullResult::Pulled, 2)
    );
    assert!(
        matches!(&result(1).result, PullResult::Failed { reason, .. } if reason == "RateLimited")
    );
    assert_eq!(result(1).attempts, 1);
}

#[test]
fn the_same_request_attaches_after_a_broken_stream_and_the_runtime_pulls_once() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.tell(Event::Closed(StreamId(1)));
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert!(!node.pulled.contains_key(&1));
    assert_eq!(node.pulled[&2][0].result, PullResult::Pulled);
    node.pull(3, authority(2, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(3), PullResult::Pulled, "also for a new leader");
    assert_eq!(node.count("Pull"), 1);
}

#[test]
fn cancelling_the_last_interest_ends_the_runtime_call() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer_one(0);
    node.tell(Event::Cancel(
        StreamId(9),
        authority(1, 2),
        vec![(1, vec!["r.test/a:1".to_owned()])],
    ));
    node.run();
    assert_eq!(node.pulled[&1][0].result, PullResult::Cancelled);
    assert_eq!(node.count("cancel Pull"), 1);
    assert!(node.images.is_empty());
}

#[test]
fn a_pull_that_somebody_else_wants_goes_on() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.tell(Event::Cancel(
        StreamId(9),
        authority(1, 3),
        vec![(1, Vec::new())],
    ));
    node.run();
    assert_eq!(node.pulled[&1][0].result, PullResult::Cancelled);
    assert_eq!(node.pulled[&2][0].result, PullResult::Pulled);
    assert_eq!(node.count("cancel"), 0);
}

#[test]
fn a_late_removal_does_not_delete_what_a_newer_pull_made() {
    let mut node = Node::new();
    node.pull(1, authority(1, 5), &["r.test/a:1"]);
    node.run();
    node.remove(2, authority(1, 4), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removed[&2][0].result, RemoveResult::Superseded);
    assert!(node.images.contains_key("r.test/a:1"));
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_removal_that_waits_for_containers_gives_way_to_a_newer_pull() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.answer_one(0);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removed[&1][0].result, RemoveResult::Superseded);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn what_a_container_uses_what_is_pinned_and_what_has_another_name_stays() {
    let mut node = Node::new();
    for name in [
        "r.test/used:1",
        "r.test/pinned:1",
        "r.test/shared:1",
        "r.test/free:1",
        "r.test/pause:1",
    ] {
        node.hold(name);
    }
    node.containers.push(Container {
        image: vec!["sha256:r.test/used:1".to_owned()],
    });
    node.images.get_mut("r.test/pinned:1").unwrap().pinned = true;
    node.images
        .get_mut("r.test/shared:1")
        .unwrap()
        .tags
        .push("r.test/mine:1".to_owned());
    let names = [
        "r.test/used:1",
        "r.test/pinned:1",
        "r.test/shared:1",
        "r.test/free:1",
        "r.test/pause:1",
        "r.test/no:1",
    ];
    node.remove(1, authority(1, 1), &names);
    node.run();
    let results: Vec<String> = node.removed[&1]
        .iter()
        .map(|outcome| match &outcome.result {
            RemoveResult::Kept { reason, .. } => reason.clone(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        results,
        [
            "InUse",
            "Pinned",
            "SharedImage",
            "Removed",
            "InUse",
            "Absent"
        ]
    );
    assert_eq!(node.count("Remove"), 1);
}

#[test]
fn two_names_of_one_image_go_together_when_nobody_wants_either() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.images
        .get_mut("r.test/a:1")
        .unwrap()
        .tags
        .push("r.test/b:1".to_owned());
    node.tell(Event::Remove {
        stream: StreamId(1),
        authority: authority(1, 1),
        references: vec!["r.test/a:1".to_owned()],
        wanted: Vec::new(),
        releasable: vec!["r.test/a:1".to_owned(), "r.test/b:1".to_owned()],
        unpin_ours: false,
        unpin: Vec::new(),
    });
    node.run();
    assert_eq!(node.removed[&1][0].result, RemoveResult::Removed);
}

#[test]
fn a_replaced_leader_is_refused_and_told_by_which_term() {
    let mut node = Node::new();
    node.pull(1, authority(3, 1), &["r.test/a:1"]);
    node.pull(2, authority(2, 9), &["r.test/b:1"]);
    node.run();
    assert_eq!(node.refused, [3]);
    assert!(!node.images.contains_key("r.test/b:1"));
}

#[test]
fn a_pull_beyond_its_deadline_ends_and_says_so() {
    let mut node = Node::new();
    let request = PullRequest {
        deadline: Some(Duration::from_secs(10)),
        ..want("r.test/a:1")
    };
    node.tell(Event::Pull(StreamId(1), authority(1, 1), vec![request]));
    node.answer_one(0);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(10_001)));
    node.now = Tick(10_001);
    node.poll();
    assert!(
        matches!(&node.pulled[&1][0].result, PullResult::Failed { reason, .. } if reason == "DeadlineExceeded")
    );
}

#[test]
fn a_long_pull_does_not_hold_up_small_ones() {
    let mut node = Node::new();
    let names = ["r.test/big:1", "r.test/big:2", "r.test/a:1", "r.test/b:1"];
    node.pull(1, authority(1, 1), &names);
    for _ in names {
        node.answer("Inspect");
    }
    assert_eq!(node.count("Pull"), 2);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(20_001)));
    node.wait(20);
    node.answer("Inspect");
    assert_eq!(node.count("Pull"), 3, "one more, and no further one");
    node.answer("Pull(\"r.test/a:1\"");
    node.answer("Inspect(\"r.test/a:1\"");
    node.answer("Inspect(\"r.test/b:1\"");
    assert_eq!(node.count("Pull(\"r.test/b:1\""), 1);
}

#[test]
fn what_is_present_is_told_however_long_pulls_take() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/big:1", "r.test/big:2"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.hold("r.test/here:1");
    node.pull(2, authority(1, 2), &["r.test/here:1"]);
    node.answer("Inspect");
    assert_eq!(*node.result(2), PullResult::Present);
}

#[test]
fn nothing_that_waits_for_a_slot_wakes_the_queue() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/b:1".into(), error("Unavailable", "gone"));
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.answer("Pull(\"r.test/b:1\"");
    node.pull(2, authority(1, 2), &["r.test/c:1"]);
    node.answer("Inspect(\"r.test/c:1\"");
    node.wait(60);
    // check_invariants has seen that the next wake-up lies ahead.
    assert!(node.queue.next_wakeup() > Some(node.now));
}

#[test]
fn a_higher_priority_goes_first_and_then_the_older() {
    let mut node = Node::new();
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1", "r.test/d:1"];
    node.pull(1, authority(1, 1), &names);
    let urgent = PullRequest {
        priority: 5,
        ..want("r.test/e:1")
    };
    for _ in names {
        node.answer("Inspect");
    }
    node.pull_this(2, authority(1, 2), urgent);
    node.answer("Inspect(\"r.test/e:1\"");
    node.run();
    let pulls: Vec<&str> = node
        .log
        .iter()
        .filter_map(|line| line.strip_prefix("Pull(\"r.test/")?.get(..1))
        .collect();
    assert_eq!(pulls, ["a", "b", "e", "c", "d"]);
}

#[test]
fn an_unasked_cancel_is_repeated_at_once() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Cancelled", "context canceled"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 4);
    assert_eq!(node.failure(1), "ErrImagePull");
}

#[test]
fn a_runtime_that_is_away_is_asked_again_at_most_three_times() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Unavailable", "no such file"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 1, "not without a pause");
    for _ in 0..10 {
        node.wait(5);
        node.run();
    }
    assert_eq!(node.count("Pull"), 4);
    assert_eq!(node.failure(1), "RuntimeUnavailable");
}

#[test]
fn a_look_that_failed_before_its_pull_had_a_slot_is_repeated() {
    let mut node = Node::new();
    node.looks = Err(error("Unavailable", "no such file"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!((node.count("Inspect"), node.count("Pull")), (1, 0));
    assert!(node.queue.next_wakeup().is_some(), "nobody else wakes it");
    node.looks = Ok(());
    node.wait(5);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
}

#[test]
fn a_failure_is_tried_again_when_asked_again() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("NotFound", "a: not found"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.failure(1), "ImageNotFound");
    node.broken.clear();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn a_failure_that_nobody_heard_of_is_told_once() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("NotFound", "a: not found"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.tell(Event::Closed(StreamId(1)));
    node.run();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(node.failure(2), "ImageNotFound");
    assert_eq!(node.count("Pull"), 1);
    node.pull(3, authority(1, 3), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 2);
}

#[test]
fn what_was_pulled_and_is_gone_since_is_pulled_again() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    node.images.clear();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Pulled);
    assert_eq!(node.count("Pull"), 2);
}

#[test]
fn always_asks_the_registry_once_per_token() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/a:1", "refresh-1"));
    node.run();
    node.pull_this(2, authority(1, 2), always("r.test/a:1", "refresh-1"));
    node.run();
    assert_eq!(node.count("Pull"), 1);
    assert_eq!(*node.result(2), PullResult::Pulled);
    node.pull_this(3, authority(1, 3), always("r.test/a:1", "refresh-2"));
    node.run();
    assert_eq!(node.count("Pull"), 2);
    node.wait(601);
    node.pull_this(4, authority(1, 4), always("r.test/a:1", "refresh-2"));
    node.run();
    assert_eq!(node.count("Pull"), 3, "remembered for ten minutes");
}

#[test]
fn another_credential_for_the_same_image_waits_and_then_needs_no_pull() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    let other = PullRequest {
        credential_hash: 9,
        credentials: vec![CredentialId(9)],
        ..want("r.test/a:1")
    };
    node.pull_this(2, authority(1, 2), other);
    assert!(node.queue.needs(CredentialId(9)));
    node.run();
    assert_eq!(*node.result(2), PullResult::Present);
    assert_eq!(node.count("Pull"), 1);
    assert!(!node.queue.needs(CredentialId(9)));
}

#[test]
fn whoever_asks_again_after_a_broken_stream_can_cancel() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.tell(Event::Closed(StreamId(1)));
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(node.attached[&2], 1);
    let cancel = vec![(2, Vec::new())];
    node.tell(Event::Cancel(StreamId(9), authority(1, 3), cancel));
    assert_eq!(node.count("cancel Pull"), 1);
}

#[test]
fn a_pull_asked_for_right_after_its_cancel_is_done_anew_and_waits_for_the_old_one() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    let cancel = vec![(1, Vec::new())];
    node.tell(Event::Cancel(StreamId(9), authority(1, 2), cancel));
    node.pull(2, authority(1, 3), &["r.test/a:1"]);
    assert_eq!(node.count("Pull"), 1, "the runtime has not let go yet");
    node.run();
    assert_eq!(*node.result(1), PullResult::Cancelled);
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn interests_of_an_older_term_end_after_a_minute_unless_they_are_taken_up() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.pull(2, authority(2, 1), &["r.test/a:1"]);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(20_001)));
    node.wait(59);
    assert_eq!(node.count("cancel"), 0);
    node.wait(1);
    assert_eq!(node.count("cancel Pull(\"r.test/b:1\""), 1);
    node.run();
    assert_eq!(node.done, [1, 2]);
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn a_newer_removal_ends_the_pull_and_begins_when_the_runtime_has_let_go() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(*node.result(1), PullResult::Superseded);
    assert_eq!(node.count("cancel Pull"), 1);
    assert_eq!(node.count("Inspect"), 1, "the removal waits");
    node.run();
    assert_eq!(node.removal(2), "Absent");
}

#[test]
fn a_removal_waits_for_an_ended_pull_of_another_name_of_the_image() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    let end = |node: &mut Node| {
        let names = vec!["r.test/b:1".to_owned()];
        node.tell(Event::Cancel(
            StreamId(9),
            authority(1, 2),
            vec![(1, names)],
        ));
    };
    let both = ["r.test/a:1", "r.test/b:1"];
    end(&mut node);
    assert_eq!(node.count("cancel Pull"), 1, "{:?}", node.log);
    node.remove_with(2, authority(1, 3), &["r.test/a:1"], &[], &both);
    assert_eq!(node.count("Inspect(\"r.test/a:1\""), 0, "it waits");
    node.run();
    assert_eq!(node.removal(2), "Removed");
}

#[test]
fn a_pull_that_is_ended_while_a_removal_looks_keeps_the_image_until_the_runtime_has_let_go() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(2, authority(1, 3), &["r.test/a:1"], &[], &both);
    node.answer("Inspect(\"r.test/a:1\"");
    node.tell(Event::Cancel(
        StreamId(9),
        authority(1, 2),
        vec![(1, vec!["r.test/b:1".to_owned()])],
    ));
    assert_eq!(node.count("cancel Pull"), 1, "{:?}", node.log);
    node.answer("Containers");
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

/// The image that `r.test/a:1` means gets the name `r.test/b:1`, too.
fn name_also_b(node: &mut Node) {
    let mut image = node.held("r.test/a:1").clone();
    image.tags.push("r.test/b:1".to_owned());
    node.images.insert("r.test/a:1".to_owned(), image.clone());
    node.images.insert("r.test/b:1".to_owned(), image);
}

#[test]
fn an_image_that_gets_another_name_while_a_removal_looks_stays() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    node.remove_with(
        2,
        authority(1, 2),
        &["r.test/a:1"],
        &["r.test/b:1"],
        &["r.test/a:1"],
    );
    node.answer("Inspect(\"r.test/a:1\"");
    node.answer("Pull");
    name_also_b(&mut node);
    node.answer("Inspect(\"r.test/b:1\"");
    assert_eq!(*node.result(1), PullResult::Pulled);
    node.run();
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_removal_looks_again_while_it_is_not_known_of_which_image_a_pull_made_a_name() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    node.remove_with(
        2,
        authority(1, 2),
        &["r.test/a:1"],
        &["r.test/b:1"],
        &["r.test/a:1"],
    );
    node.answer("Inspect(\"r.test/a:1\"");
    node.answer("Pull");
    name_also_b(&mut node);
    node.answer("Containers");
    assert_eq!(node.count("Remove"), 0, "{:?}", node.log);
    node.run();
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(*node.result(1), PullResult::Pulled);
}

#[test]
fn a_pull_that_ends_while_its_image_is_removed_under_another_name_is_repeated() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    node.remove_with(
        2,
        authority(1, 2),
        &["r.test/a:1"],
        &["r.test/b:1"],
        &["r.test/a:1"],
    );
    node.answer("Inspect(\"r.test/a:1\"");
    node.answer("Containers");
    assert_eq!(node.count("Remove"), 1);
    node.answer("Pull");
    assert_eq!(
        node.count("Inspect(\"r.test/b:1\""),
        0,
        "seen now it would count as there"
    );
    node.images.clear();
    node.run();
    assert_eq!(node.removal(2), "Removed");
    assert_eq!(*node.result(1), PullResult::Pulled);
    assert_eq!(node.count("Pull(\"r.test/b:1\""), 2);
}

#[test]
fn a_late_pull_does_not_bring_back_what_a_newer_removal_took() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.remove(1, authority(1, 5), &["r.test/a:1"]);
    node.run();
    node.pull(2, authority(1, 4), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Superseded);
    assert_eq!(node.count("Pull"), 0);
    node.pull(3, authority(1, 6), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(3), PullResult::Pulled);
}

#[test]
fn a_pull_of_another_name_of_the_image_keeps_it() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[], &both);
    node.answer("Inspect");
    node.pull(2, authority(1, 2), &["r.test/b:1"]);
    node.answer("Containers");
    assert_eq!(node.removal(1), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn no_pull_of_another_name_begins_while_the_runtime_removes_the_image() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[], &both);
    node.answer("Inspect");
    node.answer("Containers");
    node.pull(2, authority(1, 2), &["r.test/b:1"]);
    assert_eq!(node.count("Inspect(\"r.test/b:1\""), 0);
    node.run();
    assert_eq!(node.removal(1), "Removed");
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn a_name_that_a_cache_wants_stays_also_by_its_digest() {
    let digest = format!("r.test/a@sha256:{}", "0".repeat(64));
    for wanted in ["r.test/a:1", digest.as_str()] {
        let mut node = Node::new();
        node.hold("r.test/a:1");
        node.held("r.test/a:1").digests.push(digest.clone());
        node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[wanted], &[]);
        node.run();
        assert_eq!(node.removal(1), "SharedImage", "{wanted}");
        assert_eq!(node.count("Remove"), 0);
    }
}

#[test]
fn a_digest_of_another_repository_is_another_name_and_one_of_its_own_is_not() {
    let digest = |repository: &str| format!("{repository}@sha256:{}", "0".repeat(64));
    for (repository, result) in [("r.test/a", "Removed"), ("other.test/a", "SharedImage")] {
        let mut node = Node::new();
        node.hold("r.test/a:1");
        node.held("r.test/a:1").digests.push(digest(repository));
        node.remove(1, authority(1, 1), &["r.test/a:1"]);
        node.run();
        assert_eq!(node.removal(1), result, "{repository}");
    }
}

#[test]
fn cri_o_loses_a_name_alone_and_the_last_one_by_the_bare_id() {
    let mut node = Node::with(Runtime::Crio);
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Remove(\"r.test/a:1\")"), 1);
    node.hold("r.test/c:1");
    node.held("r.test/c:1").id = "c0ffee".to_owned();
    node.remove(2, authority(1, 2), &["r.test/c:1"]);
    node.run();
    assert_eq!(node.count("Remove(\"c0ffee\")"), 1);
    assert_eq!(node.count("Remove"), 2);
}

#[test]
fn what_is_left_of_a_removal_ends_with_its_stream() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.hold("r.test/b:1");
    node.remove(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.tell(Event::Closed(StreamId(1)));
    node.run();
    assert_eq!(node.images.len(), 2);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_check_answers_by_index_what_is_there_what_is_on_its_way_and_what_failed() {
    let mut node = Node::new();
    node.hold("r.test/b:1");
    node.broken
        .insert("r.test/d:1".into(), error("NotFound", "d: not found"));
    node.pull(1, authority(1, 1), &["r.test/d:1"]);
    node.run();
    node.pull(
        2,
        authority(1, 2),
        &["r.test/a:1", "r.test/x:1", "r.test/y:1"],
    );
    for _ in 0..3 {
        node.answer("Inspect");
    }
    let names = [
        "r.test/a:1",
        "r.test/b:1",
        "r.test/c:1",
        "r.test/d:1",
        "r.test/y:1",
    ];
    let checked = node.check(&names);
    assert_eq!(checked[0], Checked::Pulling);
    assert!(matches!(checked[1], Checked::Present(_)));
    assert_eq!(checked[2], Checked::Absent);
    assert!(matches!(&checked[3], Checked::Failed { reason, .. } if reason == "ImageNotFound"));
    assert_eq!(checked[4], Checked::Queued);
}

#[test]
fn a_check_of_many_images_does_not_flood_the_runtime() {
    let mut node = Node::new();
    let names: Vec<String> = (0..100).map(|i| format!("r.test/i{i}:1")).collect();
    node.tell(Event::Check(StreamId(1), names));
    assert_eq!(node.calls.len(), 16);
    node.run();
    assert_eq!(node.checked.len(), 100);
    assert_eq!(node.count("Inspect"), 100);
}

fn pinned(name: &str) -> PullRequest {
    PullRequest {
        retention: Retention::Pinned,
        ..want(name)
    }
}

#[test]
fn a_pin_goes_on_the_id_and_counts_when_the_runtime_shows_it() {
    let mut node = Node::containerd(Settings::default());
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.count("Pin(\"sha256:r.test/a:1\", true)"), 1);
    assert_eq!(node.pulled[&1][0].pin, PinResult::Pinned);
    assert_eq!(node.queue.pins(), Support::Yes);
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(node.report.pinned_by_us, ["sha256:r.test/a:1"]);
    assert_eq!(node.report.pins, Support::Yes);
}

#[test]
fn a_runtime_that_does_not_look_at_the_label_is_found_out_once_and_the_label_goes() {
    let mut node = Node::containerd(Settings::default());
    node.pins_work = false;
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
    assert_eq!(node.pulled[&1][0].pin, PinResult::Unsupported);
    assert!(node.ours.is_empty());
    node.pull_this(2, authority(1, 2), pinned("r.test/b:1"));
    node.run();
    assert_eq!(node.pulled[&2][0].pin, PinResult::Unsupported);
    assert_eq!(node.count("Pin("), 2, "on and off, the first time only");
}

#[test]
fn a_pin_that_somebody_takes_off_before_it_is_seen_says_nothing_of_the_runtime() {
    let mut node = Node::containerd(Settings::default());
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.answer("Inspect");
    node.answer("Pin");
    node.tell(Event::Remove {
        stream: StreamId(2),
        authority: authority(1, 2),
        references: Vec::new(),
        wanted: Vec::new(),
        releasable: Vec::new(),
        unpin_ours: true,
        unpin: texts(&["sha256:r.test/a:1"]),
    });
    node.answer("Pins");
    node.answer("Pin(\"sha256:r.test/a:1\", false)");
    node.run();
    let pin = &node.pulled[&1][0].pin;
    assert!(matches!(pin, PinResult::Failed(_)), "{pin:?}");
    assert_eq!(node.queue.pins(), Support::Unknown);
    node.pull_this(3, authority(1, 3), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.pulled[&3][0].pin, PinResult::Pinned);
}

#[test]
fn a_check_says_when_the_runtime_does_not_say_which_pins_are_ours() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
    node.pins_told = Err(error("Unavailable", "connection refused"));
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(
        (node.report.pins_unknown, node.report.pinned_by_us.len()),
        (true, 0)
    );
    node.pins_told = Ok(());
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(
        (node.report.pins_unknown, node.report.pinned_by_us.len()),
        (false, 1)
    );
}

#[test]
fn a_present_image_is_pinned_and_one_that_somebody_else_pinned_is_left_as_it_is() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/theirs:1", false);
    node.hold("r.test/a:1");
    for (stream, name) in [(1, "r.test/a:1"), (2, "r.test/theirs:1")] {
        node.pull_this(stream, authority(1, stream), pinned(name));
        node.run();
        assert_eq!(*node.result(stream), PullResult::Present);
        assert_eq!(node.pulled[&stream][0].pin, PinResult::Pinned);
    }
    assert_eq!(node.count("Pin("), 1);
}

#[test]
fn a_tag_that_moved_unpins_the_image_it_left_unless_that_has_another_name() {
    for (tags, left) in [(vec![], 0), (vec!["r.test/other:1".to_owned()], 1)] {
        let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
        let request = PullRequest {
            retention: Retention::Pinned,
            ..always("r.test/a:1", "refresh")
        };
        node.pull_this(1, authority(1, 1), request);
        node.answer("Inspect");
        let mut old = node.images.remove("r.test/a:1").unwrap();
        old.tags = tags;
        let id = std::mem::replace(&mut old.id, "sha256:old".to_owned());
        node.ours = [old.id.clone()].into();
        node.images.insert("old".to_owned(), old);
        // What the look before the pull saw.
        node.held("old").id = id.clone();
        node.ours = [id].into();
        node.answer("Pull");
        node.held("r.test/a:1").id = "sha256:new".to_owned();
        node.run();
        assert_eq!(node.pulled[&1][0].pin, PinResult::Pinned);
        assert_eq!(node.ours.len(), left + 1, "{:?}", node.ours);
        assert!(node.ours.contains("sha256:new"));
    }
}

#[test]
fn retention_default_takes_our_pin_off_and_leaves_that_of_others() {
    for ours in [true, false] {
        let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", ours);
        let request = PullRequest {
            retention: Retention::Default,
            ..want("r.test/a:1")
        };
        node.pull_this(1, authority(1, 1), request);
        node.run();
        assert_eq!(*node.result(1), PullResult::Present);
        assert_eq!(node.images["r.test/a:1"].pinned, !ours);
    }
}

#[test]
fn an_image_that_we_pinned_is_removed_when_our_pin_may_go_and_one_of_others_never() {
    let mut node = Node::containerd(Settings::default())
        .pinned("r.test/a:1", true)
        .pinned("r.test/theirs:1", false);
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removal(1), "Pinned");
    node.unpin(2, &["r.test/a:1", "r.test/theirs:1"], &[], &[]);
    assert_eq!(node.removal(2), "Removed");
    assert!(node.ours.is_empty() && node.images.contains_key("r.test/theirs:1"));
    assert_eq!(node.count("Remove"), 1);
}

#[test]
fn what_is_kept_loses_our_pin_too_unless_somebody_wants_it() {
    for (wanted, left) in [(vec![], 0), (vec!["r.test/a:1"], 1)] {
        let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
        node.containers.push(Container {
            image: vec!["sha256:r.test/a:1".to_owned()],
        });
        node.unpin(1, &["r.test/a:1"], &wanted, &[]);
        assert_eq!(node.removal(1), "InUse");
        assert_eq!(node.ours.len(), left);
    }
}

#[test]
fn a_pin_that_nobody_wants_goes_by_its_id_and_the_image_stays() {
    let mut node = Node::containerd(Settings::default())
        .pinned("r.test/a:1", true)
        .pinned("r.test/b:1", false);
    node.unpin(1, &[], &[], &["sha256:r.test/a:1", "sha256:r.test/b:1"]);
    let results: Vec<_> = node.removed[&1]
        .iter()
        .map(|o| (o.index, &o.result))
        .collect();
    assert_eq!(
        results,
        [(0, &RemoveResult::Removed), (1, &RemoveResult::Absent)]
    );
    assert_eq!(node.done, [1]);
    assert!(node.ours.is_empty() && node.images["r.test/b:1"].pinned);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_late_pull_does_not_bring_back_a_pin_that_was_taken_off_since() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
    node.unpin(5, &[], &[], &["sha256:r.test/a:1"]);
    assert_eq!(node.removal(5), "Removed");
    node.pull_this(4, authority(1, 4), pinned("r.test/a:1"));
    node.run();
    assert_eq!(*node.result(4), PullResult::Present);
    assert_eq!(node.pulled[&4][0].pin, PinResult::NotAsked);
    assert!(node.ours.is_empty());
    node.pull_this(6, authority(1, 6), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.pulled[&6][0].pin, PinResult::Pinned);
    assert!(node.ours.contains("sha256:r.test/a:1"));
}

#[test]
fn the_sandbox_image_and_our_own_always_stay() {
    let mut node = Node::set(Settings {
        own_images: vec!["r.test/puller:1".to_owned()],
        ..Settings::default()
    });
    node.facts(RuntimeFacts {
        sandbox_image: Some("r.test/sandbox:1".to_owned()),
        ..RuntimeFacts::default()
    });
    node.hold("r.test/puller:1");
    node.hold("r.test/sandbox:1");
    node.remove(1, authority(1, 1), &["r.test/puller:1", "r.test/sandbox:1"]);
    node.run();
    assert!(node.removed[&1].iter().all(|outcome| matches!(
        &outcome.result,
        RemoveResult::Kept { reason, .. } if reason == "InUse"
    )));
    assert_eq!(node.count("Remove"), 0);
}

fn guarded(percent_free: u64) -> Node {
    let mut node = Node::containerd(Settings {
        disk_watermark: Some(80),
        ..Settings::default()
    });
    node.disk = Ok(Disk {
        capacity: 100 << 20,
        available: percent_free << 20,
    });
    node
}

#[test]
fn above_the_watermark_nothing_is_pulled_or_pinned_and_the_figures_are_told() {
    let mut node = guarded(20);
    node.hold("r.test/here:1");
    node.pull_this(1, authority(1, 1), want("r.test/a:1"));
    node.pull_this(2, authority(1, 2), pinned("r.test/here:1"));
    node.run();
    let PullResult::Failed { reason, message } = node.result(1) else {
        panic!("{:?}", node.result(1));
    };
    assert_eq!(reason, "DiskPressure");
    assert!(
        message.contains("80 % full, 20 of 100 MiB are free"),
        "{message}"
    );
    assert_eq!(*node.result(2), PullResult::Present);
    assert!(
        matches!(&node.pulled[&2][0].pin, PinResult::DiskPressure(why) if why.contains("80 %"))
    );
    assert_eq!(node.count("Pull") + node.count("Pin("), 0);
}

#[test]
fn below_the_watermark_the_disk_is_looked_at_now_and_then() {
    let mut node = guarded(21);
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.run();
    assert_eq!((node.count("Pull"), node.count("FsInfo")), (2, 1));
    node.wait(5);
    node.pull(2, authority(1, 2), &["r.test/c:1"]);
    node.run();
    assert_eq!(node.count("FsInfo"), 2);
    assert_eq!(node.pulled[&2].len(), 1);
}

#[test]
fn a_disk_that_cannot_be_seen_stops_nothing_and_a_check_says_so() {
    let mut node = guarded(0);
    node.disk = Err(error("Unimplemented", "no"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(node.report.disk, None);

    let mut node = guarded(50);
    node.check(&[]);
    node.run();
    assert_eq!(node.report.disk.unwrap().available, 50 << 20);
    assert_eq!(node.report.watermark, 80);
}

#[test]
fn progress_is_told_once_per_second_to_those_who_want_it_and_only_when_it_moves() {
    let mut node = Node::containerd(Settings::default());
    let request = PullRequest {
        progress: Some(Duration::from_millis(100)),
        ..want("r.test/a:1")
    };
    node.pull_this(1, authority(1, 1), request);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.answer("Inspect");
    for done in [10, 10, 30] {
        let bytes = Bytes {
            done,
            total: 50,
            active: true,
        };
        node.bytes.insert("r.test/a:1".to_owned(), bytes);
        node.now = node.now.after(Duration::from_millis(999));
        node.poll();
        assert!(
            node.calls
                .iter()
                .all(|(_, call)| !matches!(call, Call::Progress(_)))
        );
        node.now = node.now.after(Duration::from_millis(1));
        node.poll();
        node.answer("Progress");
    }
    let told: Vec<u64> = node.progress[&1].iter().map(|p| p.bytes.done).collect();
    assert_eq!(told, [10, 30]);
    assert!(!node.progress.contains_key(&2));
}

/// Lets a pull go on for so long, with so many bytes there, and answers looks at them.
fn go_on(node: &mut Node, seconds: u64, bytes: Option<Bytes>) {
    node.bytes.clear();
    if let Some(bytes) = bytes {
        node.bytes.insert("r.test/a:1".to_owned(), bytes);
    }
    for _ in 0..seconds {
        node.wait(1);
        if node
            .calls
            .iter()
            .any(|(_, call)| matches!(call, Call::Progress(_)))
        {
            node.answer("Progress");
        }
    }
}

#[test]
fn the_no_progress_limit_runs_only_while_something_is_being_fetched() {
    let bytes = |done, active| {
        Some(Bytes {
            done,
            total: 9,
            active,
        })
    };
    let mut node = Node::containerd(Settings::default());
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    go_on(&mut node, 110, bytes(1, true));
    go_on(&mut node, 110, bytes(2, true));
    go_on(&mut node, 1000, bytes(9, false));
    go_on(&mut node, 1000, None);
    assert!(!node.pulled.contains_key(&1), "{:?}", node.pulled);
    go_on(&mut node, 140, bytes(3, true));
    assert_eq!(node.failure(1), "NoProgress");
    assert_eq!(node.count("cancel Pull"), 1);
}

#[test]
fn the_fallback_deadline_holds_where_no_byte_is_seen() {
    for (seen, ended) in [(false, true), (true, false)] {
        let mut node = Node::containerd(Settings::default());
        let request = PullRequest {
            fallback_deadline: Some(Duration::from_secs(300)),
            ..want("r.test/a:1")
        };
        node.pull_this(1, authority(1, 1), request);
        node.answer("Inspect");
        for done in 0..31 {
            let bytes = Bytes {
                done,
                total: 99,
                active: true,
            };
            go_on(&mut node, 10, seen.then_some(bytes));
        }
        assert_eq!(node.pulled.contains_key(&1), ended, "seen: {seen}");
    }
}

#[test]
fn the_nodes_own_credentials_are_asked_for_when_those_of_the_request_are_used_up() {
    let settings = Settings {
        credential_providers: true,
        ..Settings::default()
    };
    let mut node = Node::set(settings.clone());
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.provided = (vec![CredentialId(7)], None);
    let with = PullRequest {
        credentials: vec![CredentialId(1)],
        ..want("r.test/a:1")
    };
    node.pull_this(1, authority(1, 1), with);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
    let calls: Vec<&str> = node
        .log
        .iter()
        .map(|line| line.split('(').next().unwrap())
        .collect();
    assert_eq!(calls, ["Inspect", "Pull", "Credentials", "Pull", "Inspect"]);

    // Anonymously only when there are none at all, and then why there are none is told.
    let mut node = Node::set(settings);
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.provided = (
        Vec::new(),
        Some("credential provider x: no such file".to_owned()),
    );
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull(\"r.test/a:1\", None)"), 1);
    let PullResult::Failed { reason, message } = node.result(1) else {
        panic!("{:?}", node.result(1));
    };
    assert_eq!(reason, "Unauthorized");
    assert!(
        message.ends_with("; credential provider x: no such file"),
        "{message}"
    );
}

#[test]
fn more_than_fits_in_memory_is_refused_as_a_whole() {
    let mut node = Node::new();
    let names: Vec<String> = (0..10_000).map(|i| format!("r.test/i{i}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for caller in 1..=100 {
        node.pull(caller, authority(1, caller), &names);
    }
    assert_eq!(node.overloaded.len(), 99);
    assert_eq!(node.attached.len(), 1);
    let kept = node.queue.remembers();
    assert!(kept < 30_000, "{kept}");
}

#[test]
fn what_has_ended_makes_room_for_new_requests() {
    let mut node = Node::set(Settings {
        most_open: 100,
        ..Settings::default()
    });
    for round in 1..=5 {
        let names: Vec<String> = (0..90).map(|i| format!("r.test/i{i}:{round}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        node.pull(round, authority(1, round), &names);
        node.run();
        assert_eq!(node.pulled[&round].len(), 90);
    }
    assert!(node.overloaded.is_empty());
}

/// What is only named takes no task: a busy node has many wishes, and its removals go on.
#[test]
fn a_removal_beside_fifty_thousand_wanted_names_has_room() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    let wanted: Vec<String> = (0..50_000).map(|i| format!("r.test/w{i}:1")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &wanted, &[]);
    node.run();
    assert!(node.overloaded.is_empty());
    assert_eq!(node.removed[&1][0].result, RemoveResult::Removed);
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
                    let retention = [Retention::Default, Retention::Pinned][pick % 2];
                    let progress = Some(Duration::from_secs(1));
                    let images = names.iter().map(|name| PullRequest {
                        retention,
                        progress,
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
