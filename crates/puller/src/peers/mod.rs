//! Layers from other nodes, and for them. The container runtime stays the authority: it asks the registry for the
//! manifest with the credentials of the pull, and verifies the digest of every layer.
//!
//! [`receive`] takes the layers of one pull from other nodes, [`layer`] one of them, from [`sources`]. [`service`] hands
//! layers on to whoever has a ticket ([`access`]), also while they arrive ([`window`]), as far as there are [`places`].
//! [`holds`] keeps them for a time. [`identity`] is who we are for other pullers.

mod access;
mod holds;
pub mod identity;
pub mod image;
mod layer;
mod places;
mod rate;
mod receive;
mod service;
mod sources;
mod window;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use kubefledged_process::tls::{Failures, Served, signed};
use kubefledged_queue::{Sources, Support};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

pub use holds::{DiskGuard, Hold};
pub use receive::{Received, Receiving};

use crate::{
    containerd::{Containerd, blobs::Purpose},
    metrics::Metrics,
    node::Abilities,
};
use access::Access;
use holds::Holds;
use identity::Own;
use image::{Image, children};
use places::Places;
use rate::Rate;
use window::Windows;

/// Layers that are taken from other nodes at a time, of all pulls.
const DOWNLOADS: usize = 4;
/// Images whose documents are remembered, for the next layer that is asked for.
const MOST_REMEMBERED: usize = 16;

/// Limits of the flags.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Layers that are handed on at a time.
    pub uploads: usize,
    /// Bytes a second that are handed on; 0: no limit.
    pub upload_rate: u64,
    /// Bytes a second that are taken; 0: no limit.
    pub download_rate: u64,
}

/// What layers from and for other nodes need.
pub struct Surroundings {
    /// Our namespace, which is in the names of all certificates.
    pub namespace: Arc<str>,
    /// Our node.
    pub node: Arc<str>,
    /// The runtime's store.
    pub containerd: Containerd,
    /// The CAs that we trust.
    pub served: watch::Receiver<Option<Arc<Served>>>,
    /// Counts handshakes with other pullers that failed.
    pub failures: Failures,
    /// Counts bytes.
    pub metrics: Metrics,
    /// Where nothing is kept because the disk is full.
    pub disk: DiskGuard,
    /// Whether the runtime can share layers.
    pub abilities: watch::Receiver<Abilities>,
}

