//! Leader election by a Lease. [`evaluate`] decides; [`run`] reads, writes and waits.
//!
//! The Lease's transition count is the term. Pullers refuse calls of a lower term, so a leader that was
//! replaced without knowing it can do no harm. Clocks of two machines are never compared: a standby
//! measures from when it saw the Lease change, the leader from before it requested the change. So a
//! leader that cannot renew has stopped 3 s before a standby can take its place.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use kubefledged_api_types::names::REGISTRY_BUDGETS_ANNOTATION;
use kubefledged_contract::terms::{RISE, Rises, sane};
use kubefledged_engine::Event;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{args::RunArgs, budgets};

/// A holder that does not renew for this time has lost the Lease.
pub const DURATION: Duration = Duration::from_secs(10);
/// A leader that has not renewed for this time stops leading.
pub const RENEW_LIMIT: Duration = Duration::from_secs(7);
/// Time between renewals, and between attempts of one.
const RETRY: Duration = Duration::from_secs(2);
/// Time between the reads of a standby. A released Lease is taken within this time.
const WATCH: Duration = Duration::from_secs(1);
/// Time limit of one read of a standby.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for tasks in flight to end, and again for releasing the Lease, before the process ends.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// One term of leadership.
#[derive(Clone, Debug)]
pub struct Term {
    /// Number of the term. It rises with every change of the leader.
    pub number: u64,
    /// Cancelled at the end of the term. Tasks must then stop.
    pub acting: CancellationToken,
}

/// The part of a Lease that the decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Holder. Empty if the Lease was released.
    pub holder: String,
    /// The term.
    pub transitions: u64,
    /// Time of the last renewal. A new value means that the holder is alive.
    pub renewed: String,
}

/// What to do with the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseDecision {
    /// Renew it, because it is ours.
    Renew {
        /// Term to write.
        term: u64,
    },
    /// Take it, because it is free.
    Take {
        /// Term to write.
        term: u64,
    },
    /// Wait, because somebody else leads.
    Stand,
}

/// Decides from the Lease, the time for which it has not changed, and the highest term that was seen. A
/// Lease that was deleted and created again begins with a low term, which pullers would refuse. Every
/// returned term can be written.
pub fn evaluate(
    held: Option<&Held>,
    me: &str,
    unchanged: Duration,
    seen_term: u64,
) -> LeaseDecision {
    // Past the highest it begins anew.
    let above = |term: u64| sane(term.max(sane(seen_term)) + 1).max(1);
    let Some(held) = held else {
        return LeaseDecision::Take { term: above(0) };
    };
    let transitions = sane(held.transitions);
    if held.holder == me {
        // Another count than ours is an edit by hand: it may not fence us out, nor lead us far away.
        let ours = transitions >= seen_term && transitions <= seen_term.saturating_add(RISE);
        let term = if transitions > 0 && (ours || seen_term == 0) {
            transitions
        } else {
            above(0)
        };
        return LeaseDecision::Renew { term };
    }
    if held.holder.is_empty() || unchanged >= DURATION {
        return LeaseDecision::Take {
            term: above(transitions),
        };
    }
    LeaseDecision::Stand
}

/// A candidate for leadership.
pub struct Candidate {
    /// Leases of the namespace.
    pub api: Api<Lease>,
    /// Name of the Lease.
    pub name: String,
    /// Identity: the pod's name and a random part.
    pub identity: String,
    /// What the next leader is told of registries; `None`: what the Lease says stays.
    pub budgets: watch::Receiver<Option<String>>,
}

impl Candidate {
    /// This process, as its flags say.
    pub fn new(args: &RunArgs, client: &Client, budgets: watch::Receiver<Option<String>>) -> Self {
        Self {
            api: Api::namespaced(client.clone(), &args.namespace),
            name: args.lease_name.clone(),
            identity: identity(&args.pod_name),
            budgets,
        }
    }
}

/// Receivers of changes of leadership.
pub struct Followers {
    /// The term while we lead. Tasks check it before they act.
    pub standing: watch::Sender<Option<Term>>,
    /// Events for the engine.
    pub events: mpsc::Sender<Event>,
    /// Holder of the Lease.
    pub holder: watch::Sender<String>,
    /// Tasks of a term, which must end before the Lease is released.
    pub acts: TaskTracker,
}

