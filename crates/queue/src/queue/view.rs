//! What people may see of the queue: plain rows, a page at a time.

use std::time::Duration;

use super::Queue;
use crate::{
    Bytes, PullResult, Tick,
    task::{Phase, State, Task, TaskKey},
};

/// One pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRow {
    /// Rises in the order in which pulls were first asked for; the next page begins after it.
    pub number: u64,
    /// Its normalized name.
    pub image: String,
    /// Where it stands.
    pub state: PullState,
    /// Higher first.
    pub priority: i32,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// Since its slot; `None`: it has had none.
    pub age: Option<Duration>,
    /// Until it is ended; `None`: it has not begun or is over.
    pub deadline: Option<Duration>,
    /// Who waits for it.
    pub interests: usize,
    /// Of its compressed layers, where they can be seen arriving.
    pub bytes: Option<Bytes>,
    /// Bytes of its layers that came from other nodes.
    pub peers: u64,
}

/// Where a pull stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullState {
    /// For a slot, or for a pause to end.
    Waiting,
    /// The runtime is asked whether the image is there.
    Inspecting,
    /// The node's credential providers are asked.
    Credentials,
    /// The runtime pulls.
    Pulling,
    /// The runtime is asked what is there now.
    Verifying,
    /// It is there, and its pin is seen to.
    Pinning,
    /// Over, and remembered.
    Finished(PullResult),
}

/// Numbers of the whole queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Pulls that wait.
    pub waiting: usize,
    /// Pulls that run, and pulls that were ended and whose answers are awaited.
    pub running: usize,
    /// Requests for removals that are not done.
    pub removals: usize,
    /// Pulls at a time.
    pub max_parallel_pulls: usize,
    /// Highest term seen.
    pub term: u64,
    /// In per cent, from which on nothing is pulled; `None`: the guard is off.
    pub disk_watermark: Option<u8>,
}

impl Queue {
    /// At most `limit` pulls with numbers above `after`.
    pub fn view(&self, now: Tick, after: u64, limit: usize) -> Vec<PullRow> {
        let mut tasks: Vec<(&TaskKey, &Task)> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.age > after)
            .collect();
        tasks.sort_by_key(|(_, task)| task.age);
        tasks
            .into_iter()
            .take(limit)
            .map(|(key, task)| row(key, task, now))
            .collect()
    }

    /// Numbers of the whole queue.
    pub fn totals(&self) -> Totals {
        let (waiting, running) = self.depth();
        Totals {
            waiting,
            running,
            removals: self.removals.len(),
            max_parallel_pulls: self.settings.max_parallel_pulls,
            term: self.term,
            disk_watermark: self.settings.disk_watermark,
        }
    }
}

fn row(key: &TaskKey, task: &Task, now: Tick) -> PullRow {
    let between = |from: Tick, to: Tick| Duration::from_millis(to.0.saturating_sub(from.0));
    PullRow {
        number: task.age,
        image: key.image.clone(),
        state: match &task.state {
            State::Waiting(_) => PullState::Waiting,
            State::Calling(_, phase) => match phase {
                Phase::Inspect => PullState::Inspecting,
                Phase::Credentials => PullState::Credentials,
                Phase::Pull => PullState::Pulling,
                Phase::Verify | Phase::Mark => PullState::Verifying,
                Phase::Pin(_) => PullState::Pinning,
            },
            State::Paused(..) => PullState::Pinning,
            State::Finished(result, _) => PullState::Finished(result.clone()),
        },
        priority: task.priority,
        attempts: task.attempts,
        age: task.started.map(|at| between(at, now)),
        deadline: task.deadline_at().map(|at| between(now, at)),
        interests: task.interests.len(),
        bytes: task.bytes(),
        peers: task.peer_bytes(),
    }
}
