//! Which bytes belong to which pull. A runtime's pull says nothing of its progress; containerd's
//! content store shows the blobs that are being written (`layer-sha256:...`) and the manifests that
//! have arrived, labelled with the repository they came from. What cannot be told apart is left
//! unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_image::ImageRef;
use kubefledged_proto::containerd::content::Info;
use kubefledged_queue::Bytes;
use serde::Deserialize;

/// Prefix of the label that tells where a blob came from; the registry's host follows.
const SOURCE: &str = "containerd.io/distribution.source.";
/// Prefix of the labels that lead from a manifest to its layers.
const LAYERS: &str = "containerd.io/gc.ref.content.l.";
/// How the CRI plugin names what it fetches for a layer.
const INGEST: &str = "layer-";
/// Prefix of the labels that lead from an index to its manifests.
const MANIFESTS: &str = "containerd.io/gc.ref.content.m.";

/// Bytes that have arrived of the layers being fetched, by digest.
pub type Active = BTreeMap<String, u64>;

/// Of all blobs being written the layers.
pub fn layers(ingests: impl Iterator<Item = (String, i64)>) -> Active {
    ingests
        .filter_map(|(name, offset)| {
            let digest = name.strip_prefix(INGEST)?.to_owned();
            Some((digest, u64::try_from(offset).unwrap_or_default()))
        })
        .collect()
}

/// containerd's filter for the blobs of a name's repository. None: another pull of the same
/// repository runs, and what arrives could be of either.
pub fn filter(name: &str, names: &[String]) -> Option<String> {
    let repository = |name: &str| {
        let image = ImageRef::parse(name).ok()?;
        Some((hostname(image.registry()), image.repository().to_owned()))
    };
    let ours = repository(name)?;
    let others = names.iter().filter(|other| *other != name);
    if others
        .filter_map(|other| repository(other))
        .any(|other| other == ours)
    {
        return None;
    }
    let (host, path) = ours;
    // A blob shared by several repositories lists them, separated by commas. Neither a host nor a
    // path holds anything that a regular expression would read otherwise, but dots.
    let path = path.replace('.', "[.]");
    Some(format!("labels.\"{SOURCE}{host}\"~=\"(^|,){path}(,|$)\""))
}

/// A registry's host as containerd writes it into labels: without port and brackets, as Go's `url.Hostname`.
fn hostname(registry: &str) -> String {
    let address = registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'));
    let host = match address {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or(registry),
    };
    host.to_owned()
}

/// A manifest that has arrived.
#[derive(Debug)]
pub struct Manifest {
    digest: String,
    layers: Vec<String>,
}

impl Manifest {
    /// If this blob is one.
    pub fn of(info: &Info) -> Option<Self> {
        let layers = info
            .labels
            .iter()
            .filter(|(key, _)| key.starts_with(LAYERS));
        let layers: Vec<String> = layers.map(|(_, digest)| digest.clone()).collect();
        (!layers.is_empty()).then(|| Self {
            digest: info.digest.clone(),
            layers,
        })
    }
}

/// The one manifest whose layers are being fetched. None: there are several, or none.
pub fn fetched<'a>(manifests: &'a [Manifest], active: &Active) -> Option<&'a str> {
    let fetched = |manifest: &&Manifest| manifest.layers.iter().any(|l| active.contains_key(l));
    let mut fetched = manifests.iter().filter(fetched);
    let first = fetched.next()?;
    fetched.next().is_none().then_some(&first.digest)
}

/// The indexes among the blobs.
#[derive(Debug, Default)]
pub struct Indexes {
    /// Each manifest that one names, with that one's digest and when it changed last.
    named: BTreeMap<String, ((i64, i32), String)>,
}

impl Indexes {
    /// Notes what a blob names, if it is an index. Of several with one manifest the one counts that was touched last.
    pub fn note(&mut self, info: &Info) {
        let at = info.updated_at.map_or((0, 0), |at| (at.seconds, at.nanos));
        let labels = info.labels.iter();
        for (_, manifest) in labels.filter(|(key, _)| key.starts_with(MANIFESTS)) {
            let known = self.named.get(manifest);
            if known.is_none_or(|(known, _)| *known < at) {
                let found = (at, info.digest.clone());
                self.named.insert(manifest.clone(), found);
            }
        }
    }

