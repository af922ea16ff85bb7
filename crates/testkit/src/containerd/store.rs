//! The content store of the fake containerd: blobs, blobs that are being written, leases, and a garbage collection that
//! takes what neither an image nor a lease names.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, digest};

/// Prefix of the names under which layers are written.
pub(crate) const LAYER: &str = "layer-";

/// A complete blob.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blob {
    pub digest: String,
    pub labels: BTreeMap<String, String>,
    pub text: Vec<u8>,
    /// Garbage collection leaves it alone.
    pub kept: bool,
}

/// A blob that is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Write {
    pub data: Vec<u8>,
    pub total: i64,
    /// Somebody writes it.
    pub locked: bool,
}

/// A lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    pub labels: BTreeMap<String, String>,
    /// Digests of blobs, which need not exist.
    pub content: BTreeSet<String>,
    /// Names of blobs that are being written.
    pub writes: BTreeSet<String>,
}

/// Why a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The blob exists.
    Exists,
    /// Somebody else writes it.
    Locked,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub blobs: Vec<Blob>,
    pub writes: BTreeMap<String, Write>,
    pub leases: BTreeMap<String, Lease>,
    /// Digests that the images on the node name, by image id.
    pub roots: BTreeMap<String, BTreeSet<String>>,
}

/// SHA-256 as containerd writes it.
pub fn sha256(data: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = "sha256:".to_owned();
    for byte in digest(&SHA256, data).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Store {
    pub fn find(&self, digest: &str) -> Option<&Blob> {
        self.blobs.iter().find(|blob| blob.digest == digest)
    }

    /// Adds a blob under the lease, if it is not there.
    pub fn add(&mut self, blob: Blob, lease: &str) {
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.content.insert(blob.digest.clone());
        }
        match self.blobs.iter_mut().find(|b| b.digest == blob.digest) {
            Some(known) => known.labels.extend(blob.labels),
            None => self.blobs.push(blob),
        }
    }

    /// Takes the lock of a blob that is being written. Returns how much of it is there.
    pub fn open(
        &mut self,
        name: &str,
        expected: &str,
        total: i64,
        lease: &str,
    ) -> Result<i64, WriteError> {
        if self.find(expected).is_some() {
            if let Some(lease) = self.leases.get_mut(lease) {
                lease.content.insert(expected.to_owned());
            }
            return Err(WriteError::Exists);
        }
        let write = self.writes.entry(name.to_owned()).or_default();
        if write.locked {
            return Err(WriteError::Locked);
        }
        write.locked = true;
        write.total = total;
        let length = write.data.len();
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.writes.insert(name.to_owned());
        }
        Ok(i64::try_from(length).unwrap_or_default())
    }

    /// Makes a blob of what was written. False: it has another digest, and stays as it is without the lock.
    pub fn commit(&mut self, name: &str, expected: &str, lease: &str) -> bool {
        let Some(write) = self.writes.get_mut(name) else {
            return false;
        };
        write.locked = false;
        if sha256(&write.data) != expected {
            return false;
        }
        let write = self.writes.remove(name).unwrap_or_default();
        for lease in self.leases.values_mut() {
            lease.writes.remove(name);
        }
        let blob = Blob {
            digest: expected.to_owned(),
            text: write.data,
            ..Blob::default()
        };
        self.add(blob, lease);
        true
    }

    pub fn unlock(&mut self, name: &str) {
        if let Some(write) = self.writes.get_mut(name) {
            write.locked = false;
        }
    }

    pub fn collect_garbage(&mut self) {
        let Self {
            blobs,
            writes,
            leases,
            roots,
        } = self;
        blobs.retain(|blob| {
            let named = |names: &BTreeSet<String>| names.contains(&blob.digest);
            blob.kept
                || roots.values().any(named)
                || leases.values().any(|lease| named(&lease.content))
        });
        writes.retain(|name, write| {
            write.locked || leases.values().any(|lease| lease.writes.contains(name))
        });
    }
}
