//! Connections to pullers: one per busy node, none when idle.
//!
//! There are two limits. *Connections* take memory: each open connection holds a permit. An idle one is
//! closed after [`LINGER`], or after [`HOLD`] if another node waits for a permit, unless its own next call is known to
//! follow ([`Pool::keep`]). A connection with long
//! work, such as the pull of a large image, moves to a second set of permits of the same size, so that it
//! does not keep a new node waiting. *Dials* take time: half of them are reserved for pullers that answer
//! at once and half for those that do not, so that hundreds of dead nodes do not delay the healthy ones.
//!
//! Whoever waits for a permit does so in one of two lines ([`Line`]).

mod permits;

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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
pub use permits::Line;
use permits::{Permits, Place};

/// An idle connection is closed after this time.
const LINGER: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time if others wait for a permit. Calls that are known to follow keep theirs
/// ([`Pool::keep`]); questions from outside come unannounced, often several for one node.
const HOLD: Duration = Duration::from_millis(50);
/// Whoever had a connection dialed takes it within this time, however busy the machine is.
const TAKEN: Duration = Duration::from_secs(1);
/// Of so many connections one is kept for no call that follows.
const UNKEPT: usize = 8;
/// Time between searches for such connections.
const SWEEP: Duration = Duration::from_secs(1);
/// A dial that takes longer moves to the slow half. A handshake inside a cluster takes 10 ms; a dead node
/// takes all of [`CONNECT_LIMIT`].
const PROMPT: Duration = Duration::from_millis(150);
/// A node that was slow starts in the slow half for this time.
const REMEMBER: Duration = Duration::from_secs(600);

/// A connection that is in use for longer moves to the second set of permits.
const LONG: Duration = Duration::from_secs(1);

/// Makes connections.
pub trait Dial: Send + Sync + 'static {
    /// Identifies the peer.
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    /// The connection, which its users share.
    type Connection: Clone + Send + Sync + 'static;

    /// Connects once. The error is a sentence for people.
    fn dial(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Self::Connection, Arc<str>>> + Send;

    /// Is it known that the connection serves no call any more?
    fn has_ended(connection: &Self::Connection) -> bool;
}

/// A pool of connections. Clones share their state.
pub struct Pool<D: Dial>(Arc<Inner<D>>);

struct Inner<D: Dial> {
    dialer: D,
    prompt: Semaphore,
    slow: Semaphore,
    permits: Permits,
    /// For connections that are kept although others wait.
    keeping: Arc<Semaphore>,
    long: Arc<Semaphore>,
    known_slow: Mutex<HashMap<D::Key, Instant>>,
    slots: Mutex<HashMap<D::Key, Slot<D::Connection>>>,
}

type Opening<C> = Shared<BoxFuture<'static, Result<Arc<Open<C>>, Arc<str>>>>;

/// State of a connection, from the first request for it until it is closed.
enum Slot<C> {
    /// It is being dialed, and all its users wait for the same dial, which can be called to the front line. Next: open or removed.
    Dialing(Opening<C>, Arc<Notify>),
    /// It is open: in use, or idle since a time. Next: removed.
    Open {
        open: Arc<Open<C>>,
        users: usize,
        since: Instant,
        /// Who had it dialed has not taken it yet.
        new: bool,
        /// Its next use is known to follow.
        kept: Option<OwnedSemaphorePermit>,
    },
}

struct Open<C> {
    connection: C,
    permit: Mutex<Permit>,
}

/// The permit of an open connection.
struct Permit {
    _held: OwnedSemaphorePermit,
    long: bool,
}

/// A borrowed connection. Dropping it returns it to the pool.
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
    /// Creates a pool with at most `dials` (at least 2) dials at the same time, `connections` open
    /// connections, and as many again that are in use for long. Needs a tokio runtime.
    pub fn new(dialer: D, dials: usize, connections: usize) -> Self {
        let slow = dials / 2;
        let inner = Arc::new(Inner {
            dialer,
            prompt: Semaphore::new(dials - slow),
            slow: Semaphore::new(slow),
            permits: Permits::new(connections, dials - slow),
            keeping: Arc::new(Semaphore::new(connections - connections.div_ceil(UNKEPT))),
            long: Arc::new(Semaphore::new(connections)),
            known_slow: Mutex::default(),
            slots: Mutex::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&inner), inner.permits.pressed()));
        Self(inner)
    }

    /// Returns the open connection, or a new one. Waits while the limits are reached.
    ///
    /// # Errors
    /// The connection cannot be made; the error is a sentence for people.
    pub async fn borrow(&self, key: &D::Key, line: Line) -> Result<Borrowed<D>, Arc<str>> {
        loop {
            let opening = match self.0.find(key, line) {
                Ok(borrowed) => return Ok(borrowed),
                Err(opening) => opening,
            };
            opening.await?;
            // It is open now, or already removed if its first user was faster than this task.
        }
    }

    /// The connection is about to be used again: it is not closed for others before [`LINGER`]. One in [`UNKEPT`] is never
    /// kept so, and serves nodes whose calls wait for nothing.
    pub fn keep(&self, key: &D::Key) {
        if let Some(Slot::Open { kept, .. }) = self.0.slots().get_mut(key)
            && kept.is_none()
        {
            *kept = self.0.keeping.clone().try_acquire_owned().ok();
        }
    }

    /// Removes the connection for new users. Current users keep it.
    pub fn discard(&self, borrowed: &Borrowed<D>) {
        let mut slots = self.0.slots();
        let same = |slot: &Slot<_>| matches!(slot, Slot::Open { open, .. } if Arc::ptr_eq(open, &borrowed.open));
        if slots.get(&borrowed.key).is_some_and(same) {
            slots.remove(&borrowed.key);
        }
    }
}

