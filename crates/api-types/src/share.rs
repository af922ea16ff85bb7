//! A number of nodes, or a percentage of the eligible nodes.

use std::{fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An integer (`3`) or a percentage (`"10%"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeShare {
    /// This number of nodes.
    Count(u32),
    /// This percentage of the nodes, from 0 to 100.
    Percent(u32),
}

/// The text is neither an integer nor a percentage.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no number of nodes: write an integer, or a percentage from \"0%\" to \"100%\"")]
pub struct NodeShareError(String);

impl NodeShare {
    /// Returns the number of nodes that this means if there are `nodes` of them. Percentages are
    /// rounded up. A number larger than `nodes` means all of them.
    pub fn of(self, nodes: u64) -> u64 {
        match self {
            Self::Count(count) => u64::from(count).min(nodes),
            Self::Percent(percent) => (nodes * u64::from(percent)).div_ceil(100).min(nodes),
        }
    }
}

impl FromStr for NodeShare {
    type Err = NodeShareError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent = text.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
        match (percent, text.parse::<u32>()) {
            (Some(percent @ 0..=100), _) => Ok(Self::Percent(percent)),
            (None, Ok(count)) => Ok(Self::Count(count)),
            _ => Err(NodeShareError(text.to_owned())),
        }
    }
}

impl fmt::Display for NodeShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for NodeShare {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for NodeShare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Count(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Count(count) => Ok(Self::Count(count)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for NodeShare {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NodeShare".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": 1_000_000,
            "maxLength": 4,
            // A rule, not a pattern: for a pattern the API server would print the regular expression.
            "x-kubernetes-validations": [{
                "rule": "type(self) == int || self.matches('^(100|[0-9]{1,2})%$')",
                "message": "write an integer, or a percentage from \"0%\" to \"100%\"",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_rounded_up_and_more_than_there_are_means_all() {
        assert_eq!(NodeShare::Percent(10).of(48), 5);
        assert_eq!(NodeShare::Percent(1).of(3), 1);
        assert_eq!(NodeShare::Percent(0).of(3), 0);
        assert_eq!(NodeShare::Percent(100).of(7), 7);
        assert_eq!(NodeShare::Count(50).of(7), 7);
        assert_eq!(NodeShare::Count(3).of(7), 3);
    }

    #[test]
    fn both_forms_are_read_and_written_as_they_were() {
        for json in ["3", "\"10%\"", "0", "\"100%\""] {
            let share: NodeShare = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&share).unwrap(), json);
        }
    }

    #[test]
    fn anything_else_is_refused_and_says_what_to_write() {
        for json in ["-1", "\"101%\"", "\"ten\"", "\"%\"", "1.5"] {
            assert!(serde_json::from_str::<NodeShare>(json).is_err(), "{json}");
        }
        let error = serde_json::from_str::<NodeShare>("\"101%\"").unwrap_err();
        assert!(error.to_string().contains("percentage"), "{error}");
    }
}
