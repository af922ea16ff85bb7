//! The bytes of a pull as the runtime reports them: they end a pull that makes no progress.

use std::time::Duration;

use super::Task;
use crate::{Bytes, Progress, Tick};

/// In milliseconds; the shortest limit of a runtime in use is ten seconds.
const STOOD_STILL: u64 = 8_000;
/// Longest and shortest time between two observations of the bytes of a pull, for its no-progress limit.
const WATCH: Duration = Duration::from_secs(10);
const OFTEN: Duration = Duration::from_secs(1);
/// While nothing is known of a pull that is this young, it is observed every two seconds: whether it fits on the disk
/// is seen before it has filled it.
const YOUNG: Duration = Duration::from_secs(20);
/// Where others wait for what is known of a pull, it is observed so often until its size is known: at first, and while
/// it is young. Then so often while it runs.
const AT_FIRST: Duration = Duration::from_millis(250);
const FIRST: Duration = Duration::from_secs(5);
const SHARED: Duration = Duration::from_secs(2);
/// Bytes per second that count as progress.
const SLOWEST: u64 = 512;

/// What others are told of the bytes of a pull.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// They wait for it.
    pub wanted: bool,
    /// What they know.
    told: Option<Progress>,
}

/// The bytes of a pull as they were seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// When the pull began.
    began: Tick,
    /// When they are observed again.
    next: Tick,
    /// None: they could not be seen.
    bytes: Option<Bytes>,
    /// When enough had arrived, or nothing was being fetched.
    moved: Tick,
    /// How many were there then.
    mark: u64,
}

impl Task {
    /// How far its pull is, where that can be seen.
    pub fn bytes(&self) -> Option<Bytes> {
        self.watch?.bytes
    }

    /// Bytes of its layers that came from other nodes, as far as they were seen.
    pub fn peer_bytes(&self) -> u64 {
        let seen = self.telling.told.as_ref().map_or(0, |told| told.peers);
        seen.max(self.sources.peers)
    }

    pub(super) fn watch_from(&mut self, now: Tick) {
        self.watch = Some(Watch {
            began: now,
            next: now.after(if self.telling.wanted { AT_FIRST } else { OFTEN }),
            bytes: self.watch.and_then(|watch| watch.bytes),
            moved: now,
            mark: 0,
        });
    }

    /// Time between two observations of its bytes: none is longer than the limit.
    fn often(&self) -> Duration {
        let longest = if self.telling.wanted { SHARED } else { WATCH };
        self.no_progress.clamp(OFTEN, WATCH).min(longest)
    }

    /// When its bytes are due to be observed.
    pub fn watch_at(&self) -> Option<Tick> {
        self.pulling()?;
        self.watch.map(|watch| watch.next)
    }

    /// Takes in an observation of its bytes. Returns for how long too few bytes have arrived although a
    /// layer is being fetched: none is while layers are unpacked. Within the no-progress limit there must be
    /// as many bytes as at [`SLOWEST`], or a tenth of a small image: a registry that sends a byte a minute
    /// makes no progress.
    pub fn saw(&mut self, bytes: Option<Bytes>, now: Tick) -> Duration {
        let (often, limit, shares) = (self.often(), self.no_progress, self.telling.wanted);
        let Some(watch) = &mut self.watch else {
            return Duration::ZERO;
        };
        let total = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.total);
        let same_total = |bytes: &Bytes| total(watch.bytes) == Some(bytes.total);
        let fetching = bytes.filter(|bytes| bytes.active && same_total(bytes));
        if let Some(Bytes { done, total, .. }) = fetching {
            let enough = (SLOWEST * limit.as_secs()).min(total / 10).max(1);
            if done >= watch.mark.saturating_add(enough) {
                (watch.moved, watch.mark) = (now, done);
            }
            // A layer begins anew.
            watch.mark = watch.mark.min(done);
        } else {
            watch.moved = now;
            watch.mark = bytes.map_or(watch.mark, |bytes| bytes.done);
        }
        watch.bytes = bytes.or(watch.bytes);
        let unknown = watch.bytes.is_none() && now < watch.began.after(YOUNG);
        watch.next = now.after(match (unknown, shares) {
            (false, _) => often,
            (true, true) if now < watch.began.after(FIRST) => AT_FIRST,
            (true, true) => OFTEN,
            (true, false) => OFTEN * 2,
        });
        Duration::from_millis(now.0.saturating_sub(watch.moved.0))
    }

    /// Returns what is seen of its pull if that was not told yet, where others wait for it.
    pub fn news(&mut self, seen: Option<&Progress>) -> Option<Progress> {
        let seen = seen.filter(|_| self.telling.wanted)?;
        if self.telling.told.as_ref() == Some(seen) {
            return None;
        }
        self.telling.told = Some(seen.clone());
        Some(seen.clone())
    }

    /// Whether bytes were awaited and none arrived: then the runtime gave up by itself, and would do
    /// so again.
    pub(super) fn stood_still(&self, now: Tick) -> bool {
        self.watch.is_some_and(|watch| {
            let waits = watch.bytes.is_some_and(|bytes| bytes.active);
            waits && now.0.saturating_sub(watch.moved.0) >= STOOD_STILL
        })
    }
}
