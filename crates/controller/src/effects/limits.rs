//! Limits of calls to pullers: their time, the credentials that they bring, and what a puller takes.

use std::{collections::HashSet, time::Duration};

use kubefledged_api_types::{names::failure, one_line};
use kubefledged_contract::{MESSAGE_LIMIT, SILENCE_LIMIT};
use kubefledged_engine::{Batch, BatchEnd, Event, ImageOutcome, ImageResult};
use kubefledged_proto::puller::PullImagesRequest;
use prost::{Message, length_delimiter_len};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use super::dockercfg::MOST_LOGIN;

/// Time limit for a unary call, and for the first message of a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The call took longer than it may.
pub fn is_late(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(limit, call).await {
        Ok(response) => Ok(response?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("the puller does not answer")),
    }
}

/// Sends the time limit with the call, so that the puller stops when nobody waits any more.
pub fn limited<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(ANSWER_LIMIT);
    request
}

pub async fn answered<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    within(ANSWER_LIMIT, call).await
}

/// Returns the next message. A stream without a message in time is an error.
pub async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match timeout(SILENCE_LIMIT, stream.message()).await {
        Ok(message) => message,
        Err(_) => Err(Status::deadline_exceeded("the puller is silent")),
    }
}

/// The images of a request whose credentials are more than is sent, by their positions, and why. Whoever writes a cache and its
/// secrets gets the reason. Neither the node nor images of other caches in the same request have to do with it.
pub fn too_large(request: &PullImagesRequest) -> Vec<(usize, String)> {
    let credentials = request.credentials.iter();
    let sizes: Vec<usize> = credentials.map(Message::encoded_len).collect();
    let head = PullImagesRequest {
        authority: request.authority.clone(),
        ticket_signer: request.ticket_signer.clone(),
        ..PullImagesRequest::default()
    };
    let mut room = MESSAGE_LIMIT - head.encoded_len();
    let mut brought = HashSet::new();
    let mut refused = Vec::new();
    for (at, image) in request.images.iter().enumerate() {
        let logins = image.credentials.iter();
        let logins: Vec<usize> = logins
            .filter_map(|login| usize::try_from(*login).ok())
            .filter(|login| *login < sizes.len())
            .collect();
        if logins.iter().map(|login| sizes[*login]).sum::<usize>() > MOST_LOGIN {
            let most = MOST_LOGIN >> 10;
            let why = format!(
                "the pull secrets hold more than {most} KiB of logins for {}: remove those that are not needed",
                image.reference
            );
            refused.push((at, why));
            continue;
        }
        let more = logins.iter().filter(|login| !brought.contains(*login));
        let more: usize = more.map(|login| in_message(sizes[*login])).sum();
        let more = more + in_message(image.encoded_len());
        if more > room {
            let why = format!(
                "the logins for {} images make a request larger than {} MiB, so that this image waits for the next one: use fewer \
                 pull secrets, or one login for more images",
                request.images.len(),
                MESSAGE_LIMIT >> 20
            );
            refused.push((at, why));
            continue;
        }
        room -= more;
        brought.extend(logins);
    }
    refused
}

/// What a part of this length adds to the message that it belongs to: itself, a tag and its length.
fn in_message(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

/// Nothing of the request was sent, because of these images: the others are asked for again, without them.
pub async fn not_sent(
    batch: &Batch,
    refused: Vec<(usize, String)>,
    events: &mpsc::Sender<Event>,
) -> BatchEnd {
    let mut outcomes: Vec<ImageOutcome> = (0..batch.work.images())
        .map(|index| ImageOutcome::new(index, ImageResult::Cancelled))
        .collect();
    for (index, message) in refused {
        outcomes[index].result = ImageResult::Failed {
            reason: failure::CREDENTIALS_UNAVAILABLE.to_owned(),
            message,
        };
    }
    let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
    BatchEnd::Done
}

/// Nothing of the request was taken: its images are tried again later, those of others go on.
pub async fn busy(batch: &Batch, status: &Status, events: &mpsc::Sender<Event>) -> BatchEnd {
    let failed = |index| {
        let result = ImageResult::Failed {
            reason: failure::PULLER_BUSY.to_owned(),
            message: one_line(status.message(), 256),
        };
        ImageOutcome::new(index, result)
    };
    let outcomes = (0..batch.work.images()).map(failed).collect();
    let _ = events.send(Event::Outcomes(batch.id, outcomes)).await;
    BatchEnd::Done
}

#[cfg(test)]
mod tests;
