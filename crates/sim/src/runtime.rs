//! The container runtime of one node, as real ones were seen to behave: what they hold, what
//! removal takes along, what they say when something goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_queue::{CallError, Container, Disk, Image, Runtime as Kind};
use kubefledged_testkit::removal::{Effect, Removal, Target};

use crate::registry::{Layer, Manifest, PAUSE, normalized};

/// Of a node's disk, in MB.
const CAPACITY: u64 = 10_000;
/// What others have on it.
const OTHERS: u64 = 5_000;
/// The same when it is full: the smaller images still fit, if they are the first.
const OTHERS_FULL: u64 = 9_950;

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
    pub fn inspect(&self, target: &str) -> Option<Image> {
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
            pinned: self.pinned(held),
        })
    }

    /// Is it protected from garbage collection?
    pub fn pinned(&self, held: &Held) -> bool {
        held.pinned || (held.labelled && self.flavor == Flavor::Containerd2)
    }

    /// Somebody else pins an image, if it is there.
    pub fn pin(&mut self, target: &str) {
        if let Some(id) = self.resolve(target)
            && let Some(held) = self.images.get_mut(&id)
        {
            held.pinned = true;
        }
    }

    /// Puts our label on an id, or takes it off.
    pub fn label(&mut self, id: &str, on: bool) -> Result<(), CallError> {
        if !self.flavor.has_more() {
            return Err(CallError {
                code: "Unimplemented".to_owned(),
                message: "unknown service containerd.services.images.v1.Images".to_owned(),
            });
        }
        let bare = id.strip_prefix("sha256:").unwrap_or(id);
        match self.images.get_mut(bare) {
            Some(held) => {
                held.labelled = on;
                Ok(())
            }
            None => Err(CallError {
                code: "NotFound".to_owned(),
                message: format!("image {id:?}: not found"),
            }),
        }
    }

    /// Ids that carry our label.
    pub fn labelled(&self) -> Vec<String> {
        let images = self.images.iter().filter(|(_, held)| held.labelled);
        images.map(|(id, _)| format!("sha256:{id}")).collect()
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

    /// `ImageFsInfo`.
    pub fn disk(&self, full: bool) -> Disk {
        let others = if full { OTHERS_FULL } else { OTHERS };
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

    /// All containers, in the words of the runtime.
    pub fn list_containers(&self) -> Vec<Container> {
        let said = |id: &String| {
            let tag = self.images.get(id).and_then(|held| held.tags.first());
            let image = match (self.kind, tag) {
                (Kind::Docker, _) => vec![format!("docker://sha256:{id}")],
                (Kind::Crio, Some(tag)) => vec![id.clone(), tag.clone()],
                (Kind::Crio, None) => vec![id.clone()],
                (Kind::Containerd, _) => vec![format!("sha256:{id}")],
            };
            Container { image }
        };
        self.containers.iter().map(said).collect()
    }

    /// Does a container run from it?
    pub fn used(&self, id: &str) -> bool {
        self.containers.iter().any(|used| used == id)
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
        let effect = removal.effect(Target {
            by_id: target.strip_prefix("sha256:").unwrap_or(target) == id,
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
    pub fn collect(&mut self, most: usize) -> Vec<String> {
        self.leased.clear();
        let mut old: Vec<(bool, u64, String)> = self
            .images
            .iter()
            .filter(|(id, held)| !self.pinned(held) && !self.used(id))
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
mod tests {
    use super::*;
    use crate::registry::Registries;

    fn holding(flavor: Flavor) -> Runtime {
        let registries = Registries::default();
        let mut runtime = Runtime::new(flavor, &registries.manifest(PAUSE));
        for name in ["r1.test/app:1", "r1.test/alias:1"] {
            runtime.store(name, &registries.manifest(name), 1);
        }
        runtime
    }

    #[test]
    fn containerd_removes_an_image_with_all_its_names_even_in_use() {
        let mut runtime = holding(Flavor::Containerd16);
        let id = runtime.resolve("r1.test/app:1").unwrap();
        runtime.containers.push(id);
        runtime.remove("r1.test/app:1").unwrap();
        assert!(!runtime.holds("r1.test/alias:1"));
    }

    #[test]
    fn crio_removes_a_name_and_keeps_the_data_of_the_last_one() {
        let mut runtime = holding(Flavor::Crio);
        let id = runtime.resolve("r1.test/app:1").unwrap();
        runtime.remove("r1.test/app:1").unwrap();
        assert!(runtime.holds("r1.test/alias:1"));
        runtime.remove("r1.test/alias:1").unwrap();
        assert!(runtime.holds(&id));
        assert!(runtime.remove(&format!("sha256:{id}")).is_err());
        runtime.remove(&id).unwrap();
        assert!(!runtime.holds(&id));
    }

    #[test]
    fn a_layer_lies_on_the_disk_once_until_its_last_image_is_gone() {
        let registries = Registries::default();
        let mut runtime = Runtime::new(Flavor::Containerd16, &registries.manifest(PAUSE));
        let used = |runtime: &Runtime| runtime.layers().values().sum::<u64>();
        let empty = used(&runtime);
        let (app, other) = ("r2.test/team/db:1", "r2.test/team/db:2");
        runtime.store(app, &registries.manifest(app), 1);
        let one = used(&runtime);
        runtime.store(other, &registries.manifest(other), 1);
        assert_eq!((one, used(&runtime)), (empty + 25, empty + 45));
        runtime.remove(app).unwrap();
        assert_eq!(used(&runtime), empty + 25);
        runtime.remove(other).unwrap();
        assert_eq!(used(&runtime), empty);
    }

    #[test]
    fn what_a_broken_off_pull_had_fetched_is_not_fetched_again() {
        let registries = Registries::default();
        let manifest = registries.manifest("r2.test/team/db:1");
        let mut runtime = Runtime::new(Flavor::Containerd16, &registries.manifest(PAUSE));
        runtime.break_off(&manifest, 50);
        assert_eq!(manifest.lacks(&runtime.layers()), 20);
        runtime.collect(0);
        assert_eq!(manifest.lacks(&runtime.layers()), 25);
        let mut newer = Runtime::new(Flavor::Containerd2, &registries.manifest(PAUSE));
        newer.break_off(&manifest, 50);
        assert_eq!(manifest.lacks(&newer.layers()), 25);
    }

    #[test]
    fn collection_takes_what_never_ran_first_and_nothing_in_use() {
        let mut runtime = holding(Flavor::Containerd16);
        let id = runtime.resolve("r1.test/app:1").unwrap();
        assert_eq!(runtime.collect(9), [id]);
        assert!(runtime.holds(PAUSE));
    }
}
