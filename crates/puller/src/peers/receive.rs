//! The layers of one pull from other nodes. They are written under the names that the runtime itself uses, before it is
//! told to pull: so it waits for what arrives, takes over what stops, and fetches the rest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use kubefledged_api_types::Timestamp;
use kubefledged_process::tls::signed;
use kubefledged_queue::{Peers as Offer, Sources as Bytes};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Peers,
    image::{Image, Layer},
    layer::{End, Job},
    sources::Sources,
};
use crate::containerd::{
    Expected,
    blobs::{Ingest, Lease, Purpose},
};

/// End of a lease if this process ends before the pull does. The next one ends it at its start.
const LEASE: Duration = Duration::from_secs(6 * 3600);
/// Layers that are opened at a time.
const OPENED_AT_ONCE: usize = 8;
/// Longest time in which the layers are let go of.
const LET_GO: Duration = Duration::from_secs(10);

/// What the layers of a pull share.
pub struct Shared {
    /// This node.
    pub peers: Peers,
    /// The nodes that are asked.
    pub sources: Sources,
    /// What the pull brings.
    pub expected: Arc<Expected>,
    /// Bytes that came and were of no use.
    pub wasted: AtomicU64,
    stop: CancellationToken,
}

/// A pull that takes layers from other nodes. Dropping it lets go of them.
pub struct Receiving(Option<Parts>);

struct Parts {
    name: String,
    image: Arc<Image>,
    shared: Arc<Shared>,
    lease: String,
    tasks: JoinSet<(usize, Result<End, Status>)>,
    /// Bytes of layers that were there before, or partly.
    there: u64,
    /// Layers with bytes that nobody has verified.
    doubtful: Vec<usize>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Where the bytes came from, if the pull succeeded.
    pub bytes: Bytes,
    /// The runtime went on with bytes that nobody has verified: if the pull failed, they may be why.
    pub doubtful: bool,
}

impl Peers {
    /// Begins to take the layers of an image from other nodes. Returns when the runtime can be told to pull it. `None`:
    /// everything comes from the registry.
    pub async fn receive(&self, name: &str, from: &Offer) -> Option<Receiving> {
        let begun = self.begin(name, from).await;
        let begun = begun.inspect_err(|error| {
            tracing::warn!(
                image = name,
                error = format!("{error:#}"),
                "no layers are taken from other nodes"
            );
        });
        begun.ok().flatten()
    }

    async fn begin(&self, name: &str, from: &Offer) -> anyhow::Result<Option<Receiving>> {
        let digest = ticket_digest(from)?;
        let (config, failures) = (self.own().client()?, self.failures());
        let sources = Sources::new(from, &self.access().namespace, config, failures);
        let Some(image) = sources.image(&digest).await else {
            tracing::debug!(image = name, digest, "no other node has the image");
            return Ok(None);
        };
        let image = Arc::new(image);
        let layers = image.layers.iter();
        let layers = layers.map(|layer| (layer.digest.clone(), layer.size));
        let expected = Arc::new(Expected {
            digest: digest.as_str().into(),
            layers: layers.collect(),
            peers: AtomicU64::new(0),
            doubtful: false.into(),
        });
        let lease = Lease {
            id: self.name_lease(Purpose::Pull),
            purpose: Purpose::Pull,
            end: end_of_lease(LEASE),
        };
        self.containerd().make_lease(&lease).await?;
        self.containerd().expect(name.to_owned(), expected.clone());
        self.await_image(&image);
        let mut receiving = Receiving(Some(Parts {
            name: name.to_owned(),
            shared: Arc::new(Shared {
                peers: self.clone(),
                sources,
                expected,
                wasted: AtomicU64::new(0),
                stop: CancellationToken::new(),
            }),
            image,
            lease: lease.id,
            tasks: JoinSet::new(),
            there: 0,
            doubtful: Vec::new(),
        }));
        if let Some(parts) = &mut receiving.0 {
            parts.start().await?;
        }
        Ok(Some(receiving))
    }
}

/// The image that the ticket is for. Whoever is asked verifies the rest of it.
fn ticket_digest(from: &Offer) -> anyhow::Result<String> {
    let ticket = kubefledged_proto::puller::Ticket {
        claims: from.claims.clone(),
        signature: Vec::new(),
    };
    let digest = kubefledged_contract::tickets::check(&ticket, |_| true, signed::now());
    Ok(digest?)
}

/// A lease that begins now ends then.
pub fn end_of_lease(after: Duration) -> Timestamp {
    let end = signed::now().saturating_add(after).as_secs();
    Timestamp(i64::try_from(end).unwrap_or(i64::MAX))
}

