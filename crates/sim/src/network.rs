//! Calls from controllers to pullers, as encoded messages over a network that loses, delays and
//! repeats them.

use kubefledged_contract::{MESSAGE_LIMIT, SILENCE_LIMIT, controller as contract};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CancelPulls, CredentialScope, Event as EngineEvent, SecretProblems,
    Work,
};
use kubefledged_image::credentials::Keyring;
use kubefledged_proto::puller::{
    CheckImagesResponse, Credential, PullImagesResponse, RemoveImagesResponse,
};
use kubefledged_queue::StreamId;
use prost::Message as _;

use crate::{
    registry::{PRIVATE, USER},
    script::Trouble,
    world::{Event, World},
};

/// Time limit for making a connection, in milliseconds.
const CONNECT_LIMIT: u64 = 2_000;

/// Milliseconds after which a caller gives up a stream on which it hears nothing.
fn silence() -> u64 {
    SILENCE_LIMIT.as_secs() * 1_000
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `PullImages`
    Pull,
    /// `RemoveImages`
    Remove,
    /// `CheckImages`
    Check,
    /// `CancelPulls`
    Cancel,
}

/// One call.
#[derive(Debug)]
pub struct Link {
    /// Which controller made it.
    pub who: usize,
    /// In which of its lives.
    pub life: u32,
    /// For which batch.
    pub batch: BatchId,
    /// What for.
    pub purpose: Purpose,
    /// To which node.
    pub node: usize,
    /// To which process there.
    pub incarnation: u32,
    /// The stream there, once it has arrived.
    pub stream: Option<StreamId>,
    /// The caller listens.
    pub listens: bool,
    /// Nothing passes any more.
    pub broken: bool,
    /// The puller knows that nobody listens.
    pub closed: bool,
    last: u64,
}

/// What a puller sends back.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A message.
    Message(Vec<u8>),
    /// No more messages.
    Done,
    /// A later term was seen.
    Refused(u64),
    /// It keeps too much in memory already.
    Overloaded,
}

/// Who a broken stream is the fault of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller is gone.
    Client,
    /// The puller is gone.
    Server,
    /// Neither; both learn of it some time later.
    Network,
}

impl World {
    /// A batch becomes a call.
    pub fn start_call(&mut self, who: usize, batch: &Batch) {
        let Some(node) = self.nodes.iter().position(|node| node.name == batch.node) else {
            return self.broken("known nodes", format!("a batch for {}", batch.node));
        };
        let (purpose, bytes) = match &batch.work {
            Work::Pull {
                images,
                credentials,
            } => {
                let Some(keyring) = self.resolve(who, batch, credentials) else {
                    let why = BatchEnd::CredentialsFailed("cannot read imagePullSecrets".into());
                    return self.end_batch(who, batch.id, why, 100);
                };
                let request = contract::pull_request(batch, images, &keyring);
                self.check_credentials(&request);
                (Purpose::Pull, request.encode_to_vec())
            }
            Work::Remove {
                references,
                desired: wanted,
                releasable,
                unpin,
            } => {
                let request =
                    contract::remove_request(batch, references, wanted, releasable, unpin);
                (Purpose::Remove, request.encode_to_vec())
            }
            Work::Check { references } => {
                let request = contract::check_request(batch, references);
                (Purpose::Check, request.encode_to_vec())
            }
        };
        self.note(|| {
            format!(
                "c{who} -> {} batch {} {:?}",
                batch.node, batch.id.0, batch.work
            )
        });
        if bytes.len() > MESSAGE_LIMIT {
            self.broken("message size", format!("{} bytes", bytes.len()));
        }
        if self.is(Trouble::CutOff(node)) {
            return self.end_batch(who, batch.id, BatchEnd::Unreachable, CONNECT_LIMIT);
        }
        let process = self.nodes[node].process.as_ref();
        let Some(process) = process.filter(|p| p.puller.address == batch.puller.address) else {
            return self.end_batch(who, batch.id, BatchEnd::Unreachable, 10);
        };
        let incarnation = process.incarnation;
        self.send(who, batch.id, purpose, node, incarnation, bytes);
    }

    /// The end of interests becomes a call.
    pub fn cancel_call(&mut self, who: usize, cancel: &CancelPulls) {
        self.note(|| format!("c{who} -> {} cancel {:?}", cancel.node, cancel.references));
        let bytes = contract::cancel_request(cancel).encode_to_vec();
        let node = self.nodes.iter().position(|node| node.name == cancel.node);
        if let Some(node) = node.filter(|node| !self.is(Trouble::CutOff(*node)))
            && let Some(process) = &self.nodes[node].process
            && process.puller.address == cancel.puller.address
        {
            let incarnation = process.incarnation;
            self.send(who, cancel.batch, Purpose::Cancel, node, incarnation, bytes);
        }
    }

    fn send(
        &mut self,
        who: usize,
        batch: BatchId,
        purpose: Purpose,
        node: usize,
        incarnation: u32,
        bytes: Vec<u8>,
    ) {
        self.absorb_bytes(&bytes);
        let life = self.controllers[who].life;
        let link = |listens| Link {
            who,
            life,
            batch,
            purpose,
            node,
            incarnation,
            stream: None,
            listens,
            broken: false,
            closed: false,
            last: 0,
        };
        let id = self.number();
        self.links.insert(id, link(true));
        self.after(silence(), Event::Silence(id));
        if self.hits(Trouble::CallsLost(node), 40) {
            return;
        }
        if self.hits(Trouble::CallsTwice(node), 40) {
            let twin = self.number();
            self.links.insert(twin, link(false));
            let wait = self.rng.between(1, 5_000);
            self.after(wait, Event::Request(twin, bytes.clone()));
        }
        let late = self.hits(Trouble::CallsLate(node), 40);
        let wait = self.rng.between(1, if late { 90_000 } else { 15 });
        self.after(wait, Event::Request(id, bytes));
    }

