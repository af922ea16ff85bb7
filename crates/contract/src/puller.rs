//! Puller side: converts requests to events of the queue, and its replies to messages.

use std::{sync::Arc, time::Duration};

use kubefledged_proto::puller::{
    Accepted, CancelPullsRequest, CheckImagesResponse, CheckedImage, Credential, DiskUsage,
    Heartbeat, ImagePull, ImageState, PeerSource, PinResult, PullImagesResponse, PullOutcome,
    PullOutcomes, PullPolicy, PullResult, RemoveImagesRequest, RemoveImagesResponse, RemoveOutcome,
    RemoveOutcomes, RemoveResult, Retention, Support, Ticket, Transfer, Transfers,
    pull_images_response, remove_images_response,
};
use kubefledged_queue as queue;
use kubefledged_queue::{
    Authority, CredentialId, Event, Peer, Peers, Policy, PullRequest, Sharing, StreamId,
};

/// Nodes to take one image from, of which more are not remembered.
const MOST_PEERS: usize = 16;

/// Why a request is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A request that changes something must contain an authority.
    #[error("authority is missing")]
    Authority,
    /// The request is for another node, because pod IPs are reused and endpoints are updated late.
    #[error("this is the puller of node {own:?}, not of {asked:?}")]
    Node {
        /// Node of this puller.
        own: String,
        /// Node of the request.
        asked: String,
    },
    /// An image names a credential that the request does not contain.
    #[error("a credential index is out of range")]
    Credential,
}

/// Checks that a request is for this node.
///
/// # Errors
/// It is for another node.
pub fn check_node(own: &str, asked: &str) -> Result<(), Malformed> {
    if asked == own {
        return Ok(());
    }
    Err(Malformed::Node {
        own: own.to_owned(),
        asked: asked.to_owned(),
    })
}

/// Returns the authority of a request, and checks that it is for this node.
///
/// # Errors
/// It has no authority, or it is for another node.
pub fn authority(
    own: &str,
    authority: Option<kubefledged_proto::puller::Authority>,
) -> Result<Authority, Malformed> {
    let authority = authority.ok_or(Malformed::Authority)?;
    check_node(own, &authority.node_name)?;
    Ok(Authority {
        term: authority.term,
        seq: authority.seq,
        batch: authority.batch_id,
    })
}