    /// The index that names the manifest, or else the manifest itself.
    pub fn top(&self, manifest: &str) -> String {
        let index = self.named.get(manifest);
        index.map_or_else(|| manifest.to_owned(), |(_, index)| index.clone())
    }
}

/// The layers of one pull.
#[derive(Debug)]
pub struct Plan {
    /// Digest of the index or the manifest that is pulled, if known.
    digest: Option<Arc<str>>,
    layers: Vec<Layer>,
    /// Bytes of them that were there when it was made.
    here: u64,
}

#[derive(Debug)]
struct Layer {
    digest: String,
    size: u64,
    /// Bytes that were seen; all of them once it is complete.
    done: u64,
    begun: bool,
}

impl Plan {
    /// From a manifest, and the digests of blobs that are complete.
    pub fn parse(digest: Option<Arc<str>>, manifest: &[u8], here: &[String]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Document {
            layers: Vec<Descriptor>,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: String,
            size: u64,
        }

        let document: Document = serde_json::from_slice(manifest).ok()?;
        let layers = document.layers.into_iter();
        let layers = layers.map(|layer| (layer.digest, layer.size)).collect();
        Some(Self::new(digest, layers, here))
    }

    /// Of these layers, and the digests of blobs that are complete.
    pub fn new(digest: Option<Arc<str>>, layers: Vec<(String, u64)>, here: &[String]) -> Self {
        let here: BTreeSet<&str> = here.iter().map(String::as_str).collect();
        let mut known = BTreeSet::new();
        let layers = layers.into_iter();
        // A layer that comes twice is fetched once.
        let layers = layers.filter(|(digest, _)| known.insert(digest.clone()));
        let layers = layers.map(|(digest, size)| Layer {
            done: if here.contains(digest.as_str()) {
                size
            } else {
                0
            },
            begun: false,
            digest,
            size,
        });
        let layers: Vec<Layer> = layers.collect();
        Self {
            digest,
            here: layers.iter().map(|layer| layer.done).sum(),
            layers,
        }
    }

    /// Digest of the index or the manifest that is pulled, if known.
    pub fn digest(&self) -> Option<&Arc<str>> {
        self.digest.as_ref()
    }

    /// Digests of its layers.
    pub fn layers(&self) -> Vec<String> {
        self.layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect()
    }

    /// Bytes of all its layers, and those that were there before.
    pub fn sizes(&self) -> (u64, u64) {
        let all = self.layers.iter().map(|layer| layer.size).sum();
        (all, self.here)
    }

    /// Layers that are not being fetched: complete ones that came quickly, or later ones.
    pub fn unseen(&self, active: &Active) -> Vec<String> {
        let unseen = |layer: &&Layer| {
            layer.done < layer.size && !layer.begun && !active.contains_key(&layer.digest)
        };
        let layers = self.layers.iter().filter(unseen);
        layers.map(|layer| layer.digest.clone()).collect()
    }

    /// This layer is complete.
    pub fn complete(&mut self, digest: &str) {
        for layer in self
            .layers
            .iter_mut()
            .filter(|layer| layer.digest == digest)
        {
            layer.done = layer.size;
        }
    }

