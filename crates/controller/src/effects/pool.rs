//! Connections to pullers: one per busy node, none when idle.
//!
//! Two limits, each for its own thing. *Connections* are memory: each holds a permit for as long as
//! it is open, and one that nobody uses is closed after [`LINGER`], after [`HOLD`] when another node
//! waits for a permit. Work that takes long, such as the pull of a large image, moves to permits of its own,
//! as many again: it does not keep a new node waiting. *Dials* are handshakes and waiting: half of them are for pullers that answer at
//! once and half for those that do not, so that hundreds of dead nodes cannot stall the living.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::dial::CONNECT_LIMIT;

/// A connection that nobody has used for so long is closed.
const LINGER: Duration = Duration::from_secs(5);
/// The same while others wait for a permit. A node that was looked at is often given work at once, and
/// a handshake costs a millisecond on both sides: thousands of nodes would each pay for two.
const HOLD: Duration = Duration::from_millis(50);
/// Between looks for such connections.
const SWEEP: Duration = Duration::from_secs(1);
/// A dial that takes longer lets others go first. A handshake inside a cluster takes 10 ms; a node
/// that is gone takes all of [`CONNECT_LIMIT`].
const PROMPT: Duration = Duration::from_millis(150);
/// A node that was slow goes straight to the slow ones for so long.
const REMEMBER: Duration = Duration::from_secs(600);

/// A connection that is in use for longer moves to the permits of its own.
const LONG: Duration = Duration::from_secs(1);

/// Makes connections.
pub trait Dial: Send + Sync + 'static {
    /// Which one.
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    /// What is shared by all who use it.
    type Connection: Clone + Send + Sync + 'static;

    /// Connects once. The error is a sentence.
    fn dial(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Self::Connection, Arc<str>>> + Send;
}

/// See the module. Clones share everything.
pub struct Pool<D: Dial>(Arc<Inner<D>>);

struct Inner<D: Dial> {
    dialer: D,
    prompt: Semaphore,
    slow: Semaphore,
    permits: Arc<Semaphore>,
    long: Arc<Semaphore>,
    /// How many wait for a permit.
    waiting: AtomicUsize,
    /// The first of them has come.
    pressed: Arc<Notify>,
    known_slow: Mutex<HashMap<D::Key, Instant>>,
    slots: Mutex<HashMap<D::Key, Slot<D::Connection>>>,
}

type Opening<C> = Shared<BoxFuture<'static, Result<Arc<Open<C>>, Arc<str>>>>;

/// From the first who needs a connection until it is closed.
enum Slot<C> {
    /// Everybody who needs it waits for the same dial. Then open, or gone.
    Dialing(Opening<C>),
    /// Users borrow it; in use, or idle, since then. Then gone.
    Open {
        open: Arc<Open<C>>,
        users: usize,
        since: Instant,
    },
}

struct Open<C> {
    connection: C,
    permit: Mutex<Permit>,
}

/// What a connection holds for as long as it is open.
struct Permit {
    _held: OwnedSemaphorePermit,
    long: bool,
}

/// A connection in use; dropping it gives it back.
#[must_use = "the connection may be closed as soon as this is dropped"]
pub struct Borrowed<D: Dial> {
    key: D::Key,
    open: Arc<Open<D::Connection>>,
    pool: Arc<Inner<D>>,
}

