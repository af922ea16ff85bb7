//! Waiting for a condition instead of for a time.

use std::time::Duration;

/// How long a condition may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

/// Looks until there is something to see, and fails the test with `what` when nothing comes.
///
/// # Panics
/// When 20 s have passed.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(STEP).await;
        }
    };
    let seen = tokio::time::timeout(LIMIT, looking).await;
    seen.unwrap_or_else(|_| unreachable!("did not happen: {what}"))
}
