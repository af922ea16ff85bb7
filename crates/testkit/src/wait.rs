//! Waits for a condition instead of a fixed time.

use std::time::Duration;

/// Maximum time for a condition on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

/// Repeats a check until it returns a value, and fails the test with `what` if it does not.
///
/// # Panics
/// 20 s have passed.
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
