//! One pull call of the queue: the runtime's own call, with layers from other nodes beside it where there are some.

use std::collections::BTreeMap;

use kubefledged_proto::puller::Credential;
use kubefledged_queue::{Progress, Sharing, Sources, Support};
use tonic::Status;

use crate::{
    node::Node,
    peers::{Peers, Receiving},
};

impl Node {
    /// Whether layers can be taken from other nodes and handed on.
    pub async fn shares(&self) -> Result<Support, Status> {
        let shares = self.peers.is_some() && self.containerd.shares().await?;
        Ok(if shares { Support::Yes } else { Support::No })
    }

    /// Pulls an image. Whatever other nodes do, it ends as it would without them.
    pub async fn pull(
        &self,
        name: String,
        credential: Option<Credential>,
        sharing: &Sharing,
    ) -> Result<Sources, Status> {
        let peers = self.peers.as_ref().filter(|peers| peers.is_supported());
        let Some(peers) = peers else {
            self.cri.pull(name, credential).await?;
            return Ok(Sources::default());
        };
        let hold = match sharing.hold {
            Some(time) => peers.hold(&name, time).await,
            None => None,
        };
        let receiving = match &sharing.peers {
            Some(from) => peers.receive(&name, from).await,
            None => None,
        };
        let pulled = match receiving {
            Some(receiving) => self.pull_beside(receiving, &name, credential).await,
            None => self.pull_alone(&name, credential).await,
        };
        if let (Some(hold), Ok(_)) = (hold, &pulled) {
            hold.keep().await;
        }
        let sources = pulled?;
        peers.moved(sources);
        Ok(sources)
    }

    async fn pull_alone(
        &self,
        name: &str,
        credential: Option<Credential>,
    ) -> Result<Sources, Status> {
        let pulled = self.cri.pull(name.to_owned(), credential).await;
        let seen = self.containerd.ended(name).await;
        pulled?;
        // Of a pull that ended before anybody looked, nothing is known.
        let registry = seen.map_or(0, |(all, there)| all.saturating_sub(there));
        Ok(Sources {
            registry,
            ..Sources::default()
        })
    }

    async fn pull_beside(
        &self,
        mut receiving: Receiving,
        name: &str,
        credential: Option<Credential>,
    ) -> Result<Sources, Status> {
        let pulled = tokio::select! {
            pulled = self.cri.pull(name.to_owned(), credential.clone()) => pulled,
            // It never ends.
            () = receiving.run() => return Err(Status::internal("layers ended before their pull")),
        };
        let received = receiving.finish(pulled.is_ok()).await;
        match pulled {
            Ok(()) => Ok(received.bytes),
            // Bytes that nobody had verified went into a layer. They are deleted, and it is pulled without them.
            Err(status) if received.doubtful => {
                let error = status.message();
                tracing::warn!(
                    image = name,
                    error,
                    "the image is pulled again without other nodes"
                );
                let sources = self.pull_alone(name, credential).await?;
                Ok(sources.and(received.bytes))
            }
            Err(status) => Err(status),
        }
    }

    /// Returns how far the pulls of these names are.
    pub async fn progress(&self, names: &[String]) -> Result<BTreeMap<String, Progress>, Status> {
        let seen = self.containerd.progress(names).await?;
        if let Some(peers) = &self.peers {
            for name in seen.keys() {
                self.tell_layers(peers, name).await;
            }
        }
        Ok(seen)
    }

    /// Layers that are to be kept for others are kept from the moment on at which they are known.
    async fn tell_layers(&self, peers: &Peers, name: &str) {
        if let Some(lease) = peers.wants_layers(name) {
            let layers = self.containerd.layers(name).await;
            peers.found(&lease, layers).await;
        }
    }
}
