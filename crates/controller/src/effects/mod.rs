//! Carries out the engine's commands. Each command runs in its own task and answers by events.

mod claims;
pub mod credentials;
pub(crate) mod dial;
pub mod dialer;
pub mod dockercfg;
mod held;
mod limits;
mod nodes;
pub mod objects;
pub mod peers;
mod pool;
pub mod pullers;
pub mod queries;

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use kubefledged_engine::{Batch, BatchEnd, Command, Event, WriteError};
use kubefledged_process::traces::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::{
    driver,
    inputs::workloads::Wanted,
    lease::Term,
    traces::{self, Spans},
};

/// Carries out all commands.
pub struct Effects {
    /// Calls to pullers.
    pub pullers: pullers::Pullers,
    /// Writes to the API server.
    pub objects: objects::Objects,
    /// Receives the answers.
    pub events: mpsc::Sender<Event>,
    /// The term while this process leads. Tasks in flight end with the term.
    pub standing: watch::Receiver<Option<Term>>,
    /// Tasks in flight.
    pub acts: TaskTracker,
    /// The watches of workloads that are wanted.
    pub watches: watch::Sender<Wanted>,
    /// Spans of operations and batches.
    pub spans: Spans,
}

impl driver::Effects for Effects {
    fn carry_out(&self, command: Command) {
        // The command was decided before leadership ended. The engine knows that it ended and forgets it.
        let Some(term) = self.standing.borrow().clone() else {
            return;
        };
        match command {
            // Not in a task: of two lists the later one counts.
            Command::Watch(all) => drop(self.watches.send_replace(all)),
            // Nor this: the connection may be closed the next moment.
            Command::KeepConnection { node, puller } => self.pullers.keep(&node, &puller),
            command => {
                if let Command::StartBatch(batch) = &command {
                    self.pullers.keep(&batch.node, &batch.puller);
                }
                self.spawn(command, &term);
            }
        }
    }

    fn hear(&self, event: &Event) {
        self.spans.hear(event);
        if let Event::BatchEnded(id, _) = event {
            self.pullers.held.handled(*id);
        }
    }

    fn decided(&self) {
        self.pullers.held.release();
    }
}

impl Effects {
    /// Carries out a command in a task of its own.
    fn spawn(&self, command: Command, term: &Term) {
        self.spans.decided(&command);
        let acting = term.acting.clone();
        let events = self.events.clone();
        let lost = answer_if_lost(&command);
        // Boxed, because each future around it would hold it a second time.
        let act = Box::pin(self.act(command, term.number));
        let act = answered(act, lost, events);
        self.acts.spawn(async move {
            tokio::select! {
                () = acting.cancelled() => {}
                () = act => {}
            }
        });
    }
}

/// The answer to a command whose task panicked; `None`: the engine awaits no answer.
fn answer_if_lost(command: &Command) -> Option<Event> {
    let failed = || WriteError::Failed("the task of this write panicked: see the log".to_owned());
    Some(match command {
        Command::StartBatch(batch) => Event::BatchEnded(batch.id, BatchEnd::Lost),
        Command::WriteStatus { key, .. } => Event::StatusWritten(key.clone(), Err(failed())),
        Command::ClearAnnotation { key, .. } => {
            Event::AnnotationCleared(key.clone(), Err(failed()))
        }
        Command::SetFinalizer { key, .. } => Event::FinalizerWritten(key.clone(), Err(failed())),
        Command::RemoveTaints { node, .. } | Command::WriteNodeCondition { node, .. } => {
            Event::NodeWritten(node.clone(), Err(failed()))
        }
        Command::CancelPulls(_)
        | Command::EmitEvent { .. }
        | Command::NodeTransition { .. }
        | Command::KeepConnection { .. }
        | Command::Watch(_) => {
            return None;
        }
    })
}

/// Runs the task of a command. If it panics, the engine gets an answer all the same: otherwise a status write would
/// stay in flight, and the object without writes, until the term ends.
async fn answered(act: impl Future<Output = ()>, lost: Option<Event>, events: mpsc::Sender<Event>) {
    if AssertUnwindSafe(act).catch_unwind().await.is_ok() {
        return;
    }
    tracing::error!("the task of a command panicked; this is a bug");
    if let Some(answer) = lost {
        let _ = events.send(answer).await;
    }
}

impl Effects {
    fn act(&self, command: Command, term: u64) -> impl Future<Output = ()> + Send + 'static {
        let pullers = self.pullers.clone();
        let objects = self.objects.clone();
        let events = self.events.clone();
        let spans = self.spans.clone();
        async move {
            let answer = match command {
                // The batch belongs to an earlier term of this process.
                Command::StartBatch(batch) if batch.term != term => return,
                Command::StartBatch(batch) => return call(pullers, spans, batch, events).await,
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
                Command::RemoveTaints { node, uid, taints } => {
                    Box::pin(objects.remove_taints(node, &uid, &taints)).await
                }
                Command::WriteNodeCondition {
                    node,
                    uid,
                    condition,
                } => Box::pin(objects.write_node_condition(node, &uid, condition)).await,
                Command::EmitEvent {
                    key,
                    uid,
                    severity,
                    reason,
                    action,
                    message,
                } => {
                    let event = objects::event(severity, reason, action, &message);
                    return Box::pin(objects.emit(key, uid, event)).await;
                }
                Command::Watch(_) | Command::KeepConnection { .. } => return,
                Command::NodeTransition {
                    node,
                    transition,
                    emit,
                } => return Box::pin(objects.node_transition(node, transition, emit)).await,
            };
            let _ = events.send(answer).await;
        }
    }
}

/// Carries out a batch and tells of its end. The connection is held until that is handled.
async fn call(
    pullers: pullers::Pullers,
    spans: Spans,
    batch: Box<Batch>,
    events: mpsc::Sender<Event>,
) {
    let id = batch.id;
    let span = spans.batch(&batch);
    let run = pullers.run(&batch, &events).with_context(span.clone());
    let (end, connection) = run.await;
    let ended = Event::BatchEnded(id, end);
    traces::batch_ended(&span, &ended);
    // Nothing waits between the two: what is held will be handled.
    let Ok(place) = events.reserve().await else {
        return;
    };
    if let Some(connection) = connection {
        pullers.held.hold(id, connection);
    }
    place.send(ended);
}

#[cfg(test)]
mod tests {
    use kubefledged_engine::CacheKey;

    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_write_is_answered_as_a_failed_write() {
        let key = CacheKey {
            namespace: "ns".into(),
            name: "a".into(),
        };
        let command = Command::ClearAnnotation {
            key: key.clone(),
            annotation: "a",
            value: String::new(),
        };
        let (events, mut answers) = mpsc::channel(1);
        let act = async { panic!("a planted panic") };
        answered(act, answer_if_lost(&command), events).await;
        let answer = answers.recv().await.expect("an answer");
        assert!(
            matches!(answer, Event::AnnotationCleared(of, Err(WriteError::Failed(_))) if of == key)
        );
    }

    /// The size of the future that a function returns, which is not called.
    fn size<F>(_: impl FnOnce(&'static Effects, Command, u64) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn thousands_of_waiting_calls_take_little_memory() {
        let act = size(Effects::act);
        let around = size(|effects, command, term| {
            let act = Box::pin(effects.act(command, term));
            answered(act, None, effects.events.clone())
        });
        assert!(act <= 2048, "{act} bytes");
        assert!(around <= 1024, "{around} bytes");
    }
}
