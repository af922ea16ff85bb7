//! A bounded number of places for work that anybody on the network can cause: connections,
//! handshakes, bodies of requests.
//!
//! New work is always let in. When the places are taken, the peer that holds most of them gives up
//! one, so that nobody can keep others out by holding on.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future::Future,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Places in all.
    pub all: usize,
    /// Places of one peer address.
    pub per_peer: usize,
}

/// Who holds which place. Clones share their state.
#[derive(Clone, Debug)]
pub struct Places {
    limits: Limits,
    held: Arc<Mutex<Held>>,
    /// Told when a place is given back.
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// The oldest first.
    places: BTreeMap<u64, Holder>,
    /// How many places each peer holds.
    counts: BTreeMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Holder {
    peer: IpAddr,
    busy: Arc<AtomicUsize>,
    end: CancellationToken,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
#[must_use = "dropping the place gives it back"]
pub struct Place {
    number: u64,
    busy: Arc<AtomicUsize>,
    end: CancellationToken,
    places: Places,
}

/// See [`Place::work`].
#[derive(Debug)]
#[must_use = "dropping it ends the work"]
pub struct Work(Arc<AtomicUsize>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Held {
    fn of(&self, peer: IpAddr) -> usize {
        self.counts.get(&peer).copied().unwrap_or_default()
    }

    /// The peer with the most places, the one with the oldest place among equals, and how many.
    fn most(&self) -> Option<(IpAddr, usize)> {
        let most = self.counts.values().copied().max()?;
        let mut peers = self.places.values().map(|holder| holder.peer);
        let peer = peers.find(|peer| self.of(*peer) == most)?;
        Some((peer, most))
    }

    fn remove(&mut self, number: u64) -> Option<Holder> {
        let holder = self.places.remove(&number)?;
        if let Entry::Occupied(mut count) = self.counts.entry(holder.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(holder)
    }

    /// Ends the oldest of a peer's places, one without work if there is such a one.
    fn end_one(&mut self, peer: IpAddr) {
        let of_peer = || {
            let places = self.places.iter();
            places.filter(|(_, holder)| holder.peer == peer)
        };
        let idle = of_peer().find(|(_, holder)| holder.busy.load(Ordering::Relaxed) == 0);
        let victim = idle.or_else(|| of_peer().next()).map(|(number, _)| *number);
        if let Some(holder) = victim.and_then(|number| self.remove(number)) {
            holder.end.cancel();
        }
    }

    fn add(&mut self, peer: IpAddr, places: &Places) -> Place {
        let number = self.next;
        self.next += 1;
        let (busy, end) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let holder = Holder {
            peer,
            busy: busy.clone(),
            end: end.clone(),
        };
        self.places.insert(number, holder);
        *self.counts.entry(peer).or_default() += 1;
        Place {
            number,
            busy,
            end,
            places: places.clone(),
        }
    }
}

impl Places {
    /// Empty places within these bounds.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            held: Arc::default(),
            freed: Arc::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at once. A peer at its own limit gives up one of its own places; when all places are
    /// taken, the peer that holds most of them gives up one. Its oldest idle place goes first.
    pub fn enter(&self, peer: IpAddr) -> Place {
        let peer = peer.to_canonical();
        let mut held = self.held();
        if held.of(peer) >= self.limits.per_peer {
            held.end_one(peer);
        } else if held.places.len() >= self.limits.all
            && let Some((most, _)) = held.most()
        {
            held.end_one(most);
        }
        held.add(peer, self)
    }

    /// A place, for which a peer waits while all are taken and nobody holds clearly more of them.
    /// A peer that holds none does not wait: the peer that holds most of them gives up one.
    pub async fn wait(&self, peer: IpAddr) -> Place {
        let peer = peer.to_canonical();
        loop {
            let freed = self.freed.notified();
            {
                let mut held = self.held();
                let own = held.of(peer);
                let full = held.places.len() >= self.limits.all;
                let unfair = |count: usize| own == 0 || count > own + 1;
                let most = held.most().filter(|(_, count)| full && unfair(*count));
                if let Some((most, _)) = most {
                    held.end_one(most);
                }
                if own < self.limits.per_peer && (!full || most.is_some()) {
                    return held.add(peer, self);
                }
            }
            freed.await;
        }
    }
}

impl Place {
    /// Work in this place, until it is dropped. Places without work are given up first.
    pub fn work(&self) -> Work {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Work(self.busy.clone())
    }

    /// Ends when this place must be given up for somebody else.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.end.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held().remove(self.number);
        // All of them: the first may be at its own limit.
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LIMITS: Limits = Limits {
        all: 4,
        per_peer: 3,
    };

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn ended(place: &Place) -> bool {
        place.ended().now_or_never().is_some()
    }

    #[test]
    fn a_peer_at_its_limit_gives_up_its_own_oldest_idle_place() {
        let places = Places::new(LIMITS);
        let other = places.enter(peer(2));
        let own: Vec<Place> = (0..3).map(|_| places.enter(peer(1))).collect();
        let _work = own[0].work();
        let new = places.enter(peer(1));
        let ends: Vec<bool> = own.iter().map(ended).collect();
        assert_eq!(ends, [false, true, false]);
        assert!(!ended(&other) && !ended(&new));
    }

    #[test]
    fn when_all_places_are_taken_the_peer_with_the_most_gives_up_one() {
        let places = Places::new(LIMITS);
        let single = places.enter(peer(2));
        let many: Vec<Place> = (0..3).map(|_| places.enter(peer(1))).collect();
        let new = places.enter(peer(3));
        let ends: Vec<bool> = many.iter().map(ended).collect();
        assert_eq!(ends, [true, false, false]);
        assert!(!ended(&single) && !ended(&new));
    }

    #[test]
    fn a_place_that_is_given_back_is_free_again() {
        let places = Places::new(LIMITS);
        let held: Vec<Place> = (1..5).map(|n| places.enter(peer(n))).collect();
        drop(held);
        let again: Vec<Place> = (1..5).map(|n| places.enter(peer(n))).collect();
        assert!(again.iter().all(|place| !ended(place)));
    }

    #[test]
    fn an_address_written_as_ipv6_is_the_same_peer() {
        let places = Places::new(LIMITS);
        let IpAddr::V4(v4) = peer(1) else {
            unreachable!("it is one")
        };
        let mapped: Vec<Place> = (0..3)
            .map(|_| places.enter(v4.to_ipv6_mapped().into()))
            .collect();
        let _new = places.enter(peer(1));
        assert!(ended(&mapped[0]));
    }

    #[test]
    fn whoever_holds_as_much_as_others_waits_and_whoever_holds_less_does_not() {
        let places = Places::new(LIMITS);
        let mut held: Vec<Place> = [1, 1, 2, 2]
            .into_iter()
            .map(|n| places.enter(peer(n)))
            .collect();
        let mut waiting = Box::pin(places.wait(peer(1)));
        assert!(waiting.as_mut().now_or_never().is_none());
        let new = places.wait(peer(3)).now_or_never().unwrap();
        assert!(ended(&held[0]) && !ended(&new));
        drop(held.remove(0));
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "all are taken still"
        );
        drop(new);
        assert!(waiting.as_mut().now_or_never().is_some());
    }
}
