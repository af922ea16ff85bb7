//! Pulls of the simulated nodes.

use std::sync::atomic::Ordering;

use kubefledged_proto::puller::{PullOutcome, PullResult};
use tokio::time::Instant;

use super::{Fleet, SimNode, State, image_id, peers::Taken, repo_digests};
use crate::model::{BASES, Model};

impl Fleet {
    /// Pulls one image for a batch and says what became of it.
    pub async fn pull(
        &self,
        node: usize,
        batch: (u64, u64),
        index: usize,
        reference: &str,
        peers: &[usize],
    ) -> PullOutcome {
        let image = self.image(reference);
        let at = &self.nodes[node];
        let outcome = |result: PullResult| PullOutcome {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            result: result.into(),
            ..PullOutcome::default()
        };
        let model = self.model();
        let there = |result: PullResult| PullOutcome {
            size_bytes: model.own_bytes + model.base_bytes,
            image_id: image_id(image),
            repo_digests: repo_digests(reference, image),
            ..outcome(result)
        };
        let failed = |reason: &str, message: &str| PullOutcome {
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..outcome(PullResult::Failed)
        };
        if let Some((reason, message)) = model.refuses(reference) {
            return failed(&reason, &message);
        }
        let Ok(_slot) = at.slots.acquire().await else {
            return outcome(PullResult::Cancelled);
        };
        let bytes = loop {
            let finished = at.finished.notified();
            match at.begin(&model, node, image, batch) {
                Begin::Present => return there(PullResult::Present),
                Begin::Cancelled => return outcome(PullResult::Cancelled),
                Begin::Fails => return failed("ErrImagePull", "the model says so"),
                Begin::Transfer(bytes) => break bytes,
                // Somebody else's pull of the same image: theirs is ours.
                Begin::Attached => finished.await,
            }
        };
        let taken = Taken {
            node,
            image,
            bytes,
            peers,
        };
        if let Some(arrival) = self.taken_from_peers(&model, taken).await {
            tokio::time::sleep_until(arrival).await;
            return self.pulled(at, image, there(PullResult::Pulled));
        }
        let Some(_entered) = self.registry.enter(model.registry_limit) else {
            at.end(image, false);
            return failed("RateLimited", "429 Too Many Requests");
        };
        let arrival = self
            .registry
            .arrival(&model, node, bytes, &mut at.lock().line);
        if arrival > Instant::now() {
            tokio::time::sleep_until(arrival).await;
        }
        self.pulled(at, image, there(PullResult::Pulled))
    }

    fn pulled(&self, at: &SimNode, image: usize, outcome: PullOutcome) -> PullOutcome {
        self.counters.pulled.fetch_add(1, Ordering::Relaxed);
        if !at.end(image, true) {
            self.counters.pulled_again.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// The same for a whole batch in a world where pulls take no time: no await, no task.
    pub fn pull_at_once(&self, node: usize, references: &[String]) -> Vec<PullOutcome> {
        let model = self.model();
        let images: Vec<usize> = references.iter().map(|name| self.image(name)).collect();
        let mut state = self.nodes[node].lock();
        let mut pulled = 0;
        let outcomes = images
            .into_iter()
            .zip(references)
            .enumerate()
            .map(|(index, (image, reference))| {
                let mut outcome = PullOutcome {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    image_id: image_id(image),
                    repo_digests: repo_digests(reference, image),
                    ..PullOutcome::default()
                };
                if state.held.contains(image) {
                    outcome.result = PullResult::Present.into();
                } else if let Some((reason, message)) = model.refuses(reference) {
                    outcome = PullOutcome {
                        index: outcome.index,
                        result: PullResult::Failed.into(),
                        reason,
                        message,
                        ..PullOutcome::default()
                    };
                } else if state.fails(&model, node, image) {
                    outcome = PullOutcome {
                        index: outcome.index,
                        result: PullResult::Failed.into(),
                        reason: "ErrImagePull".into(),
                        ..PullOutcome::default()
                    };
                } else {
                    state.held.grow_and_insert(image);
                    pulled += 1;
                    outcome.result = PullResult::Pulled.into();
                }
                outcome
            })
            .collect();
        self.counters.pulled.fetch_add(pulled, Ordering::Relaxed);
        outcomes
    }
}

enum Begin {
    Present,
    Cancelled,
    Fails,
    Attached,
    /// So many bytes are missing.
    Transfer(u64),
}

impl SimNode {
    fn begin(&self, model: &Model, node: usize, image: usize, batch: (u64, u64)) -> Begin {
        let mut state = self.lock();
        if state.cancelled.contains(&batch) {
            return Begin::Cancelled;
        }
        if state.held.contains(image) {
            return Begin::Present;
        }
        if state.fails(model, node, image) {
            return Begin::Fails;
        }
        if !state.pulling.insert(image) {
            return Begin::Attached;
        }
        let base = if state.bases.contains(&(image % BASES)) {
            0
        } else {
            model.base_bytes
        };
        Begin::Transfer(model.own_bytes + base)
    }

    /// False: it was there already.
    fn end(&self, image: usize, there: bool) -> bool {
        let mut state = self.lock();
        state.pulling.remove(&image);
        let mut new = true;
        if there {
            new = !state.held.contains(image);
            state.held.grow_and_insert(image);
            state.bases.insert(image % BASES);
        }
        self.finished.notify_waiters();
        new
    }
}

impl State {
    fn fails(&mut self, model: &Model, node: usize, image: usize) -> bool {
        let fails = model.fails(node, image) && !self.failed_once.contains(image);
        if fails {
            self.failed_once.grow_and_insert(image);
        }
        fails
    }
}