/// Takes part in the election until the token is cancelled, and then releases the Lease.
pub async fn run(
    candidate: Candidate,
    followers: Followers,
    mut raised: watch::Receiver<u64>,
    shutdown: CancellationToken,
) {
    let mut election = Election {
        candidate,
        followers,
        observed: None,
        leading: None,
        rises: Rises::default(),
    };
    while !shutdown.is_cancelled() {
        let claim = *raised.borrow_and_update();
        let Some(next) = election.attempt(claim, &shutdown).await else {
            break;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep_until(next) => {}
            changed = raised.changed() => if changed.is_err() { break },
        }
    }
    election.end().await;
}

/// A candidate, and what it knows of the Lease.
struct Election {
    candidate: Candidate,
    followers: Followers,
    /// The Lease as it was read last, and when it was first read like that.
    observed: Option<(Held, Instant)>,
    /// Our term, and since when it is certain: the time before the request that won or renewed it was sent.
    leading: Option<(u64, Instant)>,
    rises: Rises<Instant>,
}

impl Election {
    /// Reads the Lease and writes it if it is ours or free. Returns when to try next; `None`: the process ends.
    async fn attempt(&mut self, claim: u64, shutdown: &CancellationToken) -> Option<Instant> {
        let asked = Instant::now();
        let until = match self.leading {
            Some((_, renewed)) => renewed + RENEW_LIMIT,
            None => asked + READ_LIMIT,
        };
        // Without our own, the Lease's: it may be deleted the next moment, and no term may be given twice.
        let known = self.observed.as_ref();
        let known = known.map_or(0, |(held, _)| sane(held.transitions));
        let own = self.leading.map_or(known, |(term, _)| term);
        let seen_term = self.rises.towards(claim, own, asked);
        let round = self.candidate.round(&mut self.observed, seen_term);
        let round = tokio::select! {
            () = shutdown.cancelled() => return None,
            round = timeout_at(until, round) => round,
        };
        if let Some((held, _)) = &self.observed {
            self.followers.holder(&held.holder);
        }
        let mut wait = if self.leading.is_some() { RETRY } else { WATCH };
        match round {
            Ok(Ok(Round::Leads(term, known))) => {
                if seen_term > own {
                    self.rises.rose(asked);
                }
                if self.leading.is_none() {
                    self.followers.tell(known).await;
                }
                if self.leading.is_none_or(|(led, _)| led != term) {
                    self.followers.lead(term, &self.candidate.identity).await;
                }
                self.leading = Some((term, asked));
                wait = RETRY;
            }
            Ok(Ok(Round::Stands)) => self.stand_down("somebody else leads").await,
            // Read again: who was it?
            Ok(Ok(Round::Raced)) => wait = Duration::from_millis(100),
            Ok(Err(error)) => tracing::warn!(%error, "cannot reach the Lease, trying again"),
            Err(_) => tracing::warn!(error = "no answer", "cannot reach the Lease, trying again"),
        }
        let mut next = Instant::now() + wait;
        if let Some((_, renewed)) = self.leading {
            let limit = renewed + RENEW_LIMIT;
            if limit <= Instant::now() {
                self.stand_down("the Lease could not be renewed").await;
            }
            next = next.min(limit);
        } else if let Some(expires) = self.observed.as_ref().map(|(_, since)| *since + DURATION)
            && expires > Instant::now()
        {
            // Not a moment later than it may be taken.
            next = next.min(expires);
        }
        Some(next)
    }

    async fn stand_down(&mut self, why: &str) {
        if self.leading.take().is_some() {
            self.followers.stand_down(why).await;
        }
    }

    /// Stops leading, and releases the Lease once nothing of ours is under way.
    async fn end(mut self) {
        if self.leading.is_none() {
            return;
        }
        self.stand_down("this process ends").await;
        self.followers.acts.close();
        let _ = timeout(RELEASE_LIMIT, self.followers.acts.wait()).await;
        if timeout(RELEASE_LIMIT, self.candidate.release())
            .await
            .is_err()
        {
            tracing::warn!("cannot release the Lease: no answer");
        }
    }
}

impl Followers {
    fn holder(&self, holder: &str) {
        self.holder.send_if_modified(|known| {
            let other = known != holder;
            holder.clone_into(known);
            other
        });
    }

