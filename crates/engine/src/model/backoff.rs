//! Back-off: doubling, bounded, and spread by a hash instead of a random number.

use std::time::Duration;

use crate::vocabulary::FailureClass;

/// FNV-1a over all parts: well spread for short keys and the same on every machine.
pub fn hash(seed: u64, parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed;
    for part in parts {
        for byte in *part {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // A separator, so that ("a", "bc") and ("ab", "c") differ.
        state = (state ^ 0xff).wrapping_mul(0x0100_0000_01b3);
    }
    state
}

/// `base`, made longer or shorter by at most `percent` per cent.
pub fn jittered(base: Duration, percent: u32, hash: u64) -> Duration {
    let percent = u64::from(percent);
    // 100 - percent ..= 100 + percent.
    let factor = 100 - percent + hash % (2 * percent + 1);
    base * u32::try_from(factor).unwrap_or(100) / 100
}

/// How long to wait after the `tries`th failure in a row: `first`, doubled each time, at most `most`, with 25 %
/// jitter.
pub fn wait(first: Duration, most: Duration, tries: u32, hash: u64) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(16));
    jittered(doubled.min(most), 25, hash)
}

/// How long an image whose pull failed is left alone; `None`: until a refresh or an edit.
pub fn after_failure(class: FailureClass, tries: u32, hash: u64) -> Option<Duration> {
    let (first, most) = match class {
        FailureClass::Permanent | FailureClass::WrongPlatform => return None,
        FailureClass::NotFound => (120, 3600),
        FailureClass::RateLimited => (5, 300),
        FailureClass::Unauthorized => (30, 300),
        FailureClass::DiskPressure => (60, 300),
        FailureClass::NodeLocal | FailureClass::Other => (10, 300),
    };
    let [first, most] = [first, most].map(Duration::from_secs);
    Some(wait(first, most, tries, hash))
}

#[cfg(test)]
mod tests {
    use kubefledged_api_types::names::failure;

    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_stay_within_a_quarter_of_it() {
        let first = Duration::from_secs(10);
        let most = Duration::from_secs(300);
        for (tries, base) in [(1, 10), (2, 20), (3, 40), (6, 300), (60, 300)] {
            for h in 0..200 {
                let wait = wait(first, most, tries, h).as_millis();
                assert!(wait >= base * 750 && wait <= base * 1250, "{tries} {wait}");
            }
        }
    }

    #[test]
    fn an_image_that_the_registry_lacks_is_asked_for_again_after_minutes_up_to_an_hour() {
        let after = |reason, tries| after_failure(FailureClass::of(reason), tries, 0);
        assert_eq!(after(failure::SHORT_NAME_REFUSED, 1), None);
        let first = after(failure::IMAGE_NOT_FOUND, 1).unwrap().as_secs();
        let last = after(failure::IMAGE_NOT_FOUND, 20).unwrap().as_secs();
        assert!((90..=150).contains(&first), "{first}");
        assert!((2700..=4500).contains(&last), "{last}");
        assert!(after(failure::REGISTRY_UNAVAILABLE, 1).is_some());
    }
}
