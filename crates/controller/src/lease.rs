//! Leader election by a Lease. [`evaluate`] decides; [`run`] reads, writes and waits.
//!
//! The Lease's transition count is the term: it fences the calls of a leader that has been replaced
//! without knowing it. Expiry is measured from when this process saw the Lease change, so clocks of
//! two machines need not agree.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use kubefledged_engine::Event;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A holder that does not renew for so long has lost the Lease.
pub const DURATION: Duration = Duration::from_secs(10);
/// A leader that cannot renew for so long stands down.
const RENEW_LIMIT: Duration = Duration::from_secs(7);
/// Between tries.
const RETRY: Duration = Duration::from_secs(2);

/// What a Lease says, as far as the decision needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Empty: released.
    pub holder: String,
    /// The term.
    pub transitions: u64,
    /// Another value means that the holder is alive.
    pub renewed: String,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is ours: renew, in this term.
    Renew {
        /// The term to write.
        term: u64,
    },
    /// It is free: take it, in this term.
    Take {
        /// The term to write.
        term: u64,
    },
    /// Somebody else leads.
    Stand,
}

/// Decides from the Lease, how long it has not changed, and the highest term that a puller has seen.
pub fn evaluate(held: Option<&Held>, me: &str, unchanged: Duration, seen_term: u64) -> Verdict {
    let Some(held) = held else {
        return Verdict::Take {
            term: seen_term + 1,
        };
    };
    if held.holder == me {
        // A Lease that was deleted and made anew begins at a low term: go on above the old one.
        let term = if held.transitions < seen_term {
            seen_term + 1
        } else {
            held.transitions
        };
        return Verdict::Renew { term };
    }
    if held.holder.is_empty() || unchanged >= DURATION {
        return Verdict::Take {
            term: held.transitions.max(seen_term) + 1,
        };
    }
    Verdict::Stand
}

/// Who takes part, and where.
pub struct Candidate {
    /// Leases of our namespace.
    pub api: Api<Lease>,
    /// Name of the Lease.
    pub name: String,
    /// Pod name and a random part.
    pub identity: String,
}

/// Takes part until the token is cancelled; then gives the Lease back.
pub async fn run(
    candidate: Candidate,
    events: mpsc::Sender<Event>,
    mut raised: watch::Receiver<u64>,
    shutdown: CancellationToken,
) {
    let mut observed: Option<(Held, Instant)> = None;
    let mut leading: Option<(u64, Instant)> = None;
    loop {
        let seen_term = *raised.borrow_and_update();
        match candidate.round(&mut observed, seen_term).await {
            Ok(Some(term)) => {
                if leading.is_none_or(|(led, _)| led != term) {
                    tracing::info!(term, identity = candidate.identity, "leading");
                    let _ = events.send(Event::Leadership(Some(term))).await;
                }
                leading = Some((term, Instant::now()));
            }
            Ok(None) => stand_down(&mut leading, &events, "somebody else leads").await,
            Err(error) => {
                tracing::warn!(%error, "cannot reach the Lease, trying again");
                if leading.is_some_and(|(_, renewed)| renewed.elapsed() > RENEW_LIMIT) {
                    stand_down(&mut leading, &events, "the Lease could not be renewed").await;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(RETRY) => {}
            changed = raised.changed() => if changed.is_err() { break },
        }
    }
    if leading.is_some() {
        candidate.release().await;
    }
}

async fn stand_down(leading: &mut Option<(u64, Instant)>, events: &mpsc::Sender<Event>, why: &str) {
    if leading.take().is_some() {
        tracing::info!(why, "standing by");
        let _ = events.send(Event::Leadership(None)).await;
    }
}

impl Candidate {
    /// One look and, where it is ours to write, one write. The term, if we lead.
    async fn round(
        &self,
        observed: &mut Option<(Held, Instant)>,
        seen_term: u64,
    ) -> Result<Option<u64>, kube::Error> {
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
        let verdict = evaluate(held.as_ref(), &self.identity, unchanged, seen_term);
        let term = match verdict {
            Verdict::Stand => return Ok(None),
            Verdict::Renew { term } | Verdict::Take { term } => term,
        };
        let written = self.write(lease, &self.identity, term).await;
        match written {
            Ok(()) => Ok(Some(term)),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
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
            lease_transitions: i32::try_from(term).ok(),
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

    /// Lets the next one in at once. Best effort: else the Lease runs out.
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

fn read(lease: &Lease) -> Held {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, transitions: u64) -> Held {
        Held {
            holder: holder.to_owned(),
            transitions,
            renewed: "r".to_owned(),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_free_lease_is_taken_in_a_higher_term() {
        assert_eq!(evaluate(None, "me", SECOND, 0), Verdict::Take { term: 1 });
        assert_eq!(
            evaluate(Some(&held("", 4)), "me", SECOND, 0),
            Verdict::Take { term: 5 }
        );
        assert_eq!(
            evaluate(Some(&held("you", 4)), "me", DURATION, 0),
            Verdict::Take { term: 5 }
        );
    }

    #[test]
    fn a_living_leader_is_left_alone_and_our_own_lease_is_renewed_in_its_term() {
        assert_eq!(
            evaluate(Some(&held("you", 4)), "me", SECOND, 9),
            Verdict::Stand
        );
        assert_eq!(
            evaluate(Some(&held("me", 4)), "me", SECOND, 4),
            Verdict::Renew { term: 4 }
        );
    }

    #[test]
    fn a_deleted_lease_does_not_lock_the_fleet_out() {
        assert_eq!(evaluate(None, "me", SECOND, 7), Verdict::Take { term: 8 });
        assert_eq!(
            evaluate(Some(&held("me", 1)), "me", SECOND, 7),
            Verdict::Renew { term: 8 }
        );
    }
}
