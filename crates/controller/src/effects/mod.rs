//! The engine's commands, carried out. Each runs in its own task and answers by events.

pub mod certificates;
pub mod credentials;
mod dial;
pub mod objects;
mod pool;
pub mod pullers;

use kubefledged_engine::{Command, Event};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::driver;

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
    /// Ends what is under way.
    pub shutdown: CancellationToken,
}

impl driver::Effects for Effects {
    fn carry_out(&self, command: Command) {
        match command {
            Command::StartBatch(batch) => {
                let pullers = self.pullers.clone();
                tokio::spawn(pullers.run(*batch, self.events.clone(), self.shutdown.clone()));
            }
            Command::CancelPulls(cancel) => {
                tokio::spawn(self.pullers.clone().cancel(cancel, self.shutdown.clone()));
            }
            Command::WriteStatus {
                key,
                resource_version,
                status,
            } => {
                self.objects
                    .write_status(key, resource_version, *status, self.events.clone());
            }
            Command::ClearAnnotation {
                key,
                annotation,
                value,
            } => {
                self.objects
                    .clear_annotation(key, annotation, value, self.events.clone());
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
                self.objects.emit(&key, uid, event);
            }
            Command::RaiseTerm { seen_term } => {
                self.raise_term.send_if_modified(|term| {
                    let higher = seen_term > *term;
                    *term = (*term).max(seen_term);
                    higher
                });
            }
        }
    }
}
