//! Bodies of requests: how large they may be, how long they may take, and how many are read at a time.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest as _, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use kubefledged_process::places::{Limits, Place};
use tokio::time::timeout;

/// Maximum size of a request. An object in etcd has at most 1.5 MiB, and an update contains it twice.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Bodies that are read or judged at a time. More of them wait, and whoever has most of them under way
/// gives way to peers that have none.
pub const BODIES: Limits = Limits {
    all: 4,
    per_peer: 4,
};
/// Longest wait for a place among [`BODIES`].
pub const PLACE: Duration = Duration::from_secs(2);
/// Longest wait for the whole of a body. API servers have it at hand.
pub const BODY: Duration = Duration::from_secs(2);
/// Memory that the values of a body may take, in bytes, as [`cost`] counts them.
pub const MOST_MEMORY: usize = 32 << 20;
/// The whole body, or why it is not read.
pub async fn read(request: Request, place: &Place) -> Result<Bytes, Response> {
    let read = tokio::select! {
        read = timeout(BODY, Bytes::from_request(request, &())) => read,
        () = place.ended() => {
            let why = "others waited, and this body had not come: send it again\n";
            return Err((StatusCode::SERVICE_UNAVAILABLE, why).into_response());
        }
    };
    let Ok(read) = read else {
        let why = format!("the body did not come within {BODY:?}\n");
        return Err((StatusCode::REQUEST_TIMEOUT, why).into_response());
    };
    let body = read.map_err(IntoResponse::into_response)?;
    if cost(&body) > MOST_MEMORY {
        let why = "the body has more values than any ImageCache can have\n";
        return Err((StatusCode::PAYLOAD_TOO_LARGE, why).into_response());
    }
    Ok(body)
}

/// About what the values of a JSON text take in memory once it is parsed, in bytes: a few bytes of text
/// become an object of several hundred.
pub fn cost(text: &[u8]) -> usize {
    const OBJECT: usize = 700;
    const VALUE: usize = 64;

    let (mut cost, mut quoted, mut escaped) = (text.len(), false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' => cost += OBJECT,
            b'[' | b',' => cost += VALUE,
            _ => {}
        }
    }
    cost
}
