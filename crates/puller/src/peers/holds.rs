//! Layers that are kept for other nodes where the runtime would discard them after unpacking. Each lease has its end in
//! itself, so that it ends even if this process does not come back.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use kubefledged_api_types::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Peers, locked, receive::end_of_lease};
use crate::{
    containerd::blobs::{Lease, Purpose},
    disk,
};

/// Between two looks at the ends of leases, and at the disk.
const LOOK: Duration = Duration::from_secs(5);
/// End of a lease while its pull runs, if this process does not live to end it.
const WHILE_PULLING: Duration = Duration::from_secs(6 * 3600);

/// The disk on which images are, and the usage in percent from which on nothing is kept.
pub type DiskGuard = Option<(PathBuf, u8)>;

/// The leases, by id with their ends.
#[derive(Clone, Debug)]
pub struct Holds {
    open: Arc<Mutex<BTreeMap<String, Timestamp>>>,
    /// Leases of pulls that run and whose layers are not known yet, by image name.
    pulls: Arc<Mutex<BTreeMap<String, String>>>,
    disk: DiskGuard,
}

/// Layers of a pull that are kept. Dropping it without [`Hold::keep`] lets go of them.
pub struct Hold {
    peers: Peers,
    name: String,
    lease: Option<String>,
    time: Duration,
}

impl Holds {
    /// Keeps nothing while the disk is too full.
    pub fn new(disk: DiskGuard) -> Self {
        Self {
            open: Arc::default(),
            pulls: Arc::default(),
            disk,
        }
    }

    fn is_full(&self) -> bool {
        let Some((path, watermark)) = &self.disk else {
            return false;
        };
        let usage = disk::usage(path).ok();
        usage.is_some_and(|usage| kubefledged_queue::full(usage, *watermark).is_some())
    }

    /// Returns the leases that have ended by now, or all of them if the disk is full.
    fn due(&self) -> Vec<String> {
        let (now, full) = (end_of_lease(Duration::ZERO), self.is_full());
        let open = locked(&self.open);
        let due = open.iter().filter(|(_, end)| full || **end <= now);
        due.map(|(id, _)| id.clone()).collect()
    }
}

impl Peers {
    /// Begins to keep the layers of a pull. The end of `time` is counted from the end of the pull.
    pub async fn hold(&self, name: &str, time: Duration) -> Option<Hold> {
        if self.holds().is_full() {
            return None;
        }
        let lease = self.lease_for_holding(WHILE_PULLING).await;
        let lease = lease.inspect_err(|status| {
            tracing::warn!(
                image = name,
                error = status.message(),
                "layers are not kept for other nodes"
            );
        });
        let lease = lease.ok()?;
        locked(&self.holds().pulls).insert(name.to_owned(), lease.clone());
        Some(Hold {
            peers: self.clone(),
            name: name.to_owned(),
            lease: Some(lease),
            time,
        })
    }

    async fn lease_for_holding(&self, time: Duration) -> Result<String, Status> {
        let lease = Lease {
            id: self.name_lease(Purpose::Hold),
            purpose: Purpose::Hold,
            end: end_of_lease(time),
        };
        self.containerd().make_lease(&lease).await?;
        Ok(lease.id)
    }

    /// Returns the lease that keeps the layers of a pull, if it awaits to hear of them. It asks for them once.
    pub fn wants_layers(&self, name: &str) -> Option<String> {
        locked(&self.holds().pulls).remove(name)
    }

    /// The layers of a pull that runs are known now.
    pub async fn found(&self, lease: &str, layers: Vec<String>) {
        for layer in layers {
            if let Err(status) = self.containerd().keep(lease, layer).await {
                tracing::debug!(lease, error = status.message(), "a layer is not kept");
                return;
            }
        }
    }

    async fn end_hold(&self, id: String) {
        match self.containerd().end_lease(id.clone(), false).await {
            Ok(()) => drop(locked(&self.holds().open).remove(&id)),
            // It is tried again, and has its end in itself.
            Err(status) => {
                tracing::debug!(lease = id, error = status.message(), "a lease is not ended");
            }
        }
    }

    /// Ends leases in time. Those of an earlier process are taken over; those of its pulls end at once.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut known = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.is_supported() && !known {
                known = self.take_over().await.is_ok();
            }
            for id in self.holds().due() {
                self.end_hold(id).await;
            }
        }
    }

    async fn take_over(&self) -> Result<(), Status> {
        let ours = |lease: &Lease| self.is_ours(&lease.id);
        for lease in self.containerd().leases(Purpose::Pull).await? {
            if !ours(&lease) {
                self.containerd().end_lease(lease.id, false).await?;
            }
        }
        let held = self.containerd().leases(Purpose::Hold).await?;
        let held = held.into_iter().filter(|lease| !ours(lease));
        locked(&self.holds().open).extend(held.map(|lease| (lease.id, lease.end)));
        Ok(())
    }
}

impl Hold {
    /// The pull has ended and brought the image.
    pub async fn keep(mut self) {
        let kept = self.try_keep().await;
        if let Err(status) = kept {
            tracing::debug!(
                image = self.name,
                error = status.message(),
                "layers are not kept for other nodes"
            );
        }
    }

    async fn try_keep(&mut self) -> Result<(), Status> {
        let (peers, containerd) = (self.peers.clone(), self.peers.containerd());
        let target = containerd.target(&self.name).await?;
        let target = target.ok_or_else(|| Status::not_found("the image is gone"))?;
        let image = peers.stored_image(&target).await?;
        let end = end_of_lease(self.time);
        let lease = peers.lease_for_holding(self.time).await?;
        locked(&peers.holds().open).insert(lease.clone(), end);
        for layer in &image.layers {
            containerd.keep(&lease, layer.digest.clone()).await?;
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let peers = self.peers.clone();
        locked(&peers.holds().pulls).remove(&self.name);
        // It is tried again if it does not end now.
        locked(&peers.holds().open).insert(lease.clone(), Timestamp(0));
        tokio::spawn(async move { peers.end_hold(lease).await });
    }
}
