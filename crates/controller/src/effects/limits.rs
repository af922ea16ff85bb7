//! Limits of calls to pullers: their time, and the credentials that they bring.

use std::time::Duration;

use kubefledged_contract::{MESSAGE_LIMIT, SILENCE_LIMIT};
use kubefledged_proto::puller::PullImagesRequest;
use prost::Message;
use tokio::time::timeout;
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

/// Whether the credentials of a request are more than is sent: whoever writes a cache and its secrets
/// gets the reason, and its node has nothing to do with it.
pub fn too_large(request: &PullImagesRequest) -> Option<String> {
    let sizes: Vec<usize> = request
        .credentials
        .iter()
        .map(Message::encoded_len)
        .collect();
    for image in &request.images {
        let matching = image.credentials.iter();
        let matching = matching.filter_map(|at| sizes.get(usize::try_from(*at).ok()?));
        if matching.sum::<usize>() > MOST_LOGIN {
            return Some(format!(
                "the pull secrets hold more than {} KiB of logins for {}: remove those that are not needed",
                MOST_LOGIN >> 10,
                image.reference
            ));
        }
    }
    (request.encoded_len() > MESSAGE_LIMIT).then(|| {
        format!(
            "the logins for {} images make a request larger than {} MiB: use fewer pull secrets, or one login for more images",
            request.images.len(),
            MESSAGE_LIMIT >> 20
        )
    })
}

#[cfg(test)]
mod tests;
