//! Stories and a property, played against a runtime of a few lines.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

/// Answers calls when told to.
struct Node {
    queue: Queue,
    now: Tick,
    images: BTreeMap<String, Image>,
    containers: Vec<Container>,
    broken: BTreeMap<String, CallError>,
    calls: Vec<(CallId, Call)>,
    log: Vec<String>,
    pulled: BTreeMap<u64, Vec<PullOutcome>>,
    removed: BTreeMap<u64, Vec<RemoveOutcome>>,
    checked: Vec<Checked>,
    done: Vec<u64>,
    refused: Vec<u64>,
    most_pulls: usize,
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
        policy: Policy::IfNotPresent,
        freshness: "t".to_owned(),
        priority: 0,
        deadline: None,
        credentials: Vec::new(),
        credential_hash: 0,
    }
}

impl Node {
    fn new() -> Self {
        Self {
            queue: Queue::new(Settings::default()),
            now: Tick(1),
            images: BTreeMap::new(),
            containers: Vec::new(),
            broken: BTreeMap::new(),
            calls: Vec::new(),
            log: Vec::new(),
            pulled: BTreeMap::new(),
            removed: BTreeMap::new(),
            checked: Vec::new(),
            done: Vec::new(),
            refused: Vec::new(),
            most_pulls: 0,
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
                    let at = self
                        .calls
                        .iter()
                        .position(|(other, _)| *other == id)
                        .unwrap();
                    let (id, call) = self.calls.remove(at);
                    self.log.push(format!("cancel {call:?}"));
                    let error = CallError {
                        code: "Cancelled".into(),
                        message: "context canceled".into(),
                    };
                    self.queue
                        .handle(self.now, Event::Answered(id, Answer::Pulled(Err(error))));
                    self.poll();
                }
                Command::Pulled(stream, outcomes) => {
                    self.pulled.entry(stream.0).or_default().extend(outcomes);
                }
                Command::Removed(stream, outcomes) => {
                    self.removed.entry(stream.0).or_default().extend(outcomes);
                }
                Command::Checked(_, answers, _) => self.checked = answers,
                Command::Done(stream) => self.done.push(stream.0),
                Command::Refused(_, seen) => self.refused.push(seen),
                Command::Accepted(..) | Command::Cancelled(..) => {}
            }
        }
        let pulls = self
            .calls
            .iter()
            .filter(|(_, call)| matches!(call, Call::Pull(..)))
            .count();
        self.most_pulls = self.most_pulls.max(pulls);
    }

    fn answer_one(&mut self, at: usize) {
        let (id, call) = self.calls.remove(at);
        let answer = match call {
            Call::Inspect(name) => Answer::Inspected(Ok(self.images.get(&name).cloned())),
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
                Answer::Removed(Ok(()))
            }
        };
        self.tell(Event::Answered(id, answer));
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.calls.is_empty() {
                return;
            }
            self.answer_one(0);
        }
        panic!("the queue does not come to rest");
    }

    fn remove(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        self.tell(Event::Remove {
            stream: StreamId(stream),
            authority,
            references: names.iter().map(ToString::to_string).collect(),
            wanted: Vec::new(),
            releasable: Vec::new(),
        });
    }

    fn pull(&mut self, stream: u64, authority: Authority, names: &[&str]) {
        let images = names.iter().map(|name| want(name)).collect();
        self.tell(Event::Pull(StreamId(stream), authority, images));
    }

    fn count(&self, call: &str) -> usize {
        self.log
            .iter()
            .filter(|line| line.starts_with(call))
            .count()
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
    let error = |message: &str| CallError {
        code: "Unknown".into(),
        message: message.into(),
    };
    node.broken
        .insert("r.test/a:1".into(), error("401 Unauthorized"));
    node.broken
        .insert("r.test/b:1".into(), error("429 Too Many Requests"));
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
    assert_eq!(
        node.pulled[&3][0].result,
        PullResult::Pulled,
        "remembered, also for a new leader"
    );
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
    node.pull(
        1,
        authority(1, 1),
        &["r.test/big:1", "r.test/big:2", "r.test/small:1"],
    );
    node.answer_one(0);
    node.answer_one(0);
    assert_eq!(node.calls.len(), 2);
    node.now = Tick(20_001);
    node.poll();
    assert_eq!(node.calls.len(), 3);
}

#[test]
fn an_unasked_cancel_is_repeated_and_a_silent_runtime_at_most_three_times() {
    let mut node = Node::new();
    let error = CallError {
        code: "Unavailable".into(),
        message: "no such file".into(),
    };
    node.broken.insert("r.test/a:1".into(), error);
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    for _ in 0..10 {
        node.run();
        node.now = node.now.after(Duration::from_secs(5));
        node.poll();
    }
    assert_eq!(node.count("Pull"), 4);
    assert!(
        matches!(&node.pulled[&1][0].result, PullResult::Failed { reason, .. } if reason == "RuntimeUnavailable")
    );
}

#[test]
fn a_check_answers_by_index_what_is_there_and_what_is_being_pulled() {
    let mut node = Node::new();
    node.hold("r.test/b:1");
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer_one(0);
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1"]
        .map(ToOwned::to_owned)
        .to_vec();
    node.tell(Event::Check(StreamId(2), names));
    while node.calls.len() > 1 {
        node.answer_one(1);
    }
    assert_eq!(node.checked[0], Checked::Pulling);
    assert!(matches!(node.checked[1], Checked::Present(_)));
    assert_eq!(node.checked[2], Checked::Absent);
}

proptest! {
    /// Whatever is asked and in whatever order the runtime answers: every request ends with one
    /// outcome per image, no more pulls run than may, and nothing is left over.
    #[test]
    fn every_image_of_every_request_has_one_outcome(
        steps in proptest::collection::vec((0_u8..4, 0_usize..5, 0_usize..8), 1..60)
    ) {
        let mut node = Node::new();
        let mut asked: BTreeMap<u64, usize> = BTreeMap::new();
        for (seq, (kind, image, pick)) in (1_u64..).zip(steps) {
            let names: Vec<String> = (0..=image).map(|i| format!("r.test/i{i}:1")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            match kind {
                0 => {
                    node.pull(seq, authority(1, seq), &names);
                    asked.insert(seq, names.len());
                }
                1 => {
                    node.remove(seq, authority(1, seq), &names);
                    asked.insert(seq, names.len());
                }
                2 => node.tell(Event::Cancel(StreamId(1000 + seq), authority(1, seq), vec![(pick as u64, Vec::new())])),
                _ => if !node.calls.is_empty() {
                    let at = pick % node.calls.len();
                    node.answer_one(at);
                },
            }
        }
        node.run();
        for (stream, count) in asked {
            let pulled = node.pulled.get(&stream).map_or(0, Vec::len);
            let removed = node.removed.get(&stream).map_or(0, Vec::len);
            prop_assert_eq!(pulled + removed, count);
            prop_assert_eq!(node.done.iter().filter(|done| **done == stream).count(), 1);
        }
        prop_assert!(node.most_pulls <= 2);
        prop_assert_eq!(node.queue.depth(), (0, 0));
    }
}
