//! A codec that refuses messages which would take far more memory than they have bytes: an empty row of a
//! list has two bytes on the wire and some two hundred in memory.

use std::marker::PhantomData;

use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Short fields that a message may have: rows of a list of 512 images that are all absent are short, and so
/// are names such as `redis:7`.
const MOST_SHORT: usize = 65_536;
/// A text or a row of fewer bytes is short. Longer ones take at most some ten times as much in memory.
const SHORT: usize = 16;

/// As tonic's, with a limit on the number of short fields in a message that is received.
#[derive(Clone, Debug)]
pub struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::new().encoder()
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(ProstCodec::<T, U>::new().decoder())
    }
}

/// See [`Bounded`].
#[derive(Clone, Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic keeps a message in one piece; of anything else the first piece is looked at.
        let message = bytes.chunk();
        let message = &message[..message.len().min(bytes.remaining())];
        if short_fields(message) > MOST_SHORT {
            return Err(Status::out_of_range(format!(
                "a message of {} bytes has more than {MOST_SHORT} short fields",
                message.len()
            )));
        }
        self.0.decode(bytes)
    }
}

/// How many short texts and rows a message has, down to those of a list in a list. It stops counting above
/// [`MOST_SHORT`]. A text that is taken for a message has none, since a short length is no printable
/// character. What does not parse is the decoder's to refuse.
fn short_fields(message: &[u8]) -> usize {
    const DEPTH: u32 = 2;

    let mut count = 0;
    let mut open = vec![(message, 0)];
    while let Some((mut rest, depth)) = open.pop() {
        while rest.has_remaining() && count <= MOST_SHORT {
            let Ok((tag, wire)) = decode_key(&mut rest) else {
                break;
            };
            if wire != WireType::LengthDelimited {
                let skipped = skip_field(wire, tag, &mut rest, DecodeContext::default());
                if skipped.is_err() {
                    break;
                }
                continue;
            }
            let length = decode_varint(&mut rest).ok();
            let length = length.and_then(|length| usize::try_from(length).ok());
            let Some(inner) = length.and_then(|length| rest.get(..length)) else {
                break;
            };
            if inner.len() < SHORT {
                count += 1;
            } else if depth < DEPTH {
                open.push((inner, depth + 1));
            }
            rest.advance(inner.len());
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::puller::{
        CheckImagesResponse, CheckedImage, PullImagesResponse, PullOutcome, PullOutcomes,
        RemoveImagesRequest, pull_images_response::Event,
    };

    fn allowed(message: &impl Message) -> bool {
        short_fields(&message.encode_to_vec()) <= MOST_SHORT
    }

    fn pulled(outcome: &PullOutcome, times: usize) -> PullImagesResponse {
        PullImagesResponse {
            event: Some(Event::Outcomes(PullOutcomes {
                outcomes: vec![outcome.clone(); times],
            })),
        }
    }

    #[test]
    fn empty_rows_are_refused_wherever_they_are() {
        assert!(!allowed(&pulled(&PullOutcome::default(), 100_000)));
        let digests = PullOutcome {
            repo_digests: vec![String::new(); 100_000],
            ..PullOutcome::default()
        };
        assert!(!allowed(&pulled(&digests, 1)));
        let checked = CheckImagesResponse {
            images: vec![CheckedImage::default(); 100_000],
            ..CheckImagesResponse::default()
        };
        assert!(!allowed(&checked));
        let pins = CheckImagesResponse {
            pinned_by_us: vec![String::new(); 100_000],
            ..CheckImagesResponse::default()
        };
        assert!(!allowed(&pins));
    }

    #[test]
    fn the_largest_honest_messages_are_allowed() {
        let image = CheckedImage {
            index: 511,
            state: 2,
            image_id: format!("sha256:{}", "0".repeat(64)),
            repo_digests: vec![format!("r.test/a@sha256:{}", "0".repeat(64)); 4],
            pinned: true,
            size_bytes: 1 << 40,
            ..CheckedImage::default()
        };
        let checked = CheckImagesResponse {
            images: vec![image; 512],
            pinned_by_us: vec![format!("sha256:{}", "0".repeat(64)); 4096],
            ..CheckImagesResponse::default()
        };
        assert!(allowed(&checked));
        let present = CheckImagesResponse {
            images: vec![
                CheckedImage {
                    index: 1,
                    state: 1,
                    ..CheckedImage::default()
                };
                512
            ],
            ..CheckImagesResponse::default()
        };
        assert!(allowed(&present));
        let failed = PullOutcome {
            index: 511,
            result: 3,
            reason: "ErrImagePull".to_owned(),
            message: "failed to do request: dial tcp 10.0.0.1:443: no route to host ".repeat(16),
            attempts: 1,
            took_ms: 123_456,
            ..PullOutcome::default()
        };
        assert!(allowed(&pulled(&failed, 512)));
        let names = RemoveImagesRequest {
            references: vec!["registry.k8s.io/pause:3.10".to_owned(); 512],
            desired: vec!["registry.k8s.io/pause:3.10".to_owned(); 16_384],
            ..RemoveImagesRequest::default()
        };
        assert!(allowed(&names));
    }
}
