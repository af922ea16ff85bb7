//! The container runtime of one node, as real ones were seen to behave: what they hold, what
//! removal takes along, what they say when something goes wrong.

mod containers;
mod pins;

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_queue::{CallError, Disk, Image, Runtime as Kind};
use kubefledged_testkit::removal::{Effect, Removal, Target};

use crate::registry::{Layer, Manifest, PAUSE, normalized};

/// Of a node's disk, in MB.
const CAPACITY: u64 = 10_000;

/// One image.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Normalized names with tags.
    pub tags: BTreeSet<String>,
    /// `repository@sha256:...`
    pub digests: BTreeSet<String>,
    /// Protected from garbage collection.
    pub pinned: bool,
    /// It carries a label of ours; whether that pins it is the runtime's business.
    pub labelled: bool,
    /// Whether the runtime shows the label as a pin, and until when it shows that, if the label was changed.
    shown: Option<(bool, u64)>,
    /// A container has run from it.
    pub ran: bool,
    /// When it came.
    pub since: u64,
    /// Shared with other images that have them too.
    pub layers: Vec<Layer>,
}

/// Runtimes that behave differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// Takes labels, and knows no pins.
    Containerd16,
    /// Pins what carries a label.
    Containerd2,
    /// Pins by configuration only; no other interface than CRI.
    Crio,
    /// The same.
    Docker,
}

impl Flavor {
    /// How it removes.
    pub fn kind(self) -> Kind {
        match self {
            Self::Containerd16 | Self::Containerd2 => Kind::Containerd,
            Self::Crio => Kind::Crio,
            Self::Docker => Kind::Docker,
        }
    }

    /// Has it an interface beside CRI, for pins and progress?
    pub fn has_more(self) -> bool {
        self.kind() == Kind::Containerd
    }
}

/// One node's runtime.
#[derive(Debug)]
pub struct Runtime {
    /// Which it is.
    pub flavor: Flavor,
    /// How it removes.
    pub kind: Kind,
    /// By id: 64 hexadecimal digits.
    pub images: BTreeMap<String, Held>,
    /// Ids of the images that containers run from.
    pub containers: Vec<String>,
    /// Ids of the images that containers mount as volumes.
    pub mounts: Vec<String>,
    /// Names that somebody else pulled: nobody of ours must answer for them.
    pub foreign: BTreeSet<String>,
    /// Names that we pulled, as we noted, with the id of the image: in labels, or in the puller's own file.
    pub marked: BTreeMap<String, String>,
    /// Fetched by pulls that were broken off, and kept for a while.
    pub leased: BTreeMap<String, u64>,
    /// It answers nothing before.
    pub away_until: u64,
}

impl Runtime {
    /// With its sandbox image, and a sandbox that runs.
    pub fn new(flavor: Flavor, pause: &Manifest) -> Self {
        let kind = flavor.kind();
        let mut runtime = Self {
            flavor,
            kind,
            images: BTreeMap::new(),
            containers: Vec::new(),
            mounts: Vec::new(),
            foreign: BTreeSet::new(),
            marked: BTreeMap::new(),
            leased: BTreeMap::new(),
            away_until: 0,
        };
        runtime.store(PAUSE, pause, 0);
        runtime.foreign.insert(normalized(PAUSE));
        runtime.containers.push(pause.id.clone());
        if let Some(held) = runtime.images.get_mut(&pause.id) {
            // containerd 1.6 has no pins; 2.x and CRI-O pin the sandbox image.
            held.pinned = flavor == Flavor::Crio || flavor == Flavor::Containerd2;
            held.ran = true;
        }
        runtime
    }

    /// The id that a name, a digest or an id leads to.
    pub fn resolve(&self, target: &str) -> Option<String> {
        let bare = target.strip_prefix("sha256:").unwrap_or(target);
        if self.images.contains_key(bare) {
            return Some(bare.to_owned());
        }
        let name = normalized(target);
        let found = self
            .images
            .iter()
            .find(|(_, held)| held.tags.contains(&name) || held.digests.contains(&name));
        found.map(|(id, _)| id.clone())
    }

