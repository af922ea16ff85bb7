//! The loop between senses and hands: events in, commands out, and the clock.

use std::time::{Duration, Instant};

use kubefledged_api_types::Timestamp;
use kubefledged_engine::{Command, Engine, Event, Now, Tick};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Most events taken in before the engine decides: what comes together is decided together.
const MOST_EVENTS: usize = 1024;
/// Questions that wait.
const MOST_QUESTIONS: usize = 16;

/// Who carries commands out.
pub trait Effects {
    /// Must not wait; answers come as events.
    fn carry_out(&self, command: Command);
}

/// Something that somebody wants to know of the engine.
pub type Question = Box<dyn FnOnce(&Engine, Now) + Send>;

/// Asks the engine, between its turns and one question a turn: so that asking never keeps it from
/// its work, a question must be answered by a page of rows. Clones ask the same engine.
#[derive(Clone)]
pub struct Asking(mpsc::Sender<Question>);

impl Asking {
    /// And the other end, for [`run`].
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, inbox) = mpsc::channel(MOST_QUESTIONS);
        (Self(questions), inbox)
    }

    /// The answer; `None` when the engine runs no more.
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

/// Runs until the token is cancelled or no event can come any more.
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
            metrics.told(&event);
            engine.handle(now(), event);
        }
        engine.poll(now(), &mut commands);
        metrics.turned(began.elapsed(), taken, events.len());
        for command in commands.drain(..) {
            metrics.decided(&command);
            effects.carry_out(command);
        }
    }
}
