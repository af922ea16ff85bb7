//! Controller side: converts batches of the engine to requests, and responses to outcomes.

mod peers;

pub use peers::transfers;

use std::{sync::Arc, time::Duration};

use kubefledged_api_types::{ImagePullPolicy, one_line};
use kubefledged_engine::{
    Batch, CancelPulls, CheckReport, Disk, ImageOutcome, ImageResult, KeptReason, NodeName,
    ObservedImage, Pin, PinResult, PullItem,
};
use kubefledged_image::{ImageRef, credentials::Keyring};
use kubefledged_proto::puller::{
    self as proto, Authority, BatchCancel, CancelPullsRequest, CheckImagesRequest,
    CheckImagesResponse, Credential, GetInfoResponse, ImagePull, ImageState, PullImagesRequest,
    PullImagesResponse, PullOutcome, PullPolicy, PullResult, RemoveImagesRequest,
    RemoveImagesResponse, RemoveOutcome, RemoveResult, Retention, pull_images_response,
    remove_images_response,
};

/// More than a puller's `--max-parallel-pulls` can be.
const MOST_PARALLEL_PULLS: u32 = 64;
/// Longest text about one image that is taken from a puller, in bytes; longest reason.
const LONGEST_MESSAGE: usize = 1024;
const LONGEST_REASON: usize = 64;
/// Bytes that an answer may have besides its images: heartbeats, pins of ours on a node.
const ANSWER: usize = 256 << 10;
/// Bytes that an answer may have for each image that was asked about: two messages, an id, digests.
const IMAGE: usize = 4 << 10;

/// The largest message that is an answer to a request about so many images, in bytes.
pub fn largest_answer(images: usize) -> usize {
    ANSWER + IMAGE * images
}

/// Pulls at a time on a node, as its puller says.
pub fn parallel_pulls(info: &GetInfoResponse) -> u32 {
    info.max_parallel_pulls.min(MOST_PARALLEL_PULLS)
}

/// Converts a pull batch. It contains only credentials that match one of its images, each once.
pub fn pull_request(
    batch: &Batch,
    images: &[PullItem],
    keyring: &Keyring<Credential>,
) -> PullImagesRequest {
    let mut credentials: Vec<Credential> = Vec::new();
    let images = images
        .iter()
        .map(|item| {
            // Most registries in use need no login: then no name is parsed.
            let image = (!keyring.is_empty()).then(|| ImageRef::parse(&item.reference));
            let matching = image.and_then(Result::ok);
            let matching = matching.map_or_else(Vec::new, |image| keyring.matching(&image));
            ImagePull {
                cache: item.cache.to_string(),
                ..image_pull(item, matching, &mut credentials)
            }
        })
        .collect();
    PullImagesRequest {
        authority: Some(authority(batch)),
        images,
        credentials,
        ticket_signer: Vec::new(),
    }
}

/// Converts a removal batch.
pub fn remove_request(
    batch: &Batch,
    references: &[Arc<str>],
    desired: &[Arc<str>],
    releasable: &[Arc<str>],
    only_pulled: &[Arc<str>],
    unpin: &[Arc<str>],
) -> RemoveImagesRequest {
    RemoveImagesRequest {
        authority: Some(authority(batch)),
        references: texts(references),
        desired: texts(desired),
        releasable: texts(releasable),
        only_pulled: texts(only_pulled),
        unpin_ours: true,
        unpin: texts(unpin),
    }
}

/// Converts a check batch.
pub fn check_request(batch: &Batch, references: &[Arc<str>]) -> CheckImagesRequest {
    CheckImagesRequest {
        node_name: batch.node.to_string(),
        references: texts(references),
        with_info: false,
    }
}

/// Returns a check of no image: its answer tells which images on the node we pinned.
pub fn pins_request(node: &NodeName) -> CheckImagesRequest {
    CheckImagesRequest {
        node_name: node.to_string(),
        ..CheckImagesRequest::default()
    }
}

/// Returns a request that removes our pins from images with these ids and removes no image. It counts as
/// newer than every request of the leader with this term.
pub fn unpin_request(node: &NodeName, term: u64, ids: &[Arc<str>]) -> RemoveImagesRequest {
    // A puller adds to neither number; half of the range keeps clear of the end all the same.
    const LATEST: u64 = u64::MAX >> 1;
    RemoveImagesRequest {
        authority: Some(Authority {
            node_name: node.to_string(),
            term,
            seq: LATEST,
            batch_id: LATEST,
        }),
        unpin: texts(ids),
        ..RemoveImagesRequest::default()
    }
}

/// Converts a cancellation of pulls.
pub fn cancel_request(cancel: &CancelPulls) -> CancelPullsRequest {
    CancelPullsRequest {
        authority: Some(Authority {
            node_name: cancel.node.to_string(),
            term: cancel.term,
            seq: cancel.seq,
            batch_id: cancel.batch.0,
        }),
        cancels: vec![BatchCancel {
            batch_id: cancel.batch.0,
            references: texts(&cancel.references),
        }],
    }
}

