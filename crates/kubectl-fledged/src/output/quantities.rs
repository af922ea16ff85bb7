//! Sizes, times and shares for people.

use std::time::Duration;

use indicatif::DecimalBytes;
use kubefledged_api_types::Timestamp;

/// A number of bytes: "12.40 GB".
pub fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// A time with its two largest units, as kubectl writes ages: "3h12m".
pub fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) if minutes < 10 && !seconds.is_multiple_of(60) => {
            format!("{minutes}m{}s", seconds % 60)
        }
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, 0) => format!("{hours}h"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, 0, _) => format!("{days}d"),
        (days, hours, _) if days < 10 => format!("{days}d{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

/// Time from one moment to another, at least zero.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(to.0 - from.0).unwrap_or(0))
}

/// Now.
pub fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_second())
}

/// A share in percent, rounded down: 99 % is not all.
pub fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(100)
}

/// "1 node", "2 nodes".
pub fn counted(count: usize, one: &str) -> String {
    let many = if count == 1 { "" } else { "s" };
    format!("{count} {one}{many}")
}

/// The first names, and how many more there are: "n1, n2, n3 and 4 more".
pub fn some<'a>(names: impl Iterator<Item = &'a str>, most: usize) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names[..names.len().min(most)].join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_two_largest_units() {
        let of = |seconds| short(Duration::from_secs(seconds));
        assert_eq!(of(0), "0s");
        assert_eq!(of(61), "1m1s");
        assert_eq!(of(3600), "1h");
        assert_eq!(of(3600 * 5 + 60 * 12), "5h12m");
        assert_eq!(of(86400 * 3 + 3600), "3d1h");
        assert_eq!(of(86400 * 30 + 3600), "30d");
    }

    #[test]
    fn nearly_all_is_not_a_hundred_percent() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(0, 0), 100);
    }

    #[test]
    fn a_long_list_of_names_is_cut_and_counted() {
        assert_eq!(some(["a", "b", "c"].into_iter(), 2), "a, b and 1 more");
        assert_eq!(some(["a", "b"].into_iter(), 2), "a, b");
    }
}
