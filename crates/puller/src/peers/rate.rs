//! Limits of bytes a second.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, MonotonicClock},
    state::{InMemoryState, NotKeyed},
};

/// Bytes of one unit of the limiter, whose numbers have 32 bits.
const UNIT: u64 = 1024;
/// Units that may come at once: one message.
const AT_ONCE: u32 = 1024;

/// A limit, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Rate(Option<Arc<Limiter>>);

#[derive(Debug)]
struct Limiter {
    clock: MonotonicClock,
    units: RateLimiter<NotKeyed, InMemoryState, MonotonicClock>,
}

impl Rate {
    /// Of so many bytes a second; 0: none.
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let limiter = NonZeroU32::new(units).map(|units| {
            let at_once = NonZeroU32::new(AT_ONCE).unwrap_or(units);
            let quota = Quota::per_second(units).allow_burst(at_once);
            Arc::new(Limiter {
                units: RateLimiter::direct_with_clock(quota, MonotonicClock),
                clock: MonotonicClock,
            })
        });
        Self(limiter)
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        let Some(limiter) = &self.0 else { return };
        let mut left = u32::try_from((bytes as u64).div_ceil(UNIT)).unwrap_or(u32::MAX);
        while let Some(now) = NonZeroU32::new(left.min(AT_ONCE)) {
            match limiter.units.check_n(now) {
                Ok(Ok(())) => left -= now.get(),
                Ok(Err(wait)) => {
                    let wait = wait.wait_time_from(limiter.clock.now());
                    tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
                }
                // More than may ever pass at once; `now` never is.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn bytes_pass_at_the_rate_after_the_first_message() {
        let (began, rate) = (Instant::now(), Rate::new(4 << 20));
        for _ in 0..3 {
            rate.pass(1 << 20).await;
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(450), "{took:?}");
        let (began, none) = (Instant::now(), Rate::new(0));
        none.pass(1 << 30).await;
        assert!(began.elapsed() < Duration::from_millis(100));
    }
}
