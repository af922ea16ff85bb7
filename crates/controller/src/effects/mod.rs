//! The engine's commands, carried out. Each runs in its own task and answers by events.

mod checks;
mod claims;
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

/// All hands.
pub struct Effects {
    /// Calls to pullers.
    pub pullers: pullers::Pullers,
    /// Writes to the API server.
    pub objects: objects::Objects,
    /// Where answers go.
    pub events: mpsc::Sender<Event>,
    /// Whether this process may act. What is under way ends with the term.
    pub standing: watch::Receiver<Option<Term>>,
    /// What is under way.
    pub acts: TaskTracker,
}

impl driver::Effects for Effects {
    fn carry_out(&self, command: Command) {
        // Whether the puller is believed was decided when it answered.
        if let Command::RaiseTerm { seen_term } = command {
            tracing::debug!(seen_term, "a puller has seen a later term");
            return;
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
}
