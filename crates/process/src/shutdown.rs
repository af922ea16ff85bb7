//! Turns SIGTERM and SIGINT into the cancellation of one token.

use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: 128 + SIGTERM, as a shell shows a process that SIGTERM ended.
const ENDED_AT_ONCE: i32 = 143;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once, with exit
/// status 143: whoever sends it does not want to wait.
///
/// Call it inside a tokio runtime.
pub fn signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        tracing::info!("shutting down; a second signal ends the process at once");
        cancel.cancel();
        next().await;
        std::process::exit(ENDED_AT_ONCE);
    });
    Ok(token)
}