    /// Tells what the leader before knew of registries.
    async fn tell(&self, known: Option<String>) {
        let known = budgets::parse(&known.unwrap_or_default());
        if !known.is_empty() {
            let _ = self.events.send(Event::BudgetsKnown(known)).await;
        }
    }

    async fn lead(&self, term: u64, identity: &str) {
        tracing::info!(term, identity, "leading");
        let standing = Term {
            number: term,
            acting: CancellationToken::new(),
        };
        self.replace(Some(standing));
        let _ = self.events.send(Event::Leadership(Some(term))).await;
    }

    async fn stand_down(&self, why: &str) {
        tracing::info!(why, "standing by");
        self.replace(None);
        let _ = self.events.send(Event::Leadership(None)).await;
    }

    /// Ends all tasks at once, without waiting for the engine's queue of events.
    fn replace(&self, term: Option<Term>) {
        if let Some(over) = self.standing.send_replace(term) {
            over.acting.cancel();
        }
    }
}

/// Result of one attempt.
enum Round {
    /// In this term, and what the Lease said of registries before it was written.
    Leads(u64, Option<String>),
    Stands,
    /// Somebody wrote the Lease between our read and our write.
    Raced,
}

impl Candidate {
    /// Reads the Lease, and writes it if it is ours or free.
    async fn round(
        &self,
        observed: &mut Option<(Held, Instant)>,
        seen_term: u64,
    ) -> Result<Round, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        let held = lease.as_ref().map(read);
        if let Some(held) = &held
            && observed.as_ref().is_none_or(|(known, _)| known != held)
        {
            *observed = Some((held.clone(), Instant::now()));
        }
        let unchanged = observed
            .as_ref()
            .map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let term = match evaluate(held.as_ref(), &self.identity, unchanged, seen_term) {
            LeaseDecision::Stand => return Ok(Round::Stands),
            LeaseDecision::Renew { term } | LeaseDecision::Take { term } => term,
        };
        let annotations = lease.as_ref().and_then(|l| l.metadata.annotations.as_ref());
        let known = annotations.and_then(|all| all.get(REGISTRY_BUDGETS_ANNOTATION).cloned());
        match self.write(lease, &self.identity, term).await {
            Ok(()) => Ok(Round::Leads(term, known)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Round::Raced),
            Err(error) => Err(error),
        }
    }

    async fn write(
        &self,
        lease: Option<Lease>,
        holder: &str,
        term: u64,
    ) -> Result<(), kube::Error> {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
        let exists = lease.is_some();
        let mut lease = lease.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        if let Some(budgets) = self.budgets.borrow().clone() {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(REGISTRY_BUDGETS_ANNOTATION.to_owned(), budgets);
        }
        let before = lease.spec.take().unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(holder);
        lease.spec = Some(LeaseSpec {
            acquire_time: if same {
                before.acquire_time
            } else {
                Some(now.clone())
            },
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            // Never none: whoever reads that begins at 1, and pullers refuse it.
            lease_transitions: Some(i32::try_from(term).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..before
        });
        let params = PostParams::default();
        if exists {
            self.api.replace(&self.name, &params, &lease).await?;
        } else {
            self.api.create(&params, &lease).await?;
        }
        Ok(())
    }

    /// Releases the Lease, so that a standby takes it at once. If this fails, the Lease expires.
    async fn release(&self) {
        let Ok(Some(lease)) = self.api.get_opt(&self.name).await else {
            return;
        };
        let held = read(&lease);
        if held.holder == self.identity
            && let Err(error) = self.write(Some(lease), "", held.transitions).await
        {
            tracing::warn!(%error, "cannot release the Lease");
        }
    }
}

pub(crate) fn read(lease: &Lease) -> Held {
    let spec = lease.spec.clone().unwrap_or_default();
    Held {
        holder: spec.holder_identity.unwrap_or_default(),
        transitions: spec
            .lease_transitions
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(0),
        renewed: spec
            .renew_time
            .map_or_else(String::new, |time| time.0.to_string()),
    }
}

/// Returns the identity of this candidate. Two successive processes of one pod have different ones.
pub fn identity(pod: &str) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};

    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    format!("{pod}_{random:016x}")
}

#[cfg(test)]
mod tests;
