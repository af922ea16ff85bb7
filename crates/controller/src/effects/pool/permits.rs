//! Permits for open connections, for which callers wait in two lines: the pulls of a cold wave do not wait behind the checks of all
//! other nodes while their places in the registry's budget lie idle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Where a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Behind few others: something that others need is taken for it, such as places in a registry's budget, or a person waits.
    Front,
    /// Behind all who came before.
    Back,
}

/// The place of one caller. Whoever holds `called` can call it to the front line.
pub struct Place {
    pub line: Line,
    pub called: Arc<Notify>,
}

/// See the module.
pub struct Permits {
    all: Arc<Semaphore>,
    /// So many of the back line wait beside the front line; the others wait behind them.
    turns: Semaphore,
    /// Number of callers that wait.
    waiting: AtomicUsize,
    /// Notifies that a first caller waits.
    pressed: Arc<Notify>,
}

impl Permits {
    /// So many permits; whoever waits in the front line has at most `turns` of the back line before it.
    pub fn new(permits: usize, turns: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(permits)),
            turns: Semaphore::new(turns),
            waiting: AtomicUsize::new(0),
            pressed: Arc::default(),
        }
    }

    /// Takes a permit, as soon as there is one.
    pub async fn take(&self, place: &mut Place) -> Result<OwnedSemaphorePermit, Arc<str>> {
        if let Ok(permit) = self.all.clone().try_acquire_owned() {
            return Ok(permit);
        }
        // From now on idle connections are closed soon.
        let _waiting = Waiting::begin(&self.waiting);
        self.pressed.notify_one();
        let _turn = match place.line {
            Line::Front => None,
            Line::Back => tokio::select! {
                biased;
                () = place.called.notified() => {
                    place.line = Line::Front;
                    None
                }
                turn = self.turns.acquire() => Some(turn),
            },
        };
        let permit = self.all.clone().acquire_owned().await;
        permit.map_err(|_| "the pool is closed".into())
    }

    /// How many callers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Notifies that a first caller waits.
    pub fn pressed(&self) -> Arc<Notify> {
        self.pressed.clone()
    }
}

/// Counts itself while it exists.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
