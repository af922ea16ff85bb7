//! Registries: which image a name means today, and who may have it.

use std::collections::BTreeMap;

use kubefledged_image::ImageRef;

use crate::rng::mix;

/// Names that users write. Two of them mean one image, one needs a password, one is written in
/// two ways, one has no tag, one takes long, one is what sandboxes run.
pub const NAMES: [&str; 8] = [
    "r1.test/app:1",
    "r1.test/alias:1",
    "r2.test/team/db:1",
    "nginx",
    "docker.io/library/nginx:latest",
    "r1.test/big:1",
    "r1.test/app:2",
    PAUSE,
];
/// Every runtime's own.
pub const PAUSE: &str = "r1.test/pause:3.10";
/// Host of the registry that asks for a password.
pub const PRIVATE: &str = "r2.test";
/// All hosts.
pub const HOSTS: [&str; 3] = ["r1.test", PRIVATE, "docker.io"];
/// Who may pull from [`PRIVATE`].
pub const USER: &str = "puller";

/// A part of images that is fetched and kept once, whoever has it: its digest and its size in MB.
pub type Layer = (String, u64);

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// 64 hexadecimal digits.
    pub id: String,
    /// `repository@sha256:...`
    pub digest: String,
    /// The base of all images of its registry, and its own.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// Size of the layers that are not among these.
    pub fn lacks(&self, there: &BTreeMap<String, u64>) -> u64 {
        let lacking = self.layers.iter().filter(|(id, _)| !there.contains_key(id));
        lacking.map(|(_, size)| size).sum()
    }
}

/// All registries.
#[derive(Debug, Default)]
pub struct Registries {
    /// How often a tag was moved.
    moved: BTreeMap<String, u64>,
}

impl Registries {
    /// Lets a tag mean another image from now on.
    pub fn move_tag(&mut self, name: &str) {
        *self.moved.entry(normalized(name)).or_default() += 1;
    }

    /// What a name means now.
    pub fn manifest(&self, name: &str) -> Manifest {
        let name = normalized(name);
        let version = self.moved.get(&name).copied().unwrap_or(0);
        // The alias is the same image until one of the two tags is moved.
        let content = name.replace("/alias:", "/app:");
        let id = hex(&content, version);
        let repository = repository(&name);
        let own = match () {
            () if name.contains("/big:") => 450,
            () if name.contains("/app:1") => 3,
            () => 20,
        };
        Manifest {
            digest: format!("{repository}@sha256:{}", hex(&id, 1)),
            layers: vec![(hex(&host(&name), 2), 5), (hex(&id, 3), own)],
            id,
        }
    }
}

/// One form for all spellings.
pub fn normalized(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| name.to_owned(), |image| image.normalized())
}

/// The host that a name is pulled from.
pub fn host(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| String::new(), |image| image.registry().to_owned())
}

/// A normalized name without its tag or digest.
pub fn repository(normalized: &str) -> &str {
    let named = normalized.split_once('@').map(|(name, _)| name);
    named.unwrap_or_else(|| normalized.rsplit_once(':').map_or(normalized, |(r, _)| r))
}

fn hex(text: &str, salt: u64) -> String {
    let start = text
        .bytes()
        .fold(salt, |state, byte| mix(state ^ u64::from(byte)));
    (0..4).fold(String::new(), |text, part| {
        format!("{text}{:016x}", mix(start ^ part))
    })
}
