//! Waiting: doubling, bounded, and spread by a hash instead of a random number.

use std::time::Duration;

use kubefledged_api_types::names::failure;

/// FNV-1a; well spread for short keys, the same on every machine.
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

/// `base`, up to `percent` per cent longer or shorter.
pub fn jittered(base: Duration, percent: u32, hash: u64) -> Duration {
    let percent = u64::from(percent);
    // 100 - percent ..= 100 + percent.
    let factor = 100 - percent + hash % (2 * percent + 1);
    base * u32::try_from(factor).unwrap_or(100) / 100
}

/// How long to wait after the `tries`th failure in a row.
pub fn wait(first: Duration, most: Duration, tries: u32, hash: u64) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(16));
    jittered(doubled.min(most), 25, hash)
}

/// How long an image that failed for this reason is left alone; `None`: until a refresh or an edit.
pub fn after_failure(reason: &str, tries: u32, hash: u64) -> Option<Duration> {
    const MOST: Duration = Duration::from_secs(300);
    let first = match reason {
        failure::INVALID_IMAGE_NAME
        | failure::IMAGE_NOT_FOUND
        | failure::PLATFORM_MISMATCH
        | failure::SIGNATURE_VALIDATION_FAILED => return None,
        failure::RATE_LIMITED | failure::UNAUTHORIZED => 30,
        failure::DISK_PRESSURE => 60,
        _ => 10,
    };
    Some(wait(Duration::from_secs(first), MOST, tries, hash))
}

#[cfg(test)]
mod tests {
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
    fn what_the_registry_does_not_have_is_not_asked_for_again() {
        assert_eq!(after_failure(failure::IMAGE_NOT_FOUND, 1, 0), None);
        assert!(after_failure(failure::REGISTRY_UNAVAILABLE, 1, 0).is_some());
    }
}
