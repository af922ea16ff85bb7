//! Flags of layers that nodes take from each other.

use clap::{ArgAction, Args};
use kubefledged_api_types::GoDuration;
use kubefledged_engine::PeerSettings;
use std::time::Duration;

/// Shortest and longest time for which a node waits for another.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
/// Suffixes of Kubernetes quantities, with their factors.
const SUFFIXES: [(&str, u64); 7] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("", 1),
];

/// Layers that nodes take from each other.
#[derive(Args, Clone, Debug)]
pub struct PeerArgs {
    /// Let one node of each zone fetch an image from the registry, and let the others take its layers from
    /// there, where the container runtimes support it
    #[arg(
        long = "peers",
        default_value_t = true,
        action = ArgAction::Set,
        value_name = "BOOL",
        help_heading = "Peers"
    )]
    pub enabled: bool,
    /// Size of the compressed layers below which no node waits for an image that no other node of its zone has yet
    /// (Kubernetes quantity, such as 20M)
    #[arg(long = "peers-min-image-size", default_value = "20M", help_heading = "Peers", value_parser = quantity)]
    pub min_image_size: u64,
    /// Time for which a node waits for an image that makes no progress on any node of its zone, before it pulls the
    /// image from the registry (Go duration, 1s to 1h)
    #[arg(long = "peers-wait", default_value = "30s", help_heading = "Peers", value_parser = wait)]
    pub wait: GoDuration,
}

impl PeerArgs {
    /// Returns the settings of the engine. `connections`: as many as may have long pulls.
    pub fn settings(&self, connections: u32) -> PeerSettings {
        let Self {
            enabled,
            min_image_size,
            wait,
        } = self;
        PeerSettings {
            enabled: *enabled,
            min_image_size: *min_image_size,
            wait: wait.0,
            at_once: usize::try_from(connections).unwrap_or(usize::MAX),
        }
    }
}

fn wait(text: &str) -> Result<GoDuration, String> {
    let [shortest, longest] = WAITS;
    super::between(text, shortest, longest)
}

/// Parses a whole quantity of bytes, as Kubernetes writes it.
fn quantity(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let mut known = SUFFIXES.iter();
    let factor = known
        .find(|(known, _)| *known == suffix)
        .map(|(_, factor)| *factor);
    let bytes = digits.parse::<u64>().ok().zip(factor);
    bytes
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| {
            "it must be a whole number of bytes with a suffix of k, M, G, Ki, Mi or Gi, such as 20M"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_quantity_of_kubernetes() {
        for (text, bytes) in [
            ("20M", 20_000_000),
            ("1Gi", 1 << 30),
            ("0", 0),
            ("7k", 7_000),
        ] {
            assert_eq!(quantity(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "20MB", "-1", "1.5G", "99999999999G", "20 M"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wait_has_bounds_that_the_message_names() {
        assert!(wait("30s").is_ok());
        assert_eq!(wait("0s").unwrap_err(), "it must be from 1s to 1h");
    }
}
