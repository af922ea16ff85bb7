//! Access to the node for the calls of the queue: its runtime, disk and credential providers.

use std::{path::PathBuf, time::Duration};

use kubefledged_proto::puller::Credential;
use kubefledged_queue::{
    Answer, Call, CallError, CallId, Image, REFUSED_ARTIFACT, RuntimeFacts, Support, Untag,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    containerd::Containerd,
    cri::{self, Cri},
    disk,
    driver::Input,
    marks::Marks,
    peers::Peers,
    plugins::Plugins,
};

/// CRI knows that long after containerd that a name is gone, at most.
const UNTAGGED: Duration = Duration::from_secs(5);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Facts about the runtime that `GetInfo` reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Whether images can be pinned.
    pub pins: Support,
    /// Whether the runtime reports the bytes of pulls.
    pub progress: Support,
    /// Whether layers can be taken from other nodes and handed on.
    pub peers: Support,
}

/// Access to the node. Clones share connections and caches.
#[derive(Clone, Debug)]
pub struct Node {
    /// The runtime.
    pub cri: Cri,
    /// containerd's own API, if the runtime is containerd.
    pub containerd: Containerd,
    /// Path on the image file system.
    pub disk: Option<PathBuf>,
    /// The node's credential providers.
    pub plugins: Plugins,
    /// What we pulled, where the runtime keeps no labels for us.
    pub marks: Marks,
    /// Layers from other nodes, and for them. `None`: they are switched off.
    pub peers: Option<Peers>,
}

impl Node {
    /// Returns the facts about the runtime on which the queue's decisions depend.
    pub async fn facts(&self) -> Result<RuntimeFacts, Status> {
        let version = self.cri.version().await?;
        let (pins, progress) = self.containerd.abilities().await?;
        Ok(RuntimeFacts {
            runtime: cri::runtime(&version.runtime_name),
            sandbox_image: self.cri.sandbox_image().await,
            pins,
            progress,
            peers: self.shares().await?,
            untags: pins != Support::No,
        })
    }

    /// Returns the names of optional features.
    pub fn features(&self) -> Vec<String> {
        let disk = self.disk.as_ref().map(|_| "disk-guard");
        let plugins = (!self.plugins.is_empty()).then_some("credential-providers");
        [disk, plugins]
            .into_iter()
            .flatten()
            .map(ToOwned::to_owned)
            .collect()
    }

    /// Carries out one call of the queue.
    pub async fn carry_out(&self, id: CallId, call: Call, credential: Option<Credential>) -> Input {
        let (cri, containerd) = (&self.cri, &self.containerd);
        let answer = match call {
            Call::Inspect(name) => Answer::Inspected(self.inspect(name).await.map_err(error)),
            Call::Pull(name, _, sharing) => {
                let pulled = self.pull(name.clone(), credential, &sharing).await;
                if let Err(status) = &pulled {
                    self.clear_refused(&name, status).await;
                }
                Answer::Pulled(pulled.map_err(error))
            }
            Call::Containers => Answer::Containers(cri.containers().await.map_err(error)),
            Call::Remove(target) => Answer::Removed(cri.remove(target).await.map_err(error)),
            Call::Untag(untag) => Answer::Removed(self.untag(untag).await.map_err(error)),
            Call::FsInfo => Answer::Disk(self.usage()),
            Call::Pins => Answer::Pins(containerd.pins().await.map_err(error)),
            Call::Pin(id, on) => Answer::Pinned(containerd.pin(id, on).await.map_err(error)),
            Call::Mark(name) => Answer::Marked(self.mark(name).await.map_err(error)),
            Call::Trace(name) => Answer::Traced(self.is_marked(name).await.map_err(error)),
            Call::Progress(names) => Answer::Progress(self.progress(&names).await.map_err(error)),
            Call::Credentials(name) => {
                let (credentials, trouble) = self.plugins.credentials(&name).await;
                return Input::Credentials(id, credentials, trouble);
            }
        };
        Input::Answered(id, answer)
    }

    async fn inspect(&self, name: String) -> Result<Option<Image>, Status> {
        let Some(mut image) = self.cri.inspect(name).await? else {
            return Ok(None);
        };
        image.unmountable = self.containerd.is_artifact(&image.id).await;
        Ok(Some(image))
    }

    /// Remembers that we pulled what lies under a name: in containerd's own store, or in ours.
    async fn mark(&self, name: String) -> Result<(), Status> {
        match self.containerd.mark(name.clone()).await {
            Err(status) if status.code() == Code::Unimplemented => {}
            answer => return answer,
        }
        match self.cri.inspect(name.clone()).await? {
            Some(image) => self.marks.add(name, image.id),
            None => Ok(()),
        }
    }

    async fn is_marked(&self, name: String) -> Result<bool, Status> {
        match self.containerd.is_marked(name.clone()).await {
            Err(status) if status.code() == Code::Unimplemented => {}
            answer => return answer,
        }
        let image = self.cri.inspect(name.clone()).await?;
        Ok(image.is_some_and(|image| self.marks.has(&name, &image.id)))
    }

    /// containerd 1.6 refuses an artifact when it has registered its name already: the name would count as present.
    async fn clear_refused(&self, name: &str, status: &Status) {
        if !status.message().contains(REFUSED_ARTIFACT) {
            return;
        }
        if let Err(status) = self.untag_name(name, &[]).await {
            let error = status.message();
            tracing::warn!(
                image = name,
                error,
                "a refused artifact may count as present"
            );
        }
    }

    /// Removes a name alone. CRI learns of it by an event of containerd, a moment later.
    async fn untag_name(&self, name: &str, wanted: &[String]) -> Result<(), Status> {
        self.containerd.untag(name, wanted).await?;
        let end = Instant::now() + UNTAGGED;
        while self.cri.inspect(name.to_owned()).await?.is_some() {
            if Instant::now() > end {
                return Err(Status::deadline_exceeded(format!(
                    "CRI still has {name}, which containerd removed"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Removes a name of an id that has others.
    async fn untag(&self, untag: Untag) -> Result<(), Status> {
        let Untag { id, name, wanted } = untag;
        self.untag_name(&name, &wanted).await?;
        let left = self.cri.inspect(id.clone()).await?.unwrap_or_default();
        let other = left.tags.into_iter().chain(left.digests).next();
        match other {
            Some(other) => self.containerd.point(id, other).await,
            None => Ok(()),
        }
    }

    fn usage(&self) -> Result<kubefledged_queue::Disk, CallError> {
        match &self.disk {
            Some(path) => disk::usage(path),
            None => Err(CallError {
                code: "Unimplemented".to_owned(),
                message: "the file system of the images cannot be seen".to_owned(),
            }),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
/// Converts an error. An error with a source comes from the connection and becomes `Unavailable`, because
/// tonic reports `Unknown` when a connection breaks during a call. Errors of the runtime have no source.
fn error(status: Status) -> CallError {
    let code = match std::error::Error::source(&status) {
        Some(_) => tonic::Code::Unavailable,
        None => status.code(),
    };
    CallError {
        code: format!("{code:?}"),
        message: status.message().to_owned(),
    }
}