/// Converts one image of a pull request. `credentials` are all credentials of the request with their
/// ids, `signer` is the certificate of who signed its ticket, and `hash` returns the same number for the same credentials.
///
/// # Errors
/// The image names a credential that the request does not contain.
pub fn pull_request<'a>(
    image: ImagePull,
    credentials: &'a [(CredentialId, Credential)],
    signer: &Arc<[Vec<u8>]>,
    hash: impl FnOnce(&[&'a Credential]) -> u64,
) -> Result<PullRequest, Malformed> {
    let policy = match image.policy() {
        PullPolicy::Always => Policy::Always,
        PullPolicy::IfNotPresent | PullPolicy::Unspecified => Policy::IfNotPresent,
    };
    let chosen = image
        .credentials
        .iter()
        .map(|index| credentials.get(*index as usize))
        .collect::<Option<Vec<_>>>()
        .ok_or(Malformed::Credential)?;
    let contents: Vec<&Credential> = chosen.iter().map(|(_, credential)| credential).collect();
    let limit = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
    let retention = match image.retention() {
        Retention::Pinned => queue::Retention::Pinned,
        Retention::Leave | Retention::Unspecified => queue::Retention::Leave,
    };
    Ok(PullRequest {
        reference: image.reference,
        policy,
        freshness: image.freshness,
        priority: image.priority,
        deadline: limit(image.deadline_ms),
        fallback_deadline: limit(image.fallback_deadline_ms),
        retention,
        credential_hash: hash(&contents),
        credentials: chosen.into_iter().map(|(id, _)| *id).collect(),
        mark: if image.mark {
            queue::Mark::Yes
        } else {
            queue::Mark::No
        },
        sharing: Sharing {
            peers: image
                .ticket
                .map(|ticket| Arc::new(peers(ticket, image.peers, signer))),
            hold: limit(image.hold_layers_ms),
        },
        cache: image.cache,
    })
}

fn peers(ticket: Ticket, nodes: Vec<PeerSource>, signer: &Arc<[Vec<u8>]>) -> Peers {
    let peer = |PeerSource { node_name, address }| Peer {
        node: node_name,
        address,
    };
    Peers {
        nodes: nodes.into_iter().take(MOST_PEERS).map(peer).collect(),
        claims: ticket.claims,
        signature: ticket.signature,
        signer: signer.clone(),
    }
}

/// Converts a removal.
///
/// # Errors
/// Those of [`authority`].
pub fn remove_event(
    own: &str,
    stream: StreamId,
    request: RemoveImagesRequest,
) -> Result<Event, Malformed> {
    Ok(Event::Remove {
        stream,
        authority: authority(own, request.authority)?,
        references: request.references,
        desired: request.desired,
        releasable: request.releasable,
        only_pulled: request.only_pulled,
        unpin_ours: request.unpin_ours,
        unpin: request.unpin,
    })
}

/// Converts a cancellation of pulls.
///
/// # Errors
/// Those of [`authority`].
pub fn cancel_event(
    own: &str,
    stream: StreamId,
    request: CancelPullsRequest,
) -> Result<Event, Malformed> {
    let authority = authority(own, request.authority)?;
    let cancels = request.cancels.into_iter();
    let cancels = cancels.map(|c| (c.batch_id, c.references)).collect();
    Ok(Event::Cancel(stream, authority, cancels))
}

/// Returns the first message of a pull stream.
pub fn accepted(attached: u32) -> PullImagesResponse {
    PullImagesResponse {
        event: Some(pull_images_response::Event::Accepted(Accepted { attached })),
    }
}

/// Converts outcomes of pulls.
pub fn pulled(outcomes: Vec<queue::PullOutcome>) -> PullImagesResponse {
    PullImagesResponse {
        event: Some(pull_images_response::Event::Outcomes(PullOutcomes {
            outcomes: outcomes.into_iter().map(pull_outcome).collect(),
        })),
    }
}

/// Converts how far pulls are.
pub fn transfers(transfers: Vec<queue::Transfer>) -> PullImagesResponse {
    let transfers = transfers
        .into_iter()
        .map(|queue::Transfer { index, progress }| Transfer {
            index: number(index),
            total_bytes: progress.bytes.total,
            done_bytes: progress.bytes.done,
            peer_bytes: progress.peers,
            digest: progress.digest.as_deref().unwrap_or_default().to_owned(),
        });
    PullImagesResponse {
        event: Some(pull_images_response::Event::Transfers(Transfers {
            transfers: transfers.collect(),
        })),
    }
}

/// Returns a heartbeat of a pull stream.
pub fn pull_heartbeat() -> PullImagesResponse {
    PullImagesResponse {
        event: Some(pull_images_response::Event::Heartbeat(Heartbeat {})),
    }
}

/// Converts outcomes of removals.
pub fn removed(outcomes: Vec<queue::RemoveOutcome>) -> RemoveImagesResponse {
    RemoveImagesResponse {
        event: Some(remove_images_response::Event::Outcomes(RemoveOutcomes {
            outcomes: outcomes.into_iter().map(remove_outcome).collect(),
        })),
    }
}

/// Returns a heartbeat of a removal stream.
pub fn remove_heartbeat() -> RemoveImagesResponse {
    RemoveImagesResponse {
        event: Some(remove_images_response::Event::Heartbeat(Heartbeat {})),
    }
}

/// Converts the answer to a check.
pub fn checked(report: queue::Report) -> CheckImagesResponse {
    let images = report.images.into_iter().enumerate();
    CheckImagesResponse {
        images: images.map(checked_image).collect(),
        pinned_by_us: report.pinned_by_us,
        pins_unknown: report.pins_unknown,
        highest_term: report.highest_term,
        disk: report.disk.map(|disk| DiskUsage {
            capacity_bytes: disk.capacity,
            available_bytes: disk.available,
            watermark_percent: report.watermark.into(),
        }),
        pin_support: support(report.pins).into(),
        peer_support: support(report.peers).into(),
        info: None,
    }
}

/// Converts whether a feature is supported.
pub fn support(support: queue::Support) -> Support {
    match support {
        queue::Support::Unknown => Support::Unknown,
        queue::Support::Yes => Support::Yes,
        queue::Support::No => Support::No,
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn pull_outcome(outcome: queue::PullOutcome) -> PullOutcome {
    let (result, reason, message) = match outcome.result {
        queue::PullResult::Present => (PullResult::Present, String::new(), String::new()),
        queue::PullResult::Pulled => (PullResult::Pulled, String::new(), String::new()),
        queue::PullResult::Cancelled => (PullResult::Cancelled, String::new(), String::new()),
        queue::PullResult::Superseded => (PullResult::Superseded, String::new(), String::new()),
        queue::PullResult::Failed { reason, message } => (PullResult::Failed, reason, message),
    };
    let image = outcome.image.unwrap_or_default();
    let (pin, pin_message) = match outcome.pin {
        queue::PinResult::NotAsked => (PinResult::Unspecified, String::new()),
        queue::PinResult::Pinned => (PinResult::Pinned, String::new()),
        queue::PinResult::Unsupported => {
            let why = "this runtime does not support pins";
            (PinResult::Unsupported, why.to_owned())
        }
        queue::PinResult::DiskPressure(why) => (PinResult::DiskPressure, why),
        queue::PinResult::Failed(why) => (PinResult::Failed, why),
    };
    PullOutcome {
        index: number(outcome.index),
        result: result.into(),
        reason,
        message,
        image_id: image.id,
        repo_digests: image.digests,
        size_bytes: image.size,
        attempts: outcome.attempts,
        took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        pin: pin.into(),
        pin_message,
        peer_bytes: outcome.sources.peers,
        registry_bytes: outcome.sources.registry,
        wasted_bytes: outcome.sources.wasted,
        unmountable: image.unmountable,
    }
}

fn remove_outcome(outcome: queue::RemoveOutcome) -> RemoveOutcome {
    let (result, reason, message) = match outcome.result {
        queue::RemoveResult::Removed => (RemoveResult::Removed, String::new(), String::new()),
        queue::RemoveResult::Absent => (RemoveResult::Absent, String::new(), String::new()),
        queue::RemoveResult::Superseded => (RemoveResult::Superseded, String::new(), String::new()),
        queue::RemoveResult::Kept { reason, message } => (RemoveResult::Kept, reason, message),
        queue::RemoveResult::Failed { reason, message } => (RemoveResult::Failed, reason, message),
    };
    RemoveOutcome {
        index: number(outcome.index),
        result: result.into(),
        reason,
        message,
    }
}

fn checked_image((index, checked): (usize, queue::Checked)) -> CheckedImage {
    let mut image = CheckedImage {
        index: number(index),
        ..CheckedImage::default()
    };
    match checked {
        queue::Checked::Absent => image.set_state(ImageState::Absent),
        queue::Checked::Queued => image.set_state(ImageState::Queued),
        queue::Checked::Pulling => image.set_state(ImageState::Pulling),
        queue::Checked::Failed { reason, message } => {
            image.set_state(ImageState::Failed);
            (image.reason, image.message) = (reason, message);
        }
        queue::Checked::Unknown { reason, message } => {
            image.set_state(ImageState::Unspecified);
            (image.reason, image.message) = (reason, message);
        }
        queue::Checked::Present(seen) => {
            image.set_state(ImageState::Present);
            image.image_id = seen.id;
            image.repo_digests = seen.digests;
            image.pinned = seen.pinned;
            image.size_bytes = seen.size;
            image.unmountable = seen.unmountable;
        }
    }
    image
}