/// Layers from other nodes, and for them. Clones share their state.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    access: Access,
    own: Own,
    containerd: Containerd,
    failures: Failures,
    metrics: Metrics,
    abilities: watch::Receiver<Abilities>,
    windows: Arc<Windows>,
    downloads: Arc<Semaphore>,
    download_rate: Rate,
    places: Places,
    upload_rate: Rate,
    holds: Holds,
    /// Images of pulls that run, and how many those are.
    awaited: Mutex<Vec<Arc<Image>>>,
    /// Images that were asked for last.
    remembered: Mutex<HashMap<String, Arc<Image>>>,
    /// Begins the names of our leases: those of another process begin otherwise.
    prefix: String,
    counter: AtomicU64,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peers").field(&self.0.access.node).finish()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Makes the key with which other pullers are asked.
    ///
    /// # Errors
    /// There is no such key.
    pub fn new(around: Surroundings, limits: Limits) -> anyhow::Result<Self> {
        let Surroundings {
            namespace,
            node,
            containerd,
            served,
            failures,
            metrics,
            disk,
            abilities,
        } = around;
        let own = Own::new(&namespace, &node, served.clone())?;
        let started = signed::now().as_millis();
        Ok(Self(Arc::new(Inner {
            access: Access {
                namespace,
                node,
                served,
            },
            own,
            containerd,
            failures,
            metrics,
            abilities,
            windows: Arc::default(),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
            download_rate: Rate::new(limits.download_rate),
            places: Places::new(limits.uploads),
            upload_rate: Rate::new(limits.upload_rate),
            holds: Holds::new(disk),
            awaited: Mutex::default(),
            remembered: Mutex::default(),
            prefix: format!("kubefledged-{started}"),
            counter: AtomicU64::new(0),
        })))
    }

    /// The certificate with which other pullers are asked.
    pub fn own(&self) -> &Own {
        &self.0.own
    }

    /// Whether the runtime can share layers.
    pub fn is_supported(&self) -> bool {
        self.0.abilities.borrow().peers == Support::Yes
    }

    /// Number of layers that are being handed on.
    pub fn uploads(&self) -> usize {
        self.0.places.count()
    }

    /// Records where the layers of a pull came from.
    pub fn moved(&self, sources: Sources) {
        self.metrics().moved(sources);
    }

    fn access(&self) -> &Access {
        &self.0.access
    }

    fn containerd(&self) -> &Containerd {
        &self.0.containerd
    }

    fn failures(&self) -> &Failures {
        &self.0.failures
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn windows(&self) -> &Arc<Windows> {
        &self.0.windows
    }

    fn downloads(&self) -> Arc<Semaphore> {
        self.0.downloads.clone()
    }

    fn download_rate(&self) -> &Rate {
        &self.0.download_rate
    }

    fn places(&self) -> &Places {
        &self.0.places
    }

    fn upload_rate(&self) -> &Rate {
        &self.0.upload_rate
    }

    fn holds(&self) -> &Holds {
        &self.0.holds
    }

    /// A new name for a lease.
    fn name_lease(&self, purpose: Purpose) -> String {
        let number = self.0.counter.fetch_add(1, Ordering::Relaxed);
        format!("{}-{purpose:?}-{number}", self.0.prefix).to_lowercase()
    }

    /// Whether this process made the lease.
    fn is_ours(&self, lease: &str) -> bool {
        let rest = lease.strip_prefix(&self.0.prefix);
        rest.is_some_and(|rest| rest.starts_with('-'))
    }

    // === images

    /// A pull brings this image, so that others may ask for it before it is here.
    fn await_image(&self, image: &Arc<Image>) {
        locked(&self.0.awaited).push(image.clone());
    }

    fn forget_image(&self, image: &Arc<Image>) {
        let mut awaited = locked(&self.0.awaited);
        if let Some(at) = awaited.iter().position(|known| Arc::ptr_eq(known, image)) {
            awaited.swap_remove(at);
        }
    }

    /// Whether a pull that runs brings this layer.
    fn awaits(&self, layer: &str) -> bool {
        let awaited = locked(&self.0.awaited);
        let mut layers = awaited.iter().flat_map(|image| &image.layers);
        layers.any(|known| known.digest == layer)
    }

    /// Returns the image of this digest that is here, or on its way here.
    async fn image(&self, digest: &str) -> Result<Arc<Image>, Status> {
        if let Some(image) = self.known_image(digest) {
            return Ok(image);
        }
        let image = Arc::new(self.stored_image(digest).await?);
        let mut remembered = locked(&self.0.remembered);
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest.to_owned(), image.clone());
        Ok(image)
    }

    fn known_image(&self, digest: &str) -> Option<Arc<Image>> {
        let awaited = locked(&self.0.awaited);
        let found = awaited.iter().find(|image| image.digest == digest);
        let found = found.cloned();
        found.or_else(|| locked(&self.0.remembered).get(digest).cloned())
    }

    /// Reads the documents of an image from the runtime's store.
    async fn stored_image(&self, digest: &str) -> Result<Image, Status> {
        let wrong = |error: &dyn std::fmt::Display| Status::not_found(error.to_string());
        let document = self.document(digest).await?;
        let mut documents = vec![document];
        if let Some(named) = children(&documents[0]).map_err(|error| wrong(&error))? {
            let mut found = None;
            for child in named {
                match self.document(&child).await {
                    Ok(document) => {
                        found = Some(document);
                        break;
                    }
                    Err(status) if status.code() == Code::NotFound => {}
                    Err(status) => return Err(status),
                }
            }
            let found =
                found.ok_or_else(|| Status::not_found("no manifest of the image is here"))?;
            documents.push(found);
        }
        Image::verify(digest, documents).map_err(|error| wrong(&error))
    }

    async fn document(&self, digest: &str) -> Result<Vec<u8>, Status> {
        self.containerd().read(digest.to_owned()).await
    }
}
