//! The loop of the controller: it hands events and the time to the engine, and commands to the effects.

use std::time::{Duration, Instant};

use kubefledged_api_types::Timestamp;
use kubefledged_engine::{Command, Engine, Event, Now, Tick};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Maximum number of events in one iteration. The engine decides once for all of them.
const MOST_EVENTS: usize = 1024;
/// Maximum number of waiting questions.
const MOST_QUESTIONS: usize = 16;

/// Carries out commands.
pub trait Effects {
    /// Starts a command. It must not wait; the answer comes as an event.
    fn carry_out(&self, command: Command);

    /// Sees an event before the engine does.
    fn hear(&self, _event: &Event) {}

    /// All commands were started that followed from the events so far.
    fn decided(&self) {}
}

/// A question to the engine.
pub type Question = Box<dyn FnOnce(&Engine, Now) + Send>;

/// Asks the engine between its iterations, one question per iteration. An answer must be at most a page of
/// rows, so that questions do not delay the engine's own work. Clones ask the same engine.
#[derive(Clone)]
pub struct Asking(mpsc::Sender<Question>);

impl Asking {
    /// Returns it with the receiver for [`run`].
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, inbox) = mpsc::channel(MOST_QUESTIONS);
        (Self(questions), inbox)
    }

    /// Returns the answer. `None` if the engine does not run any more.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine, Now) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let question: Question = Box::new(move |engine, now| {
            // Nobody waits for it any more: nothing to do.
            let _ = sender.send(question(engine, now));
        });
        self.0.send(question).await.ok()?;
        answer.await.ok()
    }
}

/// Runs until the token is cancelled or no sender of events is left.
pub async fn run(
    mut engine: Engine,
    mut events: mpsc::Receiver<Event>,
    mut questions: mpsc::Receiver<Question>,
    effects: impl Effects,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let start = Instant::now();
    let now = || Now {
        tick: Tick(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)),
        wall: Timestamp(k8s_openapi::jiff::Timestamp::now().as_second()),
    };
    let mut batch = Vec::with_capacity(MOST_EVENTS);
    let mut commands = Vec::new();
    loop {
        let wait = engine
            .next_wakeup()
            .map(|at| Duration::from_millis(at.0.saturating_sub(now().tick.0)));
        tokio::select! {
            () = shutdown.cancelled() => return,
            count = events.recv_many(&mut batch, MOST_EVENTS) => if count == 0 { return },
            Some(question) = questions.recv() => question(&engine, now()),
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
        let (began, taken) = (Instant::now(), batch.len());
        for event in batch.drain(..) {
            metrics.count(&event);
            effects.hear(&event);
            engine.handle(now(), event);
        }
        engine.poll(now(), &mut commands);
        metrics.turned(began.elapsed(), taken, events.len());
        writes_first(&mut commands);
        for command in commands.drain(..) {
            metrics.decided(&command);
            effects.carry_out(command);
        }
        effects.decided();
    }
}

/// Pulls wait until their operation is written, and the calls to nodes that check them do not: of thousands of commands the
/// writes begin first.
fn writes_first(commands: &mut [Command]) {
    commands.sort_by_key(|command| !matches!(command, Command::WriteStatus { .. }));
}

#[cfg(test)]
mod tests {
    use kubefledged_engine::{CacheKey, Severity};

    use super::*;

    fn key(name: &str) -> CacheKey {
        CacheKey {
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn write(name: &str) -> Command {
        Command::WriteStatus {
            key: key(name),
            resource_version: String::new(),
            status: Box::default(),
        }
    }

    fn event(name: &str) -> Command {
        Command::EmitEvent {
            key: key(name),
            uid: String::new(),
            severity: Severity::Normal,
            reason: String::new(),
            action: String::new(),
            message: String::new(),
        }
    }

    #[test]
    fn writes_come_first_and_the_rest_keeps_its_order() {
        let mut commands = vec![event("a"), write("b"), event("c"), write("d")];
        writes_first(&mut commands);
        let names = commands.iter().map(|command| match command {
            Command::WriteStatus { key, .. } | Command::EmitEvent { key, .. } => &*key.name,
            _ => unreachable!("there is no other"),
        });
        assert_eq!(names.collect::<Vec<_>>(), ["b", "d", "a", "c"]);
    }
}
