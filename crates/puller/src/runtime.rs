//! Finds the runtime of this node, and watches whether it answers.

use std::{path::PathBuf, time::Duration};

use kubefledged_process::Guard;
use kubefledged_proto::cri::VersionResponse;
use kubefledged_queue::Event;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    cri::{self, Cri, Socket},
    driver::Input,
    node::Node,
};

/// Time between two calls that check the runtime, and time limit of one.
const LOOK: Duration = Duration::from_secs(5);
/// Time between them while it does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// How the runtime of this node is found.
#[derive(Clone, Debug)]
pub struct Search {
    /// The path of --cri-socket-path, which decides alone.
    pub flag: Option<PathBuf>,
    /// Directory below which sockets are looked for.
    pub run_dir: PathBuf,
    /// UID of our own pod. Empty: it is not known.
    pub pod_uid: String,
}

/// A runtime that answers: its socket, the connection and its version.
pub type Found = (Socket, Channel, VersionResponse);

/// A socket that answers.
struct Answers {
    path: PathBuf,
    version: VersionResponse,
    /// Whether the sandbox of our own pod runs there.
    ours: Result<bool, String>,
}

impl Search {
    /// Waits until the runtime of this node answers. Returns `None` if the process ends before.
    pub async fn wait(&self, ready: &Guard, shutdown: &CancellationToken) -> Option<Found> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                found = self.find() => match found {
                    Ok((path, version)) => {
                        ready.set_ready();
                        let socket = Socket::new(path);
                        return Some((socket.clone(), cri::connect(socket), version));
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

    /// Returns the runtime that runs our own pod: a node may have several that answer, and the kubelet uses one.
    /// With Docker, containerd's socket exists too, but its CRI is switched off.
    async fn find(&self) -> anyhow::Result<(PathBuf, VersionResponse)> {
        let mut refusals = Vec::new();
        let mut answers = Vec::new();
        for path in cri::sockets(self.flag.as_deref(), &self.run_dir)? {
            match tokio::time::timeout(LOOK, self.ask(path.clone())).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(status)) => {
                    refusals.push(format!("{}: {}", path.display(), status.message()));
                }
                Err(_) => refusals.push(format!("{}: no answer in time", path.display())),
            }
        }
        anyhow::ensure!(
            !answers.is_empty(),
            "no runtime answers: {}",
            refusals.join(", ")
        );
        let Answers { path, version, .. } = self.choose(answers)?;
        tracing::info!(
            runtime = version.runtime_name,
            version = version.runtime_version,
            socket = %path.display(),
            "runtime found"
        );
        Ok((path, version))
    }

    async fn ask(&self, path: PathBuf) -> Result<Answers, Status> {
        let cri = Cri::new(cri::connect(Socket::new(path.clone())));
        let version = cri.version().await?;
        let known = self.flag.is_some() || self.pod_uid.is_empty();
        let ours = if known {
            Ok(self.flag.is_some())
        } else {
            let ours = cri.runs_pod(&self.pod_uid).await;
            ours.map_err(|status| status.message().to_owned())
        };
        Ok(Answers {
            path,
            version,
            ours,
        })
    }

    /// Decides between the runtimes that answer.
    fn choose(&self, mut answers: Vec<Answers>) -> anyhow::Result<Answers> {
        if let Some(at) = answers.iter().position(|answer| answer.ours == Ok(true)) {
            return Ok(answers.swap_remove(at));
        }
        if self.pod_uid.is_empty() && answers.len() == 1 {
            return Ok(answers.swap_remove(0));
        }
        let said = answers.iter().map(|answer| {
            let Answers {
                path,
                version,
                ours,
            } = answer;
            let name = &version.runtime_name;
            match ours {
                Ok(_) => format!("{} ({name})", path.display()),
                Err(why) => format!("{} ({name}: {why})", path.display()),
            }
        });
        let said = said.collect::<Vec<_>>().join(", ");
        anyhow::ensure!(
            !self.pod_uid.is_empty(),
            "several runtimes answer, and --pod-uid is not set, by which the one is found that runs this pod: {said}; \
             set --pod-uid or --cri-socket-path"
        );
        anyhow::bail!(
            "none of the runtimes that answer runs this pod (UID {}): {said}; set --cri-socket-path to the kubelet's \
             containerRuntimeEndpoint",
            self.pod_uid
        )
    }

    /// Looks for another socket of our runtime, while the one that was used does not answer. Without a pod UID any
    /// other runtime would do, so that the socket must be gone.
    async fn search_again(&self, socket: &Socket) -> Result<(), String> {
        let may_come_back = self.pod_uid.is_empty() && socket.path().exists();
        if self.flag.is_some() || may_come_back {
            return Ok(());
        }
        let (path, _) = self.find().await.map_err(|error| format!("{error:#}"))?;
        socket.move_to(path);
        Ok(())
    }
}

/// Sets readiness by the runtime's answers. After the runtime was down, its facts are sent to the queue
/// again, because it may be another version. `known` are the facts that the queue has.
pub async fn watch(
    (search, socket): (Search, Socket),
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
                let path = socket.path();
                let mut why = format!(
                    "the runtime at {} does not answer: {}",
                    path.display(),
                    status.message()
                );
                if let Err(others) = search.search_again(&socket).await {
                    why = format!("{why}; no other was found: {others}");
                }
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
