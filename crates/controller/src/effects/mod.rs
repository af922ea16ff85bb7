//! Carries out the engine's commands. Each command runs in its own task and answers by events.

pub mod credentials;
pub(crate) mod dial;
mod dockercfg;
pub mod objects;
mod pool;
pub mod pullers;

use kubefledged_engine::{Command, Event};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::{driver, lease::Term};

/// The highest possible term, because `leaseTransitions` of a Lease cannot be larger. A puller that
/// claims to have seen a higher one is ignored.
const HIGHEST_TERM: u64 = i32::MAX as u64 - 1;

/// Carries out all commands.
pub struct Effects {
    /// Calls to pullers.
    pub pullers: pullers::Pullers,
    /// Writes to the API server.
    pub objects: objects::Objects,
    /// Receives the answers.
    pub events: mpsc::Sender<Event>,
    /// The highest term that a puller has seen. The Lease is taken with a higher one.
    pub raise_term: watch::Sender<u64>,
    /// The term while this process leads. Tasks in flight end with the term.
    pub standing: watch::Receiver<Option<Term>>,
    /// Tasks in flight.
    pub acts: TaskTracker,
}

impl driver::Effects for Effects {
    fn carry_out(&self, command: Command) {
        if let Command::RaiseTerm { seen_term } = command {
            return self.raise_term(seen_term);
        }
        // The command was decided before leadership ended. The engine knows that it ended and forgets it.
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
                // The batch belongs to an earlier term of this process.
                Command::StartBatch(batch) if batch.term != term => return,
                Command::StartBatch(batch) => pullers.run(*batch, &events).await,
                // Rare commands are boxed, because every waiting batch takes the memory of the largest future.
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
                Command::NodeTransition {
                    node,
                    transition,
                    emit,
                } => return objects.node_transition(node, transition, emit).await,
                Command::RaiseTerm { .. } => return,
            };
            let _ = events.send(answer).await;
        }
    }

    fn raise_term(&self, seen_term: u64) {
        if seen_term > HIGHEST_TERM {
            tracing::error!(seen_term, "a puller reports an impossible term");
            return;
        }
        self.raise_term.send_if_modified(|term| {
            let higher = seen_term > *term;
            *term = (*term).max(seen_term);
            higher
        });
    }
}