/// Returns the outcomes in a message of a pull stream. `None` if it is about no image.
pub fn pulled(message: PullImagesResponse) -> Option<Vec<ImageOutcome>> {
    match message.event {
        Some(pull_images_response::Event::Outcomes(outcomes)) => {
            Some(outcomes.outcomes.into_iter().map(pull_outcome).collect())
        }
        _ => None,
    }
}

/// Returns the outcomes in a message of a removal stream. `None` if it is about no image.
pub fn removed(message: RemoveImagesResponse) -> Option<Vec<ImageOutcome>> {
    match message.event {
        Some(remove_images_response::Event::Outcomes(outcomes)) => {
            Some(outcomes.outcomes.into_iter().map(remove_outcome).collect())
        }
        _ => None,
    }
}

/// Returns the outcomes of a check, and its facts about the node.
pub fn checked(response: CheckImagesResponse) -> (Vec<ImageOutcome>, CheckReport) {
    let report = CheckReport {
        pinned_by_us: response
            .pinned_by_us
            .iter()
            .map(|id| id.as_str().into())
            .collect(),
        pins_unknown: response.pins_unknown,
        highest_term: response.highest_term,
        disk: response.disk.map(|disk| Disk {
            capacity: disk.capacity_bytes,
            available: disk.available_bytes,
            watermark_percent: u8::try_from(disk.watermark_percent).unwrap_or(100),
        }),
        can_pin: peers::supported(response.pin_support()),
        can_share: peers::supported(response.peer_support()),
        // It is told once per connection.
        parallel_pulls: 0,
    };
    let outcomes = response
        .images
        .into_iter()
        .map(|image| {
            let result = match image.state() {
                ImageState::Present => ImageResult::Present,
                ImageState::Queued | ImageState::Pulling => ImageResult::Pulling,
                ImageState::Absent | ImageState::Failed => ImageResult::Absent,
                ImageState::Unspecified => failed(image.reason, image.message),
            };
            let observed = (result == ImageResult::Present).then_some(ObservedImage {
                image_id: image.image_id,
                repo_digests: image.repo_digests,
                pinned: image.pinned,
                size: image.size_bytes,
                unmountable: image.unmountable,
            });
            ImageOutcome {
                observed,
                ..ImageOutcome::new(index(image.index), result)
            }
        })
        .collect();
    (outcomes, report)
}

fn authority(batch: &Batch) -> Authority {
    Authority {
        node_name: batch.node.to_string(),
        term: batch.term,
        seq: batch.seq,
        batch_id: batch.id.0,
    }
}