impl<D: Dial> Borrowed<D> {
    /// Returns the target.
    pub fn connection(&self) -> &D::Connection {
        &self.open.connection
    }
}

impl<D: Dial> Inner<D> {
    fn slots(&self) -> MutexGuard<'_, HashMap<D::Key, Slot<D::Connection>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection if it is open, or else the dial to wait for.
    fn find(
        self: &Arc<Self>,
        key: &D::Key,
        line: Line,
    ) -> Result<Borrowed<D>, Opening<D::Connection>> {
        let mut slots = self.slots();
        let ended = |slot: &&mut Slot<_>| matches!(slot, Slot::Open { open, .. } if D::has_ended(&open.connection));
        match slots.get_mut(key).filter(|slot| !ended(slot)) {
            Some(Slot::Open {
                open,
                users,
                since,
                new,
                kept,
            }) => {
                if *users == 0 {
                    *since = Instant::now();
                }
                *users += 1;
                (*new, *kept) = (false, None);
                Ok(Borrowed {
                    key: key.clone(),
                    open: open.clone(),
                    pool: self.clone(),
                })
            }
            Some(Slot::Dialing(opening, called)) => {
                if line == Line::Front {
                    called.notify_one();
                }
                Err(opening.clone())
            }
            None => {
                let called = Arc::new(Notify::new());
                let place = Place {
                    line,
                    called: called.clone(),
                };
                // In its own task, so that it continues if the first user gives up.
                let dialing = tokio::spawn(self.clone().open(key.clone(), place));
                let (pool, cut_short) = (self.clone(), key.clone());
                let opening = async move {
                    let ended = dialing.await;
                    ended.unwrap_or_else(|_| {
                        pool.slots().remove(&cut_short);
                        Err("the dial was cut short".into())
                    })
                };
                let opening = opening.boxed().shared();
                slots.insert(key.clone(), Slot::Dialing(opening.clone(), called));
                Err(opening)
            }
        }
    }

    async fn open(
        self: Arc<Self>,
        key: D::Key,
        place: Place,
    ) -> Result<Arc<Open<D::Connection>>, Arc<str>> {
        let result = self.dial(&key, place).await;
        let mut slots = self.slots();
        match &result {
            Ok(open) => {
                let slot = Slot::Open {
                    open: open.clone(),
                    users: 0,
                    since: Instant::now(),
                    new: true,
                    kept: None,
                };
                slots.insert(key, slot);
            }
            Err(_) => {
                slots.remove(&key);
            }
        }
        result
    }

    async fn dial(
        &self,
        key: &D::Key,
        mut place: Place,
    ) -> Result<Arc<Open<D::Connection>>, Arc<str>> {
        if !self.known_slow().contains_key(key) {
            // A user that waits for a permit holds no dial.
            let permit = self.permits.take(&mut place).await?;
            let prompt = self.prompt.acquire().await;
            // Boxed here and below, because thousands of nodes wait for a permit with this future.
            let mut dialing = Box::pin(self.dialer.dial(key));
            if let Ok(result) = timeout(PROMPT, &mut dialing).await {
                return opened(result, permit);
            }
            self.known_slow().insert(key.clone(), Instant::now());
            if let Ok(_slow) = self.slow.try_acquire() {
                drop(prompt);
                return self.limited(key, dialing, permit).await;
            }
            // The dial gives up its permit and waits for its turn in the slow half.
        }
        let _slow = self.slow.acquire().await;
        let permit = self.permits.take(&mut place).await?;
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

    /// Closes one idle connection for each waiting user, the longest idle first.
    fn make_room(&self, now: Instant) {
        let mut slots = self.slots();
        let idle = slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Open {
                users: 0,
                since,
                new,
                kept: None,
                ..
            } if now.duration_since(*since) >= if *new { TAKEN } else { HOLD } => {
                Some((*since, key.clone()))
            }
            _ => None,
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_by_key(|(since, _)| *since);
        for (_, key) in idle.iter().take(self.permits.waiting()) {
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
            let Slot::Open {
                open, users, since, ..
            } = slot
            else {
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
        if let Some(Slot::Open {
            open, users, since, ..
        }) = slots.get_mut(key)
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
        // While users wait, the next search is soon.
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
        if pool.permits.waiting() > 0 {
            pool.make_room(now);
            wait = HOLD / 2;
        }
    }
}

#[cfg(test)]
mod tests;
