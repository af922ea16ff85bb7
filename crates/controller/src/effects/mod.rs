//! The engine's commands, carried out. Each runs in its own task and answers by events.

pub mod credentials;
pub(crate) mod dial;
pub mod dockercfg;
pub mod objects;
mod pool;
pub mod pullers;

use kubefledged_engine::{Command, Event};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::{driver, lease::Term};

/// A puller that says it has seen a higher term is not believed: terms are counted in a Lease's
/// `leaseTransitions`, which ends there.
const HIGHEST_TERM: u64 = i32::MAX as u64 - 1;

/// All hands.
pub struct Effects {
    /// Calls to pullers.
    pub pullers: pullers::Pullers,
    /// Writes to the API server.
    pub objects: objects::Objects,
    /// Where answers go.
    pub events: mpsc::Sender<Event>,
    /// A term that a puller has seen; the Lease is taken above it.
    pub raise_term: watch::Sender<u64>,
    /// Whether this process may act. What is under way ends with the term.
    pub standing: watch::Receiver<Option<Term>>,
    /// What is under way.
    pub acts: TaskTracker,
}

impl driver::Effects for Effects {
    fn carry_out(&self, command: Command) {
        if let Command::RaiseTerm { seen_term } = command {
            return self.raise_term(seen_term);
        }
        // Decided before leadership ended: the engine has been told, and forgets what it asked for.
        let Some(term) = self.standing.borrow().clone() else {
            return;
        };
        let acting = term.acting.clone();
        let act = self.act(command, term.number);
        self.acts.spawn(async move {
            tokio::select! {
                () = acting.cancelled() => {}
                () = act => {}
            }
        });
    }
}

impl Effects {
    fn act(&self, command: Command, term: u64) -> impl Future<Output = ()> + Send + 'static {
        let pullers = self.pullers.clone();
        let objects = self.objects.clone();
        let events = self.events.clone();
        async move {
            let answer = match command {
                // Of an earlier term of this same process.
                Command::StartBatch(batch) if batch.term != term => return,
                Command::StartBatch(batch) => pullers.run(*batch, &events).await,
                // Boxed, as all that is rare: every batch that waits is as large as the largest of these.
                Command::CancelPulls(cancel) => return Box::pin(pullers.cancel(cancel)).await,
                Command::WriteStatus {
                    key,
                    resource_version,
                    status,
                } => Box::pin(objects.write_status(key, resource_version, *status)).await,
                Command::ClearAnnotation {
                    key,
                    annotation,
                    value,
                } => Box::pin(objects.clear_annotation(key, annotation, value)).await,
                Command::SetFinalizer { key, uid, present } => {
                    Box::pin(objects.set_finalizer(key, uid, present)).await
                }
                Command::EmitEvent {
                    key,
                    uid,
                    severity,
                    reason,
                    action,
                    message,
                } => {
                    let event = objects::event(severity, reason, action, message);
                    return Box::pin(objects.emit(key, uid, event)).await;
                }
                Command::NodeTurned { node, turn, tell } => {
                    return objects.node_turned(node, turn, tell).await;
                }
                Command::RaiseTerm { .. } => return,
            };
            let _ = events.send(answer).await;
        }
    }

    fn raise_term(&self, seen_term: u64) {
        if seen_term > HIGHEST_TERM {
            tracing::error!(seen_term, "a puller claims a term that cannot be");
            return;
        }
        self.raise_term.send_if_modified(|term| {
            let higher = seen_term > *term;
            *term = (*term).max(seen_term);
            higher
        });
    }
}
