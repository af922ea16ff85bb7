//! Layers from other nodes: which nodes a pull may take them from, and how far pulls are.

use std::sync::Arc;

use kubefledged_engine::{MovedBytes, PeerNode, PullItem, Transfer};
use kubefledged_proto::puller::{
    self as proto, PeerSource, PullImagesResponse, Support, pull_images_response,
};

use super::index;

/// Returns how far pulls are, as a message of a pull stream says. `None` if it says nothing of it.
pub fn transfers(message: &PullImagesResponse) -> Option<Vec<Transfer>> {
    match &message.event {
        Some(pull_images_response::Event::Transfers(transfers)) => {
            Some(transfers.transfers.iter().map(transfer).collect())
        }
        _ => None,
    }
}

/// The nodes from which an image is taken.
pub(super) fn sources(item: &PullItem) -> Vec<PeerSource> {
    let nodes = item.peers.iter().flat_map(|peers| &peers.nodes);
    nodes.map(source).collect()
}

fn source(PeerNode { name, address }: &PeerNode) -> PeerSource {
    PeerSource {
        node_name: name.to_string(),
        address: address.to_string(),
    }
}

fn transfer(transfer: &proto::Transfer) -> Transfer {
    let digest = Some(transfer.digest.as_str());
    Transfer {
        index: index(transfer.index),
        total_bytes: transfer.total_bytes,
        done_bytes: transfer.done_bytes,
        peer_bytes: transfer.peer_bytes,
        digest: digest.filter(|text| is_digest(text)).map(Arc::from),
    }
}

/// Where the layers of a pull came from.
pub(super) fn moved(outcome: &proto::PullOutcome) -> MovedBytes {
    MovedBytes {
        peers: outcome.peer_bytes,
        registry: outcome.registry_bytes,
        wasted: outcome.wasted_bytes,
    }
}

/// What a puller says of what its runtime can do; `None`: it does not know, or is too old to say.
pub(super) fn supported(support: Support) -> Option<bool> {
    match support {
        Support::Yes => Some(true),
        Support::No => Some(false),
        Support::Unknown | Support::Unspecified => None,
    }
}

/// Is it a SHA-256 as manifests name it? Another text of a puller is not passed on to other nodes.
fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    hex.len() == 64 && hex.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_that_is_none_is_not_passed_on() {
        let of = |digest: &str| {
            let message = PullImagesResponse {
                event: Some(pull_images_response::Event::Transfers(proto::Transfers {
                    transfers: vec![proto::Transfer {
                        index: 3,
                        total_bytes: 9,
                        digest: digest.to_owned(),
                        ..proto::Transfer::default()
                    }],
                })),
            };
            transfers(&message).unwrap().remove(0)
        };
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(of(&good).digest.as_deref(), Some(good.as_str()));
        assert_eq!((of(&good).index, of(&good).total_bytes), (3, 9));
        for bad in [
            "",
            "sha256:0a",
            "sha512:00",
            &good.to_uppercase(),
            &format!("{good}0"),
        ] {
            assert_eq!(of(bad).digest, None, "{bad}");
        }
    }
}
