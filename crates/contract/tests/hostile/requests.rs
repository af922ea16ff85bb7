//! Requests as bytes: sound, odd and damaged.

use kubefledged_proto::puller::{
    Authority, BatchCancel, CancelPullsRequest, CheckImagesRequest, Credential, ImagePull,
    PullImagesRequest, RemoveImagesRequest,
};
use proptest::{prelude::*, sample::Index};
use prost::Message;

use crate::texts::{ANYTHING, like, name, names};

fn authority() -> impl Strategy<Value = Option<Authority>> {
    let node = prop_oneof![19 => Just("n1".to_owned()), 1 => like(ANYTHING)];
    let number = || prop_oneof![9 => 0_u64..4, 1 => any::<u64>()];
    let authority = (
        node,
        prop_oneof![9 => Just(1), 1 => 0_u64..3],
        number(),
        number(),
    );
    let authority = authority.prop_map(|(node_name, term, seq, batch_id)| Authority {
        node_name,
        term,
        seq,
        batch_id,
    });
    proptest::option::weighted(0.95, authority)
}

fn image() -> impl Strategy<Value = ImagePull> {
    let number = || prop_oneof![2 => Just(0), 2 => 1_u32..90_000, 1 => any::<u32>()];
    let index = prop_oneof![9 => 0_u32..2, 1 => any::<u32>()];
    (
        name(),
        0..4_i32,
        like(ANYTHING),
        any::<i32>(),
        number(),
        0..5_i32,
        proptest::collection::vec(index, 0..3),
        number(),
    )
        .prop_map(
            |(
                reference,
                policy,
                freshness,
                priority,
                deadline_ms,
                retention,
                credentials,
                fallback_deadline_ms,
            )| ImagePull {
                mark: true,
                reference,
                policy,
                freshness,
                priority,
                deadline_ms,
                retention,
                credentials,
                fallback_deadline_ms,
                cache: String::new(),
                ..ImagePull::default()
            },
        )
}
/// A request as it arrives.
#[derive(Clone, Debug)]
pub enum Asked {
    Pull(Vec<u8>),
    Remove(Vec<u8>),
    Check(Vec<u8>),
    Cancel(Vec<u8>),
}

fn pull() -> impl Strategy<Value = Asked> {
    let credential = (like(ANYTHING), like(ANYTHING))
        .prop_map(|(user, password)| Credential::login(&user, &password));
    let parts = (
        authority(),
        proptest::collection::vec(image(), 0..5),
        proptest::collection::vec(credential, 2),
    );
    parts.prop_map(|(authority, images, credentials)| {
        let request = PullImagesRequest {
            authority,
            images,
            credentials,
            ticket_signer: Vec::new(),
        };
        Asked::Pull(request.encode_to_vec())
    })
}

fn remove() -> impl Strategy<Value = Asked> {
    let parts = (
        authority(),
        names(),
        names(),
        names(),
        any::<bool>(),
        names(),
    );
    parts.prop_map(
        |(authority, references, desired, releasable, unpin_ours, unpin)| {
            let request = RemoveImagesRequest {
                only_pulled: references.clone(),
                authority,
                references,
                desired,
                releasable,
                unpin_ours,
                unpin,
            };
            Asked::Remove(request.encode_to_vec())
        },
    )
}

fn check() -> impl Strategy<Value = Asked> {
    names().prop_map(|references| {
        let request = CheckImagesRequest {
            node_name: "n1".to_owned(),
            references,
            ..CheckImagesRequest::default()
        };
        Asked::Check(request.encode_to_vec())
    })
}

fn cancel() -> impl Strategy<Value = Asked> {
    let parts = (
        authority(),
        proptest::collection::vec((0_u64..4, names()), 0..3),
    );
    parts.prop_map(|(authority, cancels)| {
        let cancels = cancels
            .into_iter()
            .map(|(batch_id, references)| BatchCancel {
                batch_id,
                references,
            });
        let request = CancelPullsRequest {
            authority,
            cancels: cancels.collect(),
        };
        Asked::Cancel(request.encode_to_vec())
    })
}

/// Some are cut or have another byte somewhere.
pub fn request() -> impl Strategy<Value = Asked> {
    let change = proptest::option::weighted(0.1, (any::<Index>(), any::<u8>()));
    let request = prop_oneof![4 => pull(), 3 => remove(), 1 => check(), 1 => cancel()];
    (request, change).prop_map(|(mut asked, change)| {
        if let Some((at, put)) = change {
            asked.damage(at, put);
        }
        asked
    })
}

impl Asked {
    fn damage(&mut self, at: Index, put: u8) {
        let (Self::Pull(bytes) | Self::Remove(bytes) | Self::Check(bytes) | Self::Cancel(bytes)) =
            self;
        if bytes.is_empty() {
            return;
        }
        let at = at.index(bytes.len());
        if put < 64 {
            bytes.truncate(at);
        } else {
            bytes[at] = put;
        }
    }
}
