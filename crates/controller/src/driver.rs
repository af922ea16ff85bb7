//! The loop between senses and hands: events in, commands out, and the clock.

use std::time::{Duration, Instant};

use kubefledged_api_types::Timestamp;
use kubefledged_engine::{Command, Engine, Event, Now, Tick};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most events taken in before the engine decides: what comes together is decided together.
const MOST_EVENTS: usize = 1024;

/// Who carries commands out.
pub trait Effects {
    /// Must not wait; answers come as events.
    fn carry_out(&self, command: Command);
}

/// Runs until the token is cancelled or no event can come any more.
pub async fn run(
    mut engine: Engine,
    mut events: mpsc::Receiver<Event>,
    effects: impl Effects,
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
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
        for event in batch.drain(..) {
            engine.handle(now(), event);
        }
        engine.poll(now(), &mut commands);
        for command in commands.drain(..) {
            effects.carry_out(command);
        }
    }
}