    /// Does it hold this name?
    pub fn holds(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    /// `ImageStatus`.
    pub fn inspect(&self, target: &str, now: u64) -> Option<Image> {
        let id = self.resolve(target)?;
        let held = self.images.get(&id)?;
        let shown = |name: &String| match self.kind {
            Kind::Docker => name
                .strip_prefix("docker.io/library/")
                .unwrap_or(name)
                .to_owned(),
            _ => name.clone(),
        };
        Some(Image {
            id: match self.kind {
                Kind::Crio => id.clone(),
                _ => format!("sha256:{id}"),
            },
            tags: held.tags.iter().map(shown).collect(),
            digests: held.digests.iter().map(shown).collect(),
            size: held.layers.iter().map(|(_, size)| size << 20).sum(),
            pinned: self.pinned(held, now),
            unmountable: false,
        })
    }

    /// Notes that we pulled what lies under a name.
    pub fn mark(&mut self, name: &str) {
        if let Some(id) = self.resolve(name) {
            self.marked.insert(normalized(name), id);
        }
    }

    /// Did we pull what lies under a name?
    pub fn is_marked(&self, name: &str) -> bool {
        self.resolve(name).as_ref() == self.marked.get(&normalized(name))
            && self.resolve(name).is_some()
    }

    /// Every layer that is there, once.
    pub fn layers(&self) -> BTreeMap<String, u64> {
        let held = self.images.values().flat_map(|held| held.layers.clone());
        held.chain(self.leased.clone()).collect()
    }

    /// `ImageFsInfo`. `others`: MB of which the images are no part.
    pub fn disk(&self, others: u64) -> Disk {
        let used = others + self.layers().values().sum::<u64>();
        Disk::of_bytes(CAPACITY << 20, CAPACITY.saturating_sub(used) << 20)
    }

    /// A pull is broken off when this part of it was done: what came whole before is kept, where a lease
    /// protects it.
    pub fn break_off(&mut self, manifest: &Manifest, percent: u64) {
        if self.flavor != Flavor::Containerd16 {
            return;
        }
        let there = self.layers();
        let mut came = manifest.lacks(&there) * percent.min(100) / 100;
        for (id, size) in &manifest.layers {
            if there.contains_key(id) {
                continue;
            }
            let Some(rest) = came.checked_sub(*size) else {
                return;
            };
            came = rest;
            self.leased.insert(id.clone(), *size);
        }
    }

    /// What a pull leaves behind. A tag that meant another image leaves that one without it.
    pub fn store(&mut self, name: &str, manifest: &Manifest, now: u64) {
        let name = normalized(name);
        for held in self.images.values_mut() {
            held.tags.remove(&name);
        }
        let held = self.images.entry(manifest.id.clone()).or_default();
        if held.tags.is_empty() && held.digests.is_empty() {
            held.since = now;
        }
        if !name.contains('@') {
            held.tags.insert(name);
        }
        held.digests.insert(manifest.digest.clone());
        held.layers.clone_from(&manifest.layers);
        for (id, _) in &manifest.layers {
            self.leased.remove(id);
        }
    }

    /// Normalized names that a removal of this target would take away.
    pub fn would_take(&self, target: &str) -> BTreeSet<String> {
        let Some(id) = self.resolve(target) else {
            return BTreeSet::new();
        };
        let by_id = target.strip_prefix("sha256:").unwrap_or(target) == id;
        if self.kind == Kind::Crio && !by_id {
            return [normalized(target)].into();
        }
        self.images[&id].tags.clone()
    }

    /// `RemoveImage`.
    pub fn remove(&mut self, target: &str) -> Result<(), CallError> {
        let removal = match self.kind {
            Kind::Containerd => Removal::Whole,
            Kind::Crio => Removal::Name,
            Kind::Docker => Removal::Id,
        };
        if let Some(refusal) = removal.refusal(target) {
            return Err(unknown(&refusal));
        }
        let Some(id) = self.resolve(target) else {
            return Ok(());
        };
        let by_id = target.strip_prefix("sha256:").unwrap_or(target) == id;
        if let Some(refusal) = removal.refusal_of_mounted()
            && self.mounted(&id)
            && !by_id
        {
            return Err(unknown(&refusal));
        }
        let effect = removal.effect(Target {
            by_id,
            last_name: self.images[&id].tags.len() <= 1,
            used: self.used(&id),
        });
        match effect {
            Effect::Image => self.drop_image(&id),
            Effect::Name => {
                let name = normalized(target);
                if let Some(held) = self.images.get_mut(&id) {
                    held.tags.remove(&name);
                }
                self.foreign.remove(&name);
            }
            Effect::Nothing => {}
            Effect::Refused(why) => return Err(unknown(&why)),
        }
        Ok(())
    }

    fn drop_image(&mut self, id: &str) {
        if let Some(held) = self.images.remove(id) {
            for tag in held.tags {
                self.foreign.remove(&tag);
            }
        }
    }

    /// The kubelet's garbage collection: what never ran goes first, what is pinned or in use stays.
    pub fn collect(&mut self, most: usize, now: u64) -> Vec<String> {
        self.leased.clear();
        let mut old: Vec<(bool, u64, String)> = self
            .images
            .iter()
            .filter(|(id, held)| !self.pinned(held, now) && !self.used(id) && !self.mounted(id))
            .map(|(id, held)| (held.ran, held.since, id.clone()))
            .collect();
        old.sort();
        let gone: Vec<String> = old.into_iter().take(most).map(|(.., id)| id).collect();
        for id in &gone {
            self.drop_image(id);
        }
        gone
    }
}

/// The disk has no room for it.
pub fn no_space() -> CallError {
    unknown("write /var/lib/x: no space left on device")
}

/// An error as most of them come: without a usable code.
pub fn unknown(message: &str) -> CallError {
    CallError {
        code: "Unknown".to_owned(),
        message: message.to_owned(),
    }
}

/// The socket does not answer, or stopped to in the middle of a call.
pub fn away() -> CallError {
    CallError {
        code: "Unavailable".to_owned(),
        message: "tcp connect error: Connection refused (os error 111)".to_owned(),
    }
}

#[cfg(test)]
mod tests;
