//! Bytes of running pulls, for as long as somebody watches: which nodes are asked, and what their answers add up to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use kubefledged_engine::{CacheKey, NodeName, view::PullingRow};
use kubefledged_proto::debug::{Pull, PullState, PulledBytes, RunningPull};
use tonic::Status;

use super::{Debug, rows};
use crate::effects::queries::PullerQueries;

/// Nodes that are asked for one message. With more that pull, they take turns.
const MOST_NODES: usize = 256;
/// Questions to pullers at the same time.
const AT_ONCE: usize = 32;
/// The speed is that of so much time.
const WINDOW: Duration = Duration::from_secs(5);
/// Most pulls in one message.
const MOST_PULLS: usize = 1000;

type Key = (NodeName, String);

/// What one watcher has seen. It only grows while the watcher watches.
#[derive(Debug, Default)]
pub struct Meter {
    /// Pulls that run, with the bytes that have arrived and all of them.
    running: BTreeMap<Key, (u64, u64)>,
    /// The same of pulls that have ended, in all.
    ended: (u64, u64),
    /// When how many bytes had arrived.
    past: VecDeque<(Instant, u64)>,
    /// The node that was asked last, if not all were.
    last: Option<NodeName>,
    /// Nodes that pull, and those that answered, when they were asked last.
    nodes: (usize, usize),
}

impl Meter {
    /// Chooses the nodes to ask: all, or the next ones.
    fn turn(&mut self, pulling: &[PullingRow]) -> Vec<PullingRow> {
        let after = self.last.take();
        let first = after.map_or(0, |last| pulling.partition_point(|row| row.node <= last));
        let turn = pulling[first..].iter().chain(&pulling[..first]);
        let turn: Vec<_> = turn.take(MOST_NODES).cloned().collect();
        if turn.len() < pulling.len() {
            self.last = turn.last().map(|row| row.node.clone());
        }
        turn
    }

    /// Takes in the answer of one node. Only images that the controller has pulled there count: a node cannot tell of
    /// others.
    fn note(&mut self, asked: &PullingRow, answer: &[Pull]) {
        let ended = |pull: &Pull| pull.state() == PullState::Finished;
        let running = answer.iter().filter(|pull| !ended(pull));
        let running: BTreeSet<&str> = running.map(|pull| pull.image.as_str()).collect();
        for pull in answer {
            let key = (asked.node.clone(), pull.image.clone());
            let ended = ended(pull);
            // An earlier pull of the image, which the node still remembers.
            if ended && running.contains(pull.image.as_str()) {
                continue;
            }
            let known = self.running.contains_key(&key);
            if !known && (ended || !asked.images.contains(pull.image.as_str())) {
                continue;
            }
            let (done, total) = self.running.entry(key.clone()).or_default();
            *total = pull.total_bytes.max(*total);
            *done = pull.done_bytes.max(*done).min(*total);
            if ended {
                let all = if pull.result == "Pulled" {
                    *total
                } else {
                    *done
                };
                self.end(&key, all);
            }
        }
    }

    /// Counts pulls as ended that nobody pulls any more: without a last word of their node they had all their bytes.
    fn forget(&mut self, pulling: &[PullingRow]) {
        let pulls = |(node, image): &Key| {
            let row = pulling.binary_search_by(|row| row.node.cmp(node));
            row.is_ok_and(|at| pulling[at].images.contains(image.as_str()))
        };
        let gone = self.running.iter().filter(|(key, _)| !pulls(key));
        let gone: Vec<_> = gone
            .map(|(key, (_, total))| (key.clone(), *total))
            .collect();
        for (key, total) in gone {
            self.end(&key, total);
        }
    }

    fn end(&mut self, key: &Key, done: u64) {
        self.running.remove(key);
        self.ended.0 = self.ended.0.saturating_add(done);
        self.ended.1 = self.ended.1.saturating_add(done);
    }

    fn sums(&self) -> (u64, u64) {
        let running = self.running.values();
        running.fold(self.ended, |(done, total), (d, t)| {
            (done.saturating_add(*d), total.saturating_add(*t))
        })
    }

    /// The message's part.
    fn report(&mut self, now: Instant) -> PulledBytes {
        let (done, total) = self.sums();
        self.past.push_back((now, done));
        while self.past.len() > 2 && now.duration_since(self.past[1].0) >= WINDOW {
            self.past.pop_front();
        }
        let (since, before) = self.past[0];
        let seconds = now.duration_since(since).as_secs_f64();
        let speed = if seconds > 0.0 {
            number(done.saturating_sub(before)) / seconds
        } else {
            0.0
        };
        let left = number(total - done);
        let remaining = (speed > 0.0).then(|| Duration::try_from_secs_f64(left / speed).ok());
        PulledBytes {
            done_bytes: done,
            total_bytes: total,
            bytes_per_second: speed,
            remaining: remaining.flatten().and_then(rows::duration),
            pulling_nodes: rows::count(self.nodes.0),
            telling_nodes: rows::count(self.nodes.1),
        }
    }

