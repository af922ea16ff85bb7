//! Tickets: the right to take one image from other nodes. The controller writes their claims and signs them; whoever is
//! asked for the image checks them. The signature is for the callers: nothing here has a key.

use std::time::Duration;

use kubefledged_proto::puller::{Ticket, TicketClaims};
use prost::Message as _;

/// For how long a ticket is good. A pull may begin late and take long.
pub const LIFE: Duration = Duration::from_secs(2 * 3600);
/// Largest claims that are read, in bytes.
const MOST_CLAIMS: usize = 4096;

/// Why a ticket is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request has none.
    #[error("there is no ticket")]
    Missing,
    /// Its claims cannot be read.
    #[error("the claims of the ticket cannot be read")]
    Malformed,
    /// It is for another node than the one that asks.
    #[error("the ticket is for another node")]
    Node,
    /// It has ended.
    #[error("the ticket has ended")]
    Ended,
}

/// Returns the serialized claims of a ticket, which are what is signed. `now` is the time since 1970.
pub fn claims(node: &str, digest: &str, now: Duration) -> Vec<u8> {
    let end = now.saturating_add(LIFE).as_secs();
    let claims = TicketClaims {
        node_name: node.to_owned(),
        digest: digest.to_owned(),
        not_after: i64::try_from(end).unwrap_or(i64::MAX),
    };
    claims.encode_to_vec()
}

/// Returns the digest of the image that the ticket is for. `is_asking` says whether a node of this name asks.
///
/// # Errors
/// Says which part is wrong. The signature is not looked at.
pub fn check(
    ticket: &Ticket,
    is_asking: impl FnOnce(&str) -> bool,
    now: Duration,
) -> Result<String, Refused> {
    if ticket.claims.len() > MOST_CLAIMS {
        return Err(Refused::Malformed);
    }
    let claims = TicketClaims::decode(&*ticket.claims).map_err(|_| Refused::Malformed)?;
    if claims.node_name.is_empty() || !is_asking(&claims.node_name) {
        return Err(Refused::Node);
    }
    let end = u64::try_from(claims.not_after).unwrap_or_default();
    if now.as_secs() >= end {
        return Err(Refused::Ended);
    }
    if !is_digest(&claims.digest) {
        return Err(Refused::Malformed);
    }
    Ok(claims.digest)
}

/// Is it a SHA-256 as manifests name it?
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    hex.len() == 64 && hex.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn a_ticket_is_good_for_its_node_until_its_end() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let of = |node: &str, digest: &str| Ticket {
            claims: claims(node, digest, NOW),
            signature: Vec::new(),
        };
        let asks = |ticket: &Ticket, node: &str, now| check(ticket, |claimed| claimed == node, now);
        let ticket = of("n1", &digest);
        let last = NOW + LIFE.saturating_sub(Duration::from_secs(1));
        assert_eq!(asks(&ticket, "n1", last), Ok(digest.clone()));
        assert_eq!(asks(&ticket, "n1", NOW + LIFE), Err(Refused::Ended));
        assert_eq!(asks(&ticket, "n2", NOW), Err(Refused::Node));
        assert_eq!(asks(&of("", &digest), "", NOW), Err(Refused::Node));
        for wrong in [String::new(), "sha256:0a".to_owned(), digest.to_uppercase()] {
            let refused = asks(&of("n1", &wrong), "n1", NOW);
            assert_eq!(refused, Err(Refused::Malformed), "{wrong}");
        }
        let garbled = Ticket {
            claims: vec![0xff; 40],
            ..ticket.clone()
        };
        assert_eq!(asks(&garbled, "n1", NOW), Err(Refused::Malformed));
        let large = of(&"n".repeat(MOST_CLAIMS), &digest);
        let refused = check(&large, |_| true, NOW);
        assert_eq!(refused, Err(Refused::Malformed));
    }
}
