//! Durations in Go's notation (`5m`, `1h30m`, `0s`), which the flags of kube-fledged use too.

use std::{fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Regular expression of a non-negative Go duration with units. The CRD uses it.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// What the CRD says of a text that is no duration.
pub const FORMAT_MESSAGE: &str = "write a duration with units, such as 30s, 5m, 1h30m or 0s";

/// The rule of the CRD for the text of a duration. A rule, not a pattern: for a pattern the API server would print the
/// regular expression.
pub fn format_rule() -> String {
    format!("self.matches(r'{PATTERN}')")
}

/// An error message quotes at most this many characters of the invalid text.
const LONGEST_TOLD: usize = 64;

/// A non-negative duration, written in Go's notation. The longest is Go's longest, about 292 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// The text is not a duration.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a duration: write it like 30s, 5m, 1h30m or 0s")]
pub struct DurationError(String);

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nanos = nanos(text).filter(|nanos| i64::try_from(*nanos).is_ok());
        nanos
            .map(|nanos| Self(Duration::from_nanos(nanos)))
            .ok_or_else(|| DurationError(text.chars().take(LONGEST_TOLD).collect()))
    }
}

/// Parses like Go's `time.ParseDuration`, without a sign. kube's own parser is not used, because it
/// panics on a long number, and anybody who may write an `ImageCache` can write one.
fn nanos(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number);
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        sum = sum.checked_add(part(number, unit)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

fn part(number: &str, unit: &str) -> Option<u64> {
    let unit: u64 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // Digits after the fifteenth are less than a nanosecond even of an hour.
    let fraction = &fraction[..fraction.len().min(15)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let fraction = u64::try_from(fraction * u128::from(unit) / scale).ok()?;
    whole.checked_mul(unit)?.checked_add(fraction)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let nanos = self.0.subsec_nanos();
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if !nanos.is_multiple_of(1_000_000) {
            return write!(f, "{}ns", self.0.as_nanos());
        }
        if nanos != 0 {
            return write!(f, "{}ms", self.0.as_millis());
        }
        if h > 0 {
            write!(f, "{h}h")?;
        }
        if m > 0 {
            write!(f, "{m}m")?;
        }
        if s > 0 || seconds == 0 {
            write!(f, "{s}s")?;
        }
        Ok(())
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl JsonSchema for GoDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GoDuration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format_rule(),
                "message": FORMAT_MESSAGE,
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_kube_fledged_parse_and_print() {
        for (text, seconds, printed) in [
            ("5m", 300, "5m"),
            ("15m0s", 900, "15m"),
            ("1h30m", 5400, "1h30m"),
            ("0s", 0, "0s"),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0, Duration::from_secs(seconds), "{text}");
            assert_eq!(parsed.to_string(), printed);
        }
    }

    #[test]
    fn a_number_without_a_unit_and_a_negative_duration_are_refused() {
        for text in [
            "5",
            "-5m",
            "",
            "five minutes",
            ".s",
            "1.2.3s",
            "m",
            "5 m",
            "5M",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    /// The field takes 32 characters; such values used to stop the controller.
    #[test]
    fn a_duration_beyond_gos_longest_is_refused() {
        for text in [
            "20000000000000000000000ms",
            "9223372036854775808ns",
            "2562048h",
            "9999999999999999999999999999999h",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
        let longest: GoDuration = "9223372036854775807ns".parse().unwrap();
        assert_eq!(longest.to_string().parse::<GoDuration>().unwrap(), longest);
    }

    #[test]
    fn fractions_are_read_and_printed_exactly() {
        for (text, nanos, printed) in [
            ("1.5h", 5_400_000_000_000, "1h30m"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("0.1us", 100, "100ns"),
            ("1m0.0000000019s", 60_000_000_001, "60000000001ns"),
            ("0", 0, "0s"),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0, Duration::from_nanos(nanos), "{text}");
            assert_eq!(parsed.to_string(), printed);
        }
    }
}
