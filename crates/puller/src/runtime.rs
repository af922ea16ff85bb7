//! Finds the runtime of this node, and watches whether it answers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kubefledged_process::Guard;
use kubefledged_proto::cri::VersionResponse;
use kubefledged_queue::Event;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    cri::{self, Cri},
    driver::Input,
    node::Node,
};

/// Time between two calls that check the runtime, and time limit of one.
const LOOK: Duration = Duration::from_secs(5);
/// Time between them while it does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// A runtime that answers: its socket, the connection and its version.
pub type Found = (PathBuf, Channel, VersionResponse);

/// Waits until a runtime answers. Returns `None` if the process ends before.
pub async fn wait(
    flag: Option<&Path>,
    run_dir: &Path,
    ready: &Guard,
    shutdown: &CancellationToken,
) -> Option<Found> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return None,
            found = find(flag, run_dir) => match found {
                Ok(found) => {
                    ready.set_ready();
                    return Some(found);
                }
                Err(error) => ready.set_pending(format!("{error:#}")),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Returns the first runtime that answers. With Docker, containerd's socket exists too, but its CRI is
/// switched off.
async fn find(flag: Option<&Path>, run_dir: &Path) -> anyhow::Result<Found> {
    let mut refusals = Vec::new();
    for socket in cri::sockets(flag, run_dir)? {
        let channel = cri::connect(socket.clone());
        match tokio::time::timeout(LOOK, Cri::new(channel.clone()).version()).await {
            Ok(Ok(version)) => {
                tracing::info!(
                    runtime = version.runtime_name,
                    version = version.runtime_version,
                    socket = %socket.display(),
                    "runtime found"
                );
                return Ok((socket, channel, version));
            }
            Ok(Err(status)) => {
                refusals.push(format!("{}: {}", socket.display(), status.message()));
            }
            Err(_) => refusals.push(format!("{}: no answer in time", socket.display())),
        }
    }
    anyhow::bail!("no runtime answers: {}", refusals.join(", "))
}

/// Sets readiness by the runtime's answers. After the runtime was down, its facts are sent to the queue
/// again, because it may be another version. `known` are the facts that the queue has.
pub async fn watch(
    node: Node,
    mut known: Option<VersionResponse>,
    ready: Guard,
    up: Gauge,
    inputs: mpsc::UnboundedSender<Input>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let answer = tokio::time::timeout(LOOK, node.cri.version()).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
        up.set(answer.is_ok().into());
        let wait = match answer {
            Ok(version) => {
                if known.as_ref() != Some(&version) {
                    known = report(&node, &inputs).await.then_some(version);
                }
                ready.set_ready();
                LOOK
            }
            Err(status) => {
                known = None;
                let why = format!("the runtime does not answer: {}", status.message());
                ready.set_pending(why);
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Sends the facts about the runtime to the queue. Returns false if they could not be read; the caller then
/// tries again.
pub async fn report(node: &Node, inputs: &mpsc::UnboundedSender<Input>) -> bool {
    let facts = tokio::time::timeout(LOOK, node.facts()).await;
    let facts = facts.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
    match facts {
        Ok(facts) => {
            tracing::debug!(?facts, "what the runtime can do");
            // Whoever does not listen any more is ending.
            let _ = inputs.send(Input::Request(Event::Runtime(facts), None, Vec::new()));
            true
        }
        Err(status) => {
            tracing::warn!(
                error = status.message(),
                "cannot find out what the runtime can do"
            );
            false
        }
    }
}