    fn pulls(&self) -> Vec<RunningPull> {
        let pull = |((node, image), (done, total)): (&Key, &(u64, u64))| RunningPull {
            node: node.to_string(),
            image: image.clone(),
            done_bytes: *done,
            total_bytes: *total,
        };
        self.running.iter().map(pull).take(MOST_PULLS).collect()
    }
}

/// Bytes are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn number(bytes: u64) -> f64 {
    bytes as f64
}

impl Debug {
    /// Asks the nodes that pull, and adds up.
    pub(super) async fn bytes(
        &self,
        meter: &mut Meter,
        cache: Option<CacheKey>,
    ) -> Result<(PulledBytes, Vec<RunningPull>), Status> {
        let pulling = self.look(move |engine, _| engine.view_pulling(cache.as_ref()));
        let mut pulling = pulling.await?;
        pulling.sort_by(|one, other| one.node.cmp(&other.node));
        let turn = meter.turn(&pulling);
        let answers = stream::iter(turn).map(|row| ask(self.pullers.clone(), row));
        let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        let answered = answers
            .iter()
            .filter(|(_, answer)| answer.is_some())
            .count();
        meter.nodes = (pulling.len(), answered);
        for (row, answer) in &answers {
            meter.note(row, answer.as_deref().unwrap_or_default());
        }
        meter.forget(&pulling);
        Ok((meter.report(Instant::now()), meter.pulls()))
    }
}

async fn ask(pullers: Arc<dyn PullerQueries>, row: PullingRow) -> (PullingRow, Option<Vec<Pull>>) {
    let pulls = pullers.pulls(&row.node, &row.puller).await.ok();
    (row, pulls)
}

#[cfg(test)]
mod tests {
    use kubefledged_engine::Puller;

    use super::*;

    fn row(node: &str, image: &str) -> PullingRow {
        PullingRow {
            node: NodeName(node.into()),
            puller: Puller {
                instance: "uid".into(),
                address: ([10, 0, 0, 1], 7443).into(),
            },
            images: [Arc::from(image)].into(),
        }
    }

    fn pull(image: &str, done: u64, total: u64) -> Pull {
        Pull {
            image: image.to_owned(),
            state: PullState::Pulling.into(),
            done_bytes: done,
            total_bytes: total,
            ..Pull::default()
        }
    }

    #[test]
    fn bytes_add_up_over_nodes_and_stay_when_pulls_end() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let (one, two) = (row("n1", "a:1"), row("n2", "a:1"));
        meter.report(start);
        meter.note(&one, &[pull("a:1", 10, 100)]);
        meter.note(&two, &[pull("a:1", 30, 100)]);
        let sent = meter.report(start + Duration::from_secs(2));
        assert_eq!((sent.done_bytes, sent.total_bytes), (40, 200));
        assert_eq!(sent.remaining.unwrap().seconds, 8);
        meter.forget(std::slice::from_ref(&two));
        let sent = meter.report(start + Duration::from_secs(3));
        assert_eq!((sent.done_bytes, sent.total_bytes), (130, 200));
        assert_eq!(meter.pulls().len(), 1);
    }

    #[test]
    fn a_pull_that_failed_counts_what_arrived() {
        let mut meter = Meter::default();
        let one = row("n1", "a:1");
        meter.note(&one, &[pull("a:1", 10, 100)]);
        let failed = Pull {
            state: PullState::Finished.into(),
            result: "Failed".to_owned(),
            ..pull("a:1", 40, 100)
        };
        meter.note(&one, &[failed]);
        assert_eq!(meter.sums(), (40, 40));
    }

    #[test]
    fn an_earlier_pull_of_the_image_does_not_end_the_one_that_runs() {
        let mut meter = Meter::default();
        let one = row("n1", "a:1");
        let earlier = Pull {
            state: PullState::Finished.into(),
            result: "Pulled".to_owned(),
            ..pull("a:1", 100, 100)
        };
        for done in [10, 20] {
            meter.note(&one, &[earlier.clone(), pull("a:1", done, 100)]);
            assert_eq!(meter.sums(), (done, 100));
        }
    }

    #[test]
    fn a_node_cannot_tell_of_images_that_nobody_pulls_there() {
        let mut meter = Meter::default();
        meter.note(&row("n1", "a:1"), &[pull("b:1", 10, u64::MAX)]);
        assert_eq!(meter.sums(), (0, 0));
        meter.note(&row("n1", "a:1"), &[pull("a:1", u64::MAX, 7)]);
        assert_eq!(meter.sums(), (7, 7));
    }

    #[test]
    fn of_many_nodes_all_get_their_turn() {
        let mut meter = Meter::default();
        let pulling: Vec<_> = (0..600).map(|n| row(&format!("n{n:03}"), "a:1")).collect();
        let mut asked: Vec<_> = (0..3).flat_map(|_| meter.turn(&pulling)).collect();
        asked.sort_by(|one, other| one.node.cmp(&other.node));
        asked.dedup();
        assert_eq!(asked.len(), 600);
    }
}