    /// What the Secrets of a scope hold, if they can be read.
    fn resolve(
        &mut self,
        who: usize,
        batch: &Batch,
        scope: &CredentialScope,
    ) -> Option<Keyring<Credential>> {
        if scope.secrets.is_empty() && scope.service_account.is_none() {
            return Some(Keyring::default());
        }
        if self.is(Trouble::ApiUnreachable(who)) || self.hits(Trouble::SecretsUnreadable, 70) {
            return None;
        }
        let mut keyring = Keyring::default();
        let (mut missing, mut unusable) = (Vec::new(), Vec::new());
        let robot = scope.service_account.iter().map(|_| "right");
        for name in scope.secrets.iter().map(String::as_str).chain(robot) {
            let user = match name {
                "right" => USER,
                "wrong" => "stranger",
                "malformed" => {
                    unusable.push((name.to_owned(), "it is no JSON".to_owned()));
                    continue;
                }
                _ => {
                    missing.push(name.to_owned());
                    continue;
                }
            };
            for host in [PRIVATE, "elsewhere.test"] {
                let credential = Credential::login(&format!("{user}@{host}"), "secret");
                keyring.add(host, credential);
            }
        }
        if let Some(cache) = &batch.cache {
            let useless = SecretProblems { missing, unusable };
            let event = EngineEvent::SecretsRead(cache.clone(), useless);
            let life = self.controllers[who].life;
            self.after(5, Event::Tell(who, life, Box::new(event)));
        }
        Some(keyring)
    }

    fn end_batch(&mut self, who: usize, batch: BatchId, end: BatchEnd, wait: u64) {
        let life = self.controllers[who].life;
        let event = EngineEvent::BatchEnded(batch, end);
        self.after(wait, Event::Tell(who, life, Box::new(event)));
    }

    // === what comes back

    /// A puller sends something to a caller.
    pub fn reply(&mut self, id: u64, reply: Reply) {
        let Some(node) = self.links.get(&id).map(|link| link.node) else {
            return;
        };
        if self.hits(Trouble::StreamsBreak(node), 20) {
            return self.break_links_by(Side::Network, &[id]);
        }
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
        if !self.awake(who, life, || Event::Reply(id, reply.clone())) {
            return;
        }
        if purpose == Purpose::Cancel {
            self.links.remove(&id);
            return;
        }
        let mut events = Vec::new();
        let mut over = purpose == Purpose::Check;
        match reply {
            Reply::Message(bytes) => {
                match decoded(purpose, batch, &bytes) {
                    Ok(told) => events.extend(told),
                    Err(error) => self.broken("messages decode", error.to_string()),
                }
                if over {
                    events.push(EngineEvent::BatchEnded(batch, BatchEnd::Done));
                }
            }
            Reply::Done => {
                over = true;
                events.push(EngineEvent::BatchEnded(batch, BatchEnd::Done));
            }
            Reply::Overloaded => {
                over = true;
                events.push(EngineEvent::BatchEnded(batch, BatchEnd::Lost));
            }
            Reply::Refused(seen_term) => {
                over = true;
                let end = BatchEnd::Refused { seen_term };
                events.push(EngineEvent::BatchEnded(batch, end));
            }
        }
        if over {
            self.links.remove(&id);
        }
        for event in events {
            self.engine_told(who, event);
        }
    }

    /// A call whose request has not arrived, or a look that is not answered, is given up.
    pub fn silence(&mut self, id: u64) {
        let arrived = |link: &Link| link.stream.is_some() && link.purpose != Purpose::Check;
        if self.links.get(&id).is_some_and(|link| !arrived(link)) {
            self.lost(id);
        }
    }

    /// The caller knows that it will hear nothing more.
    pub fn lost(&mut self, id: u64) {
        let Some(link) = self.links.get(&id).filter(|link| link.listens) else {
            return;
        };
        let (who, life) = (link.who, link.life);
        if !self.awake(who, life, || Event::Lost(id)) {
            return;
        }
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.listens = false;
        let batch = link.batch;
        let cancel = link.purpose == Purpose::Cancel;
        let arrived = link.stream.is_some();
        if link.closed {
            self.links.remove(&id);
        } else if arrived {
            let wait = self.rng.below(5_000);
            self.after(wait, Event::Closed(id));
        }
        if !cancel {
            self.engine_told(who, EngineEvent::BatchEnded(batch, BatchEnd::Lost));
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

fn decoded(
    purpose: Purpose,
    batch: BatchId,
    bytes: &[u8],
) -> Result<Vec<EngineEvent>, prost::DecodeError> {
    let outcomes = match purpose {
        Purpose::Pull => contract::pulled(PullImagesResponse::decode(bytes)?),
        Purpose::Remove => contract::removed(RemoveImagesResponse::decode(bytes)?),
        Purpose::Check => {
            let (outcomes, report) = contract::checked(CheckImagesResponse::decode(bytes)?);
            let outcomes = EngineEvent::Outcomes(batch, outcomes);
            return Ok(vec![outcomes, EngineEvent::Checked(batch, report)]);
        }
        Purpose::Cancel => None,
    };
    let told = outcomes.map(|outcomes| EngineEvent::Outcomes(batch, outcomes));
    Ok(told.into_iter().collect())
}