impl<D: Dial> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Dial> Pool<D> {
    /// At most `dials` (at least 2) connections being made and `connections` open at a time, besides
    /// as many again that are in use for long.
    /// Needs a tokio runtime.
    pub fn new(dialer: D, dials: usize, connections: usize) -> Self {
        let slow = dials / 2;
        let inner = Arc::new(Inner {
            dialer,
            prompt: Semaphore::new(dials - slow),
            slow: Semaphore::new(slow),
            permits: Arc::new(Semaphore::new(connections)),
            long: Arc::new(Semaphore::new(connections)),
            waiting: AtomicUsize::new(0),
            pressed: Arc::default(),
            known_slow: Mutex::default(),
            slots: Mutex::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&inner), inner.pressed.clone()));
        Self(inner)
    }

    /// The open connection, or a new one. Waits as long as the limits say.
    ///
    /// # Errors
    /// A sentence, when it cannot be made.
    pub async fn borrow(&self, key: &D::Key) -> Result<Borrowed<D>, Arc<str>> {
        loop {
            let opening = match self.0.find(key) {
                Ok(borrowed) => return Ok(borrowed),
                Err(opening) => opening,
            };
            opening.await?;
            // Open by now; gone already if its first user was faster than this task.
        }
    }

    /// Closes the connection for whoever comes next; those who use it go on.
    pub fn discard(&self, borrowed: &Borrowed<D>) {
        let mut slots = self.0.slots();
        let same = |slot: &Slot<_>| matches!(slot, Slot::Open { open, .. } if Arc::ptr_eq(open, &borrowed.open));
        if slots.get(&borrowed.key).is_some_and(same) {
            slots.remove(&borrowed.key);
        }
    }
}

impl<D: Dial> Borrowed<D> {
    /// What was dialed.
    pub fn connection(&self) -> &D::Connection {
        &self.open.connection
    }
}

impl<D: Dial> Inner<D> {
    fn slots(&self) -> MutexGuard<'_, HashMap<D::Key, Slot<D::Connection>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection if it is open, or the dial to wait for.
    fn find(self: &Arc<Self>, key: &D::Key) -> Result<Borrowed<D>, Opening<D::Connection>> {
        let mut slots = self.slots();
        match slots.get_mut(key) {
            Some(Slot::Open { open, users, since }) => {
                if *users == 0 {
                    *since = Instant::now();
                }
                *users += 1;
                Ok(Borrowed {
                    key: key.clone(),
                    open: open.clone(),
                    pool: self.clone(),
                })
            }
            Some(Slot::Dialing(opening)) => Err(opening.clone()),
            None => {
                // A task of its own: whoever waits may give up, the others still get it.
                let dialing = tokio::spawn(self.clone().open(key.clone()));
                let opening = async move {
                    let ended = dialing.await;
                    ended.unwrap_or_else(|_| Err("the dial was cut short".into()))
                };
                let opening = opening.boxed().shared();
                slots.insert(key.clone(), Slot::Dialing(opening.clone()));
                Err(opening)
            }
        }
    }

    async fn open(self: Arc<Self>, key: D::Key) -> Result<Arc<Open<D::Connection>>, Arc<str>> {
        let result = self.dial(&key).await;
        let mut slots = self.slots();
        match &result {
            Ok(open) => {
                let slot = Slot::Open {
                    open: open.clone(),
                    users: 0,
                    since: Instant::now(),
                };
                slots.insert(key, slot);
            }
            Err(_) => {
                slots.remove(&key);
            }
        }
        result
    }

    async fn dial(&self, key: &D::Key) -> Result<Arc<Open<D::Connection>>, Arc<str>> {
        if !self.known_slow().contains_key(key) {
            // Whoever waits for a permit is seen by the sweep, and keeps nobody from dialing.
            let permit = self.permit().await?;
            let prompt = self.prompt.acquire().await;
            // Boxed, here and below: thousands of nodes wait for a permit, each as large as its future.
            let mut dialing = Box::pin(self.dialer.dial(key));
            if let Ok(result) = timeout(PROMPT, &mut dialing).await {
                return opened(result, permit);
            }
            self.known_slow().insert(key.clone(), Instant::now());
            if let Ok(_slow) = self.slow.try_acquire() {
                drop(prompt);
                return self.limited(key, dialing, permit).await;
            }
            // Given up, permit and all, until the slow ones before it are through.
        }
        let _slow = self.slow.acquire().await;
        let permit = self.permit().await?;
        let dialing = Box::pin(self.dialer.dial(key));
        self.limited(key, dialing, permit).await
    }