    /// What has arrived by now.
    pub fn see(&mut self, active: &Active) -> Bytes {
        let mut fetching = false;
        for layer in &mut self.layers {
            match active.get(&layer.digest) {
                Some(offset) => {
                    fetching = true;
                    layer.begun = true;
                    layer.done = (*offset).min(layer.size);
                }
                // It was being written, and is no longer: it is complete.
                None if layer.begun => layer.done = layer.size,
                None => {}
            }
        }
        Bytes {
            done: self.layers.iter().map(|layer| layer.done).sum(),
            total: self.layers.iter().map(|layer| layer.size).sum(),
            active: fetching,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(layers: &[(&str, u64)]) -> Active {
        layers
            .iter()
            .map(|(digest, offset)| ((*digest).to_owned(), *offset))
            .collect()
    }

    fn info(digest: &str, layers: &[&str]) -> Info {
        let labels = layers.iter().enumerate();
        Info {
            digest: digest.to_owned(),
            labels: labels
                .map(|(i, layer)| (format!("{LAYERS}{i}"), (*layer).to_owned()))
                .collect(),
            ..Info::default()
        }
    }

    #[test]
    fn only_layers_count_and_not_what_else_is_being_written() {
        let seen = [
            ("layer-sha256:a".to_owned(), 5),
            ("manifest-sha256:b".to_owned(), 7),
            ("layer-sha256:c".to_owned(), -1),
        ];
        assert_eq!(
            layers(seen.into_iter()),
            active(&[("sha256:a", 5), ("sha256:c", 0)])
        );
    }

    #[test]
    fn a_pull_is_told_apart_by_its_repository_unless_two_pulls_share_it() {
        let names = ["r.test:5000/a.b/c:1".to_owned(), "busybox:1".to_owned()];
        assert_eq!(
            filter(&names[0], &names).unwrap(),
            "labels.\"containerd.io/distribution.source.r.test\"~=\"(^|,)a[.]b/c(,|$)\""
        );
        assert_eq!(
            filter(&names[1], &names).unwrap(),
            "labels.\"containerd.io/distribution.source.docker.io\"~=\"(^|,)library/busybox(,|$)\""
        );
        let same = ["r.test/a:1".to_owned(), "r.test/a:2".to_owned()];
        assert_eq!(filter(&same[0], &same), None);
        // containerd's label has no port: two registries of one host look alike.
        let ports = ["r.test:1/a:1".to_owned(), "r.test:2/a:1".to_owned()];
        assert_eq!(filter(&ports[0], &ports), None);
        assert_eq!(hostname("[fd00::1]:5000"), "fd00::1");
    }

    #[test]
    fn the_manifest_is_the_one_whose_layers_arrive() {
        let infos = [
            info("m1", &["a", "b"]),
            info("m2", &["c"]),
            info("config", &[]),
        ];
        let manifests: Vec<Manifest> = infos.iter().filter_map(Manifest::of).collect();
        assert_eq!(manifests.len(), 2);
        assert_eq!(fetched(&manifests, &active(&[("c", 1)])), Some("m2"));
        assert_eq!(fetched(&manifests, &active(&[("a", 1), ("c", 1)])), None);
        assert_eq!(fetched(&manifests, &active(&[])), None);
    }

    #[test]
    fn bytes_grow_from_what_is_here_to_all_of_it_and_rest_while_layers_are_unpacked() {
        let manifest = br#"{"layers":[{"digest":"a","size":100},{"digest":"b","size":50},
            {"digest":"c","size":7},{"digest":"c","size":7}]}"#;
        let mut plan = Plan::parse(None, manifest, &["c".to_owned()]).unwrap();
        let bytes = |done, active| Bytes {
            done,
            total: 157,
            active,
        };
        assert_eq!(plan.unseen(&active(&[("a", 10)])), ["b"]);
        assert_eq!(plan.see(&active(&[("a", 10)])), bytes(17, true));
        assert_eq!(plan.see(&active(&[("a", 90), ("b", 1)])), bytes(98, true));
        assert_eq!(plan.see(&active(&[("b", 50)])), bytes(157, true));
        assert_eq!(plan.see(&active(&[])), bytes(157, false));
        assert!(Plan::parse(None, b"<html>", &[]).is_none());

        let mut quick = Plan::parse(None, manifest, &[]).unwrap();
        quick.complete("b");
        assert_eq!(quick.see(&active(&[("a", 10)])), bytes(60, true));
    }

    #[test]
    fn a_manifest_belongs_to_the_index_that_named_it_last() {
        let index = |digest: &str, seconds| Info {
            digest: digest.to_owned(),
            updated_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            labels: [(format!("{MANIFESTS}0"), "m".to_owned())].into(),
            ..Info::default()
        };
        let mut indexes = Indexes::default();
        for info in [index("old", 1), index("new", 3), index("older", 2)] {
            indexes.note(&info);
        }
        indexes.note(&info("m", &["a"]));
        assert_eq!(indexes.top("m"), "new");
        assert_eq!(indexes.top("alone"), "alone");
    }
}
