//! Calls from controllers to pullers, as encoded messages over a network that loses, delays and
//! repeats them.

mod checks;
mod replies;
mod rogue;

pub use checks::Checks;

use kubefledged_contract::{
    MESSAGE_LIMIT, SILENCE_LIMIT, checks::PIECE_LIMIT, controller as contract,
};
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CancelPulls, CredentialScope, Event as EngineEvent, PullItem,
    SecretProblems, Work,
};
use kubefledged_image::credentials::Keyring;
use kubefledged_proto::puller::{Credential, PullImagesRequest, Ticket, TicketClaims};
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
    /// In which term.
    pub term: u64,
    /// Of its batch.
    pub images: usize,
    /// Outcomes that may still come.
    pub open: usize,
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

/// A process of a puller.
#[derive(Clone, Copy, Debug)]
pub struct To {
    /// On which node.
    pub node: usize,
    /// Which of the node's processes.
    pub incarnation: u32,
}

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// For which batch.
    pub batch: BatchId,
    /// In which term.
    pub term: u64,
    /// Of its batch.
    pub images: usize,
    /// What for.
    pub purpose: Purpose,
}

impl Link {
    /// Where it goes.
    pub fn to(&self) -> To {
        To {
            node: self.node,
            incarnation: self.incarnation,
        }
    }
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
                let mut request = contract::pull_request(batch, images, &keyring);
                sign(&mut request, batch, images);
                self.check_credentials(&request);
                (Purpose::Pull, request.encode_to_vec())
            }
            Work::Remove {
                references,
                desired: wanted,
                releasable,
                only_pulled,
                unpin,
            } => {
                let (some, all) = (only_pulled, references);
                let request = contract::remove_request(batch, all, wanted, releasable, some, unpin);
                (Purpose::Remove, request.encode_to_vec())
            }
            Work::Check { .. } => {
                let piece = self.first_piece(who, batch, node);
                (Purpose::Check, piece.encode_to_vec())
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
        let sent = Sent {
            batch: batch.id,
            term: batch.term,
            images: images(&batch.work),
            purpose,
        };
        self.send(who, sent, To { node, incarnation }, bytes);
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
            let sent = Sent {
                batch: cancel.batch,
                term: cancel.term,
                images: 0,
                purpose: Purpose::Cancel,
            };
            self.send(who, sent, To { node, incarnation }, bytes);
        }
    }

    fn send(&mut self, who: usize, sent: Sent, To { node, incarnation }: To, bytes: Vec<u8>) {
        let Sent {
            batch,
            term,
            images,
            purpose,
        } = sent;
        self.absorb_bytes(&bytes);
        let life = self.controllers[who].life;
        let link = |listens| Link {
            who,
            life,
            batch,
            term,
            images,
            open: images,
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
        let patience = match purpose {
            Purpose::Check => PIECE_LIMIT.as_secs() * 1_000,
            _ => silence(),
        };
        self.after(patience, Event::Silence(id));
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
        let caches = batch.work.caches().into_iter().cloned().collect();
        let useless = SecretProblems { missing, unusable };
        let event = EngineEvent::SecretsRead(caches, scope.clone(), useless);
        let life = self.controllers[who].life;
        self.after(5, Event::Tell(who, life, Box::new(event)));
        Some(keyring)
    }

    fn end_batch(&mut self, who: usize, batch: BatchId, end: BatchEnd, wait: u64) {
        self.controllers[who].checks.forget(batch);
        let life = self.controllers[who].life;
        let event = EngineEvent::BatchEnded(batch, end);
        self.after(wait, Event::Tell(who, life, Box::new(event)));
    }
}

/// Adds the tickets with which a node takes layers from others. Nobody verifies signatures here.
fn sign(request: &mut PullImagesRequest, batch: &Batch, items: &[PullItem]) {
    for (image, item) in request.images.iter_mut().zip(items) {
        image.ticket = item.peers.as_ref().map(|peers| Ticket {
            claims: TicketClaims {
                node_name: batch.node.to_string(),
                digest: peers.digest.to_string(),
                not_after: i64::MAX,
            }
            .encode_to_vec(),
            signature: Vec::new(),
        });
    }
}

/// Images that a batch is about.
fn images(work: &Work) -> usize {
    match work {
        Work::Pull { images, .. } => images.len(),
        Work::Remove {
            references, unpin, ..
        } => references.len() + unpin.len(),
        Work::Check { references } => references.len(),
    }
}
