//! What comes back from pullers, and how callers learn that nothing will.

use kubefledged_api_types::names::failure;
use kubefledged_contract::controller as contract;
use kubefledged_engine::{
    BatchEnd, CheckReport, Event as EngineEvent, ImageOutcome, ImageResult, Transfer,
};
use kubefledged_proto::puller::{CheckImagesResponse, PullImagesResponse, RemoveImagesResponse};
use prost::Message as _;

use super::{Link, Purpose, Reply, Side, silence};
use crate::{
    script::Trouble,
    world::{Event, World},
};

impl World {
    /// A puller sends something to a caller.
    pub fn reply(&mut self, id: u64, reply: Reply) {
        let Some(node) = self.links.get(&id).map(|link| link.node) else {
            return;
        };
        if self.hits(Trouble::StreamsBreak(node), 20) {
            return self.break_links_by(Side::Network, &[id]);
        }
        let reply = self.told_by_a_rogue(id, node, reply);
        let latency = self.rng.between(1, 15);
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.broken) else {
            return;
        };
        // Messages of one stream stay in order.
        link.last = (self.now + latency).max(link.last + 1);
        let at = link.last;
        self.at(at, Event::Reply(id, reply));
    }

    /// It arrives.
    pub fn reply_arrives(&mut self, id: u64, reply: Reply) {
        let Some(link) = self
            .links
            .get(&id)
            .filter(|link| link.listens && !link.broken)
        else {
            return;
        };
        let (who, life, batch, purpose) = (link.who, link.life, link.batch, link.purpose);
        let (node, term) = (link.node, link.term);
        if !self.awake(who, life, || Event::Reply(id, reply.clone())) {
            return;
        }
        if purpose == Purpose::Cancel {
            self.links.remove(&id);
            return;
        }
        match reply {
            Reply::Message(bytes) => self.message_arrives(id, &bytes),
            Reply::Done => {
                self.links.remove(&id);
                self.engine_told(who, EngineEvent::BatchEnded(batch, BatchEnd::Done));
            }
            Reply::Overloaded => {
                let images = self.links.remove(&id).map_or(0, |link| link.images);
                self.controllers[who].checks.forget(batch);
                let outcomes = (0..images).map(|index| ImageOutcome::new(index, busy()));
                let outcomes = EngineEvent::Outcomes(batch, outcomes.collect());
                self.engine_told(who, outcomes);
                self.engine_told(who, EngineEvent::BatchEnded(batch, BatchEnd::Done));
            }
            Reply::Refused(seen_term) => {
                if seen_term > term {
                    self.term_claimed(who, node, seen_term, term);
                }
                self.given_up(id, BatchEnd::Refused);
            }
        }
    }

    fn message_arrives(&mut self, id: u64, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let (who, batch) = (link.who, link.batch);
        let told = match decoded(link.purpose, bytes) {
            Ok(told) => told,
            Err(error) => return self.broken("messages decode", error.to_string()),
        };
        match told {
            Told::Nothing => {}
            Told::Transfers(transfers) => {
                self.engine_told(who, EngineEvent::Transfers(batch, transfers));
            }
            Told::Check(outcomes, report) => self.piece_answered(id, outcomes, report),
            Told::Outcomes(outcomes) => {
                let Some(open) = link.open.checked_sub(outcomes.len()) else {
                    // More than it was asked about.
                    return self.lost(id);
                };
                link.open = open;
                self.engine_told(who, EngineEvent::Outcomes(batch, outcomes));
            }
        }
    }

    /// A call whose request has not arrived, or a piece of a check that is not answered, is given up.
    pub fn silence(&mut self, id: u64) {
        let Some(link) = self.links.get(&id).filter(|link| link.listens) else {
            return;
        };
        let (who, life) = (link.who, link.life);
        let check = link.purpose == Purpose::Check;
        if link.stream.is_some() && !check {
            return;
        }
        if check && !link.broken {
            if self.awake(who, life, || Event::Silence(id)) {
                self.piece_late(id);
            }
            return;
        }
        self.lost(id);
    }

    /// The caller knows that it will hear nothing more.
    pub fn lost(&mut self, id: u64) {
        self.given_up(id, BatchEnd::Lost);
    }

    /// The caller listens no more, and its batch ends so.
    pub fn given_up(&mut self, id: u64, end: BatchEnd) {
        let Some(link) = self.links.get(&id).filter(|link| link.listens) else {
            return;
        };
        let (who, life, batch) = (link.who, link.life, link.batch);
        let cancel = link.purpose == Purpose::Cancel;
        if !self.awake(who, life, || Event::Lost(id)) {
            return;
        }
        self.hang_up(id);
        if !cancel {
            self.controllers[who].checks.forget(batch);
            self.engine_told(who, EngineEvent::BatchEnded(batch, end));
        }
    }

    /// The caller listens no more; the puller learns of it some time later.
    pub fn hang_up(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.listens = false;
        let arrived = link.stream.is_some();
        if link.closed {
            self.links.remove(&id);
        } else if arrived {
            let wait = self.rng.below(5_000);
            self.after(wait, Event::Closed(id));
        }
    }

    /// Streams break.
    pub fn break_links(&mut self, side: Side, which: impl Fn(&Link) -> bool) {
        let chosen = self.links.iter().filter(|(_, link)| which(link));
        let ids: Vec<u64> = chosen.map(|(id, _)| *id).collect();
        self.break_links_by(side, &ids);
    }

    fn break_links_by(&mut self, side: Side, ids: &[u64]) {
        for id in ids {
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            link.broken = true;
            if side == Side::Client {
                link.listens = false;
            } else {
                let most = if side == Side::Server { 50 } else { silence() };
                let wait = self.rng.between(1, most);
                self.after(wait, Event::Lost(*id));
            }
            if side != Side::Server {
                let wait = self.rng.between(1, 60_000);
                self.after(wait, Event::Closed(*id));
            }
        }
    }
}

enum Told {
    Nothing,
    Outcomes(Vec<ImageOutcome>),
    Transfers(Vec<Transfer>),
    Check(Vec<ImageOutcome>, CheckReport),
}

fn decoded(purpose: Purpose, bytes: &[u8]) -> Result<Told, prost::DecodeError> {
    let outcomes = match purpose {
        Purpose::Pull => {
            let message = PullImagesResponse::decode(bytes)?;
            if let Some(transfers) = contract::transfers(&message) {
                return Ok(Told::Transfers(transfers));
            }
            contract::pulled(message)
        }
        Purpose::Remove => contract::removed(RemoveImagesResponse::decode(bytes)?),
        Purpose::Check => {
            let (outcomes, report) = contract::checked(CheckImagesResponse::decode(bytes)?);
            return Ok(Told::Check(outcomes, report));
        }
        Purpose::Cancel => None,
    };
    Ok(outcomes.map_or(Told::Nothing, Told::Outcomes))
}

/// Of every image of a batch that the puller had no room for.
fn busy() -> ImageResult {
    ImageResult::Failed {
        reason: failure::PULLER_BUSY.to_owned(),
        message: "the puller has too much to do".to_owned(),
    }
}
