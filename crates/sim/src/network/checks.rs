//! Checks are asked in pieces as large as the node answers in time, as the controller's `effects/pullers.rs` does
//! it.

use std::{collections::BTreeMap, time::Duration};

use kubefledged_contract::{
    checks::{PieceSizes, has_time},
    controller as contract,
};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CheckReport, Event as EngineEvent, ImageOutcome, Work,
};
use kubefledged_proto::puller::CheckImagesRequest;
use prost::Message as _;

use super::{Purpose, Sent, To};
use crate::world::World;

/// The checks of one controller.
#[derive(Debug, Default)]
pub struct Checks {
    running: BTreeMap<BatchId, Check>,
    sizes: PieceSizes<usize>,
}

#[derive(Debug)]
struct Check {
    batch: Batch,
    began: u64,
    /// Images that were answered.
    done: usize,
    /// Images of the piece under way, and since when.
    asked: usize,
    since: u64,
}

impl Check {
    fn references(&self) -> usize {
        match &self.batch.work {
            Work::Check { references } => references.len(),
            _ => 0,
        }
    }

    fn has_time(&self, now: u64) -> bool {
        has_time(Duration::from_millis(now - self.began))
    }

    fn next(&mut self, size: usize, now: u64) -> CheckImagesRequest {
        let Work::Check { references } = &self.batch.work else {
            return CheckImagesRequest::default();
        };
        let piece = &references[self.done..(self.done + size).min(references.len())];
        self.asked = piece.len();
        self.since = now;
        contract::check_request(&self.batch, piece)
    }
}

impl Checks {
    /// The batch has ended otherwise.
    pub fn forget(&mut self, batch: BatchId) {
        self.running.remove(&batch);
    }
}

impl World {
    /// The first piece of a check.
    pub fn first_piece(&mut self, who: usize, batch: &Batch, node: usize) -> CheckImagesRequest {
        let now = self.now;
        let checks = &mut self.controllers[who].checks;
        let size = checks.sizes.of(&node);
        let mut check = Check {
            batch: batch.clone(),
            began: now,
            done: 0,
            asked: 0,
            since: now,
        };
        let request = check.next(size, now);
        checks.running.insert(batch.id, check);
        request
    }

    fn next_piece(&mut self, who: usize, batch: BatchId, to: To) {
        let now = self.now;
        let checks = &mut self.controllers[who].checks;
        let size = checks.sizes.of(&to.node);
        let Some(check) = checks.running.get_mut(&batch) else {
            return;
        };
        let bytes = check.next(size, now).encode_to_vec();
        let sent = Sent {
            batch,
            term: check.batch.term,
            images: check.references(),
            purpose: Purpose::Check,
        };
        self.send(who, sent, to, bytes);
    }

    /// A piece is answered.
    pub fn piece_answered(
        &mut self,
        id: u64,
        mut outcomes: Vec<ImageOutcome>,
        report: CheckReport,
    ) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let (who, batch, term, to) = (link.who, link.batch, link.term, link.to());
        let now = self.now;
        let Checks { running, sizes } = &mut self.controllers[who].checks;
        let Some(check) = running.get_mut(&batch) else {
            self.links.remove(&id);
            return;
        };
        if outcomes.len() > check.asked {
            // More than it was asked about.
            return self.lost(id);
        }
        let first = check.done == 0;
        for outcome in &mut outcomes {
            outcome.index = outcome.index.saturating_add(check.done);
        }
        let took = Duration::from_millis(now - check.since);
        sizes.answered(&to.node, check.asked, took);
        check.done += check.asked;
        let over = check.done >= check.references() || !check.has_time(now);
        if over {
            running.remove(&batch);
        }
        self.links.remove(&id);
        self.term_claimed(who, to.node, report.highest_term, term);
        if first {
            self.engine_told(who, EngineEvent::Checked(batch, report));
        }
        self.engine_told(who, EngineEvent::Outcomes(batch, outcomes));
        if over {
            self.engine_told(who, EngineEvent::BatchEnded(batch, BatchEnd::Done));
        } else {
            self.next_piece(who, batch, to);
        }
    }

    /// A piece is not answered in time: less is asked.
    pub fn piece_late(&mut self, id: u64) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let (who, batch, to) = (link.who, link.batch, link.to());
        let now = self.now;
        let Checks { running, sizes } = &mut self.controllers[who].checks;
        let Some(check) = running.get(&batch) else {
            return self.lost(id);
        };
        let smaller = sizes.late(&to.node, check.asked);
        let (again, done) = (smaller && check.has_time(now), check.done > 0);
        if again {
            self.hang_up(id);
            return self.next_piece(who, batch, to);
        }
        let end = if done { BatchEnd::Done } else { BatchEnd::Lost };
        self.given_up(id, end);
    }
}