impl Parts {
    /// Opens all layers, and starts to receive them.
    async fn start(&mut self) -> Result<(), Status> {
        let containerd = self.shared.peers.containerd();
        let lease = self.lease.as_str();
        let open = |(index, layer): (usize, Layer)| async move {
            let opened = containerd.open(lease, &layer.digest, layer.size).await;
            (index, layer, opened)
        };
        let layers: Vec<_> = self.image.layers.iter().cloned().enumerate().collect();
        let opened: Vec<(usize, Layer, Result<Ingest, Status>)> = stream::iter(layers)
            .map(open)
            .buffered(OPENED_AT_ONCE)
            .collect()
            .await;
        for (index, layer, opened) in opened {
            match opened {
                Ok(ingest) => {
                    self.there += ingest.offset();
                    let job = Job::new(self.shared.clone(), index, layer, ingest);
                    let stop = self.shared.stop.clone();
                    self.tasks
                        .spawn(async move { (index, job.run(stop).await) });
                }
                Err(status) if status.code() == Code::AlreadyExists => self.there += layer.size,
                // Somebody else writes it.
                Err(status) if status.code() == Code::Unavailable => {}
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    /// Waits until all layers have ended, and notes what became of them.
    async fn join(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            let Ok((index, ended)) = ended else { continue };
            match ended {
                Ok(End::Stored | End::HandedOver(false) | End::Discarded) => {}
                Ok(End::HandedOver(true)) => self.doubtful.push(index),
                Err(status) => {
                    self.doubtful.push(index);
                    tracing::debug!(
                        image = self.name,
                        code = ?status.code(),
                        error = status.message(),
                        "the runtime does not take a layer"
                    );
                }
            }
            if !self.doubtful.is_empty() {
                // Nobody knows whether the runtime pulls what we expect.
                self.shared.peers.containerd().doubt(&self.name).await;
            }
        }
    }

    /// Lets go of everything. Nothing of it stays but layers that the image needs.
    async fn end(mut self, at_once: bool) {
        self.shared.stop.cancel();
        if timeout(LET_GO, self.join()).await.is_err() {
            self.tasks.shutdown().await;
        }
        let peers = &self.shared.peers;
        peers.forget_image(&self.image);
        peers.containerd().ended(&self.name).await;
        if let Err(status) = peers
            .containerd()
            .end_lease(self.lease.clone(), at_once)
            .await
        {
            tracing::warn!(
                lease = self.lease,
                error = status.message(),
                "cannot end a lease; it ends by itself within six hours"
            );
        }
    }

    /// Whether the name points to the image now of which layers were taken.
    async fn is_what_was_pulled(&self) -> bool {
        let target = self.shared.peers.containerd().target(&self.name).await;
        target.is_ok_and(|target| target.as_ref() == Some(&self.image.digest))
    }

    /// Deletes bytes that nobody has verified, where the runtime has let go of them too.
    async fn purge(&self) {
        let containerd = self.shared.peers.containerd();
        for index in &self.doubtful {
            let Layer { digest, size } = &self.image.layers[*index];
            let Ok(mut ingest) = containerd.open(&self.lease, digest, *size).await else {
                continue;
            };
            if let Err(status) = ingest.restart().await {
                tracing::debug!(layer = digest, error = status.message(), "not discarded");
            }
            let _ = ingest.discard().await;
        }
    }
}

impl Receiving {
    /// Waits while layers arrive: the future ends when all have, and may be dropped before.
    pub async fn run(&mut self) {
        if let Some(parts) = &mut self.0 {
            parts.join().await;
        }
        std::future::pending::<()>().await;
    }

    /// The runtime's pull has ended.
    pub async fn finish(mut self, pulled: bool) -> Received {
        let Some(mut parts) = self.0.take() else {
            return Received::default();
        };
        parts.shared.stop.cancel();
        if timeout(LET_GO, parts.join()).await.is_err() {
            parts.tasks.shutdown().await;
        }
        let peers = parts.shared.expected.peers.load(Ordering::Relaxed);
        let wasted = parts.shared.wasted.load(Ordering::Relaxed);
        let bytes = if parts.is_what_was_pulled().await {
            let brought = parts.image.size().saturating_sub(parts.there);
            Bytes {
                peers,
                registry: brought.saturating_sub(peers),
                wasted,
            }
        } else {
            // The tag has moved meanwhile, or the pull failed.
            Bytes {
                wasted: wasted + peers,
                ..Bytes::default()
            }
        };
        let received = Received {
            bytes,
            doubtful: !parts.doubtful.is_empty(),
        };
        if !pulled {
            parts.purge().await;
        }
        parts.end(!pulled).await;
        received
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(parts) = self.0.take() {
            tokio::spawn(parts.end(true));
        }
    }
}