fn texts(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Converts one image of a request. Each credential is sent only once, even if several images use it.
fn image_pull(
    item: &PullItem,
    matching: Vec<&Credential>,
    sent: &mut Vec<Credential>,
) -> ImagePull {
    let credentials = matching
        .into_iter()
        .map(|credential| {
            let at = sent
                .iter()
                .position(|known| known == credential)
                .unwrap_or_else(|| {
                    sent.push(credential.clone());
                    sent.len() - 1
                });
            u32::try_from(at).unwrap_or(u32::MAX)
        })
        .collect();
    let policy = match item.policy {
        ImagePullPolicy::IfNotPresent => PullPolicy::IfNotPresent,
        ImagePullPolicy::Always => PullPolicy::Always,
    };
    let retention = match item.retention {
        Pin::Leave => Retention::Leave,
        Pin::On => Retention::Pinned,
    };
    ImagePull {
        mark: item.mark,
        reference: item.reference.to_string(),
        policy: policy.into(),
        freshness: item.freshness.to_string(),
        priority: item.priority,
        deadline_ms: item.deadline.map_or(0, millis),
        retention: retention.into(),
        credentials,
        fallback_deadline_ms: millis(item.fallback_deadline),
        cache: String::new(),
        peers: peers::sources(item),
        // Whoever has the controller's key adds it.
        ticket: None,
        hold_layers_ms: item.hold_layers.map_or(0, millis),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn failed(reason: String, message: String) -> ImageResult {
    // Most texts are fine as they are.
    let cut = |text: String, most: usize| {
        if text.len() <= most {
            text
        } else {
            one_line(&text, most)
        }
    };
    ImageResult::Failed {
        reason: cut(reason, LONGEST_REASON),
        message: cut(message, LONGEST_MESSAGE),
    }
}

fn pull_outcome(outcome: PullOutcome) -> ImageOutcome {
    let moved = peers::moved(&outcome);
    let pin = match outcome.pin() {
        proto::PinResult::Unspecified => PinResult::NotAsked,
        proto::PinResult::Pinned => PinResult::Pinned,
        proto::PinResult::Unsupported => PinResult::Unsupported,
        proto::PinResult::DiskPressure => PinResult::DiskPressure,
        proto::PinResult::Failed => PinResult::Failed(outcome.pin_message.clone()),
    };
    let result = match outcome.result() {
        PullResult::Present => ImageResult::Present,
        PullResult::Pulled => ImageResult::Pulled,
        PullResult::Cancelled => ImageResult::Cancelled,
        PullResult::Superseded => ImageResult::Superseded,
        PullResult::Failed | PullResult::Unspecified => failed(outcome.reason, outcome.message),
    };
    let there = matches!(result, ImageResult::Present | ImageResult::Pulled);
    ImageOutcome {
        observed: there.then_some(ObservedImage {
            image_id: outcome.image_id,
            repo_digests: outcome.repo_digests,
            pinned: pin == PinResult::Pinned,
            size: outcome.size_bytes,
            unmountable: outcome.unmountable,
        }),
        pin,
        moved,
        ..ImageOutcome::new(index(outcome.index), result)
    }
}

fn remove_outcome(outcome: RemoveOutcome) -> ImageOutcome {
    let result = match outcome.result() {
        RemoveResult::Removed => ImageResult::Removed,
        RemoveResult::Absent => ImageResult::Absent,
        RemoveResult::Kept => ImageResult::Kept(KeptReason::parse(&outcome.reason)),
        RemoveResult::Superseded => ImageResult::Superseded,
        RemoveResult::Failed | RemoveResult::Unspecified => failed(outcome.reason, outcome.message),
    };
    ImageOutcome::new(index(outcome.index), result)
}

#[cfg(test)]
mod tests {
    use kubefledged_engine::{BatchId, CacheKey, CredentialScope, Puller, Work};

    use super::*;

    fn item(reference: &str) -> PullItem {
        PullItem {
            cache: CacheKey {
                namespace: "ns".into(),
                name: "a".into(),
            },
            mark: false,
            reference: reference.into(),
            policy: ImagePullPolicy::Always,
            freshness: "t".into(),
            priority: 3,
            deadline: Some(Duration::from_secs(60)),
            fallback_deadline: Duration::from_secs(300),
            retention: Pin::Leave,
            peers: None,
            hold_layers: None,
        }
    }

    fn batch(images: Vec<PullItem>) -> Batch {
        Batch {
            id: BatchId(7),
            term: 2,
            seq: 9,
            node: NodeName("n1".into()),
            puller: Puller {
                instance: "pod".into(),
                address: ([10, 0, 0, 1], 7443).into(),
            },
            operations: Vec::new(),
            work: Work::Pull {
                images,
                credentials: CredentialScope {
                    namespace: "ns".into(),
                    secrets: Arc::new([]),
                    service_account: None,
                    of_pods: false,
                },
            },
        }
    }

    #[test]
    fn only_matching_credentials_go_along_and_each_once() {
        let credential = |user: &str| Credential::login(user, "");
        let keyring = [
            ("r.test", credential("u")),
            ("other.test", credential("stranger")),
        ];
        let images = vec![
            item("r.test/a:1"),
            item("r.test/b:1"),
            item("third.test/c:1"),
        ];
        let keyring: Keyring<Credential> = keyring.into_iter().collect();
        let request = pull_request(&batch(images.clone()), &images, &keyring);
        assert_eq!(request.credentials, [credential("u")]);
        let chosen: Vec<&[u32]> = request.images.iter().map(|i| &*i.credentials).collect();
        assert_eq!(chosen, [&[0][..], &[0], &[]]);
        let authority = request.authority.unwrap();
        assert_eq!(
            (authority.term, authority.seq, authority.batch_id),
            (2, 9, 7)
        );
    }

    #[test]
    fn what_a_puller_says_is_bounded() {
        let info = GetInfoResponse {
            max_parallel_pulls: u32::MAX,
            ..GetInfoResponse::default()
        };
        assert_eq!(parallel_pulls(&info), 64);
        let outcome = PullOutcome {
            result: PullResult::Failed.into(),
            reason: "r".repeat(9999),
            message: "m".repeat(9999),
            ..PullOutcome::default()
        };
        let ImageResult::Failed { reason, message } = pull_outcome(outcome).result else {
            unreachable!("it failed")
        };
        assert_eq!((reason.len(), message.len()), (64, 1024));
    }

    #[test]
    fn a_request_to_unpin_removes_no_image_and_is_the_newest_of_its_term() {
        let request = unpin_request(&NodeName("n1".into()), 3, &["sha256:a".into()]);
        assert_eq!(request.unpin, ["sha256:a"]);
        assert!(request.references.is_empty() && !request.unpin_ours);
        let sent = request.authority.unwrap();
        assert_eq!((&*sent.node_name, sent.term), ("n1", 3));
        let last = authority(&Batch {
            seq: u64::from(u32::MAX),
            ..batch(Vec::new())
        });
        assert!(sent.seq > last.seq);
    }

    #[test]
    fn a_check_that_failed_is_no_absence() {
        let image = kubefledged_proto::puller::CheckedImage {
            reason: "ImageInspectError".to_owned(),
            ..Default::default()
        };
        let response = CheckImagesResponse {
            images: vec![image],
            ..CheckImagesResponse::default()
        };
        assert!(matches!(
            checked(response).0[0].result,
            ImageResult::Failed { .. }
        ));
    }
}
