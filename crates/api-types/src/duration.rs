//! Durations in Go's notation (`5m`, `1h30m`, `0s`), as kube-fledged's flags take them.

use std::{fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The pattern of a non-negative Go duration with a unit, for the CRD.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// A non-negative duration written in Go's notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// A text that is no duration.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a duration: write it like 30s, 5m, 1h30m or 0s")]
pub struct DurationError(String);

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed =
            kube::core::Duration::from_str(text).map_err(|_| DurationError(text.to_owned()))?;
        if text.is_empty() || parsed.is_negative() {
            return Err(DurationError(text.to_owned()));
        }
        Ok(Self(parsed.into()))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let millis = self.0.subsec_millis();
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if millis != 0 {
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
        // A pattern would tell a regular expression instead of what to write.
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches(r'{PATTERN}')"),
                "message": "write a duration with units, such as 30s, 5m, 1h30m or 0s",
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
        for text in ["5", "-5m", "", "five minutes"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }
}
