//! Access to the node for the calls of the queue: its runtime, disk and credential providers.

use std::path::PathBuf;

use kubefledged_proto::puller::Credential;
use kubefledged_queue::{Answer, Call, CallError, CallId, RuntimeFacts, Support};
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
            Call::Inspect(name) => Answer::Inspected(cri.inspect(name).await.map_err(error)),
            Call::Pull(name, _, sharing) => {
                let pulled = self.pull(name, credential, &sharing).await;
                Answer::Pulled(pulled.map_err(error))
            }
            Call::Containers => Answer::Containers(cri.containers().await.map_err(error)),
            Call::Remove(target) => Answer::Removed(cri.remove(target).await.map_err(error)),
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