    async fn limited(
        &self,
        key: &D::Key,
        dialing: impl Future<Output = Result<D::Connection, Arc<str>>>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Arc<Open<D::Connection>>, Arc<str>> {
        let Ok(result) = timeout(CONNECT_LIMIT, dialing).await else {
            return Err(format!("no connection within {CONNECT_LIMIT:?}").into());
        };
        self.known_slow().remove(key);
        opened(result, permit)
    }

    fn known_slow(&self) -> MutexGuard<'_, HashMap<D::Key, Instant>> {
        self.known_slow
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Arc<str>> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        // From here on a connection that becomes idle is soon closed.
        let _waiting = Waiting::begin(&self.waiting);
        self.pressed.notify_one();
        let permit = self.permits.clone().acquire_owned().await;
        permit.map_err(|_| "the pool is closed".into())
    }

    /// Closes one idle connection for each who waits, the longest idle first.
    fn make_room(&self, now: Instant) {
        let mut slots = self.slots();
        let idle = slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Open {
                users: 0, since, ..
            } if now.duration_since(*since) >= HOLD => Some((*since, key.clone())),
            _ => None,
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_by_key(|(since, _)| *since);
        for (_, key) in idle.iter().take(self.waiting.load(Ordering::SeqCst)) {
            slots.remove(key);
        }
    }

    fn close_idle(&self, now: Instant) {
        self.known_slow()
            .retain(|_, since| now.duration_since(*since) < REMEMBER);
        self.slots().retain(|_, slot| match slot {
            Slot::Open {
                users: 0, since, ..
            } => now.duration_since(*since) < LINGER,
            _ => true,
        });
    }

    fn set_long_ones_apart(&self, now: Instant) {
        for slot in self.slots().values() {
            let Slot::Open { open, users, since } = slot else {
                continue;
            };
            if *users == 0 || now.duration_since(*since) < LONG {
                continue;
            }
            let mut permit = open.permit.lock().unwrap_or_else(PoisonError::into_inner);
            if !permit.long
                && let Ok(held) = self.long.clone().try_acquire_owned()
            {
                *permit = Permit {
                    _held: held,
                    long: true,
                };
            }
        }
    }

    fn give_back(&self, key: &D::Key, given: &Arc<Open<D::Connection>>) {
        let mut slots = self.slots();
        if let Some(Slot::Open { open, users, since }) = slots.get_mut(key)
            && Arc::ptr_eq(open, given)
        {
            *users -= 1;
            if *users == 0 {
                *since = Instant::now();
            }
        }
    }
}

impl<D: Dial> Drop for Borrowed<D> {
    fn drop(&mut self) {
        self.pool.give_back(&self.key, &self.open);
    }
}

/// Counts itself for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn opened<C>(
    result: Result<C, Arc<str>>,
    permit: OwnedSemaphorePermit,
) -> Result<Arc<Open<C>>, Arc<str>> {
    result.map(|connection| {
        Arc::new(Open {
            connection,
            permit: Mutex::new(Permit {
                _held: permit,
                long: false,
            }),
        })
    })
}

async fn sweep<D: Dial>(pool: Weak<Inner<D>>, pressed: Arc<Notify>) {
    let mut wait = SWEEP;
    loop {
        // Whoever comes while others wait finds the next look close by.
        if wait < SWEEP {
            tokio::time::sleep(wait).await;
        } else {
            let _ = timeout(wait, pressed.notified()).await;
        }
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        pool.close_idle(now);
        pool.set_long_ones_apart(now);
        wait = SWEEP;
        if pool.waiting.load(Ordering::SeqCst) > 0 {
            pool.make_room(now);
            wait = HOLD / 2;
        }
    }
}

#[cfg(test)]
mod tests;
