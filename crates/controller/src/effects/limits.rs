//! Time limits of calls to pullers.

use std::time::Duration;

use kubefledged_contract::SILENCE_LIMIT;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

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
