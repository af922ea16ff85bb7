//! The desired state of one cache: which images, on which nodes, pulled how. It is compiled from the spec
//! once for each generation, and nothing behind it reads the spec's lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, ImagePullPolicy, Timestamp};

pub use super::image_set::{DesiredBy, DesiredImage, ImageSet};
use super::{
    backoff, facts::Facts, images::Images, names::Names, selector::Selector, sources::Named,
};
use crate::{
    ids::{IdSet, ImageId, Index, ScopeId, SetIdx},
    vocabulary::{CacheKey, CredentialScope, NodeName, Settings},
};

/// Images that stay on nodes, with their names and since when nobody names them.
pub type Kept = BTreeMap<ImageId, (Arc<str>, Option<Timestamp>)>;

/// One list of the spec.
#[derive(Debug)]
struct List {
    selector: Selector,
    /// Hash of its selector as written.
    selected_by: u64,
    /// Some node that could get images has matched it.
    matched: bool,
    images: Vec<DesiredImage>,
}

/// The desired state of one cache.
#[derive(Debug)]
pub struct Desired {
    /// Generation of the spec that it was compiled from; `None`: of none yet.
    pub generation: Option<i64>,
    /// Hash of what is desired where, and of how it is pulled. An operation covers it: if it changes, an update
    /// begins.
    pub hash: u64,
    /// Hash that `status.purge.cacheSpecHash` remembers: of images and selectors alone. A purged cache stays
    /// purged until it changes.
    pub purge_hash: String,
    /// All images, on whatever nodes.
    pub images: IdSet<ImageId>,
    /// Images that stay on nodes although no workload names them any more, with their names and since when nobody
    /// names them.
    pub kept: Kept,
    /// All credential scopes, each once.
    pub scopes: Vec<ScopeId>,
    /// Images are to be pinned.
    pub pinned: bool,
    /// Only images that we pulled are removed.
    pub only_pulled: bool,
    lists: Vec<List>,
    sets: Vec<ImageSet>,
    /// Sets by the lists that select a node.
    known: BTreeMap<Vec<u32>, SetIdx>,
}

impl Default for Desired {
    fn default() -> Self {
        Self {
            generation: None,
            hash: 0,
            purge_hash: String::new(),
            images: IdSet::default(),
            kept: BTreeMap::new(),
            scopes: Vec::new(),
            pinned: false,
            only_pulled: false,
            lists: Vec::new(),
            sets: vec![ImageSet::default()],
            known: BTreeMap::from([(Vec::new(), SetIdx::default())]),
        }
    }
}

impl Desired {
    /// Compiles a spec, with the images that workloads name.
    pub fn compile(
        key: &CacheKey,
        generation: i64,
        spec: &ImageCacheSpec,
        following: Option<&Named>,
        names: &mut Names,
        settings: &Settings,
    ) -> Self {
        let credentials = names.scopes.intern(CredentialScope {
            namespace: key.namespace.clone(),
            secrets: spec
                .image_pull_secrets
                .iter()
                .map(|secret| secret.name.clone())
                .collect(),
            service_account: spec.service_account_name.as_deref().map(Arc::from),
            of_pods: false,
        });
        let mut lists: Vec<List> = (0_u32..)
            .zip(&spec.cache_spec)
            .map(|(list, entry)| List {
                selector: Selector::new(entry),
                selected_by: backoff::hash(
                    0,
                    &[
                        serde_json::json!([entry.node_selector, entry.node_affinity])
                            .to_string()
                            .as_bytes(),
                    ],
                ),
                matched: false,
                images: images_of(entry, list, credentials, names, settings),
            })
            .collect();
        let mut scopes = vec![credentials];
        if let Some(following) = following {
            scopes.extend(add_named(&mut lists, spec, following, names, settings));
        }
        let all = lists.iter().flat_map(|list| &list.images);
        let images: IdSet<ImageId> = all.map(|desired| desired.image).collect();
        Self {
            generation: Some(generation),
            hash: hash_of(spec, |entry| {
                let images: BTreeSet<_> = entry.images.iter().collect();
                let mut fields = serde_json::json!([
                    images,
                    entry.node_selector,
                    entry.node_affinity,
                    entry.image_pull_policy
                ]);
                // What workloads name is no part of it: only people begin operations.
                if let (Some(fields), false) = (fields.as_array_mut(), entry.images_from.is_empty())
                {
                    fields.push(serde_json::json!(entry.images_from));
                }
                fields
            }),
            purge_hash: purge_hash(spec),
            kept: kept(following, &images, names),
            images,
            scopes,
            pinned: spec.pinned(),
            only_pulled: spec.removes_only_pulled(),
            lists,
            ..Self::default()
        }
    }

    /// All images of all lists, on whatever nodes. An image may come several times.
    pub fn all(&self) -> impl Iterator<Item = &DesiredImage> {
        self.lists.iter().flat_map(|list| &list.images)
    }

    /// Is an image desired somewhere, or does it stay although nobody names it?
    pub fn holds(&self, image: ImageId) -> bool {
        self.images.contains(image) || self.kept.contains_key(&image)
    }

    /// Takes over which lists nodes have matched from an earlier spec: a list is the same if its selector is.
    pub fn keep_matched(&mut self, before: &Self) {
        for list in &mut self.lists {
            let mut same = before
                .lists
                .iter()
                .filter(|known| known.selected_by == list.selected_by);
            list.matched |= same.any(|known| known.matched);
        }
    }

    /// Notes what a status says: nodes have matched all lists but these.
    pub fn adopt_matched(&mut self, without: &[u32]) {
        for (at, list) in (0_u32..).zip(&mut self.lists) {
            list.matched |= !without.contains(&at);
        }
    }

    /// Indexes of lists that no node has matched since they were written.
    pub fn unmatched(&self) -> impl Iterator<Item = u32> {
        let lists = (0_u32..).zip(&self.lists);
        lists.filter(|(_, list)| !list.matched).map(|(at, _)| at)
    }

    /// Has no node ever matched any list?
    pub fn matches_nothing(&self) -> bool {
        !self.lists.is_empty() && self.lists.iter().all(|list| !list.matched)
    }

    /// The set that a node must hold.
    pub fn select(&mut self, name: &NodeName, facts: &Facts, images: &Images) -> SetIdx {
        let selecting: Vec<u32> = (0_u32..)
            .zip(&self.lists)
            .filter(|(_, list)| list.selector.matches(name, facts))
            .map(|(at, _)| at)
            .collect();
        if facts.is_candidate() {
            for at in &selecting {
                self.lists[*at as usize].matched = true;
            }
        }
        if let Some(known) = self.known.get(&selecting) {
            return *known;
        }
        let lists = selecting.iter().map(|at| &self.lists[*at as usize]);
        let set = ImageSet::of(lists.flat_map(|list| &list.images), images);
        let idx = if set.is_empty() {
            SetIdx::default()
        } else {
            self.sets.push(set);
            SetIdx::from_index(self.sets.len() - 1)
        };
        self.known.insert(selecting, idx);
        idx
    }

    /// One of the sets.
    pub fn set(&self, idx: SetIdx) -> &ImageSet {
        &self.sets[idx.index()]
    }
}

/// The images that one list of the spec names.
fn images_of(
    entry: &CacheSpecEntry,
    list: u32,
    credentials: ScopeId,
    names: &mut Names,
    settings: &Settings,
) -> Vec<DesiredImage> {
    let by = DesiredBy::Spec { list };
    let images = entry.images.iter();
    images
        .map(|name| wish(entry, name, (by, credentials), names, settings))
        .collect()
}

/// An image of a list, and how it is pulled.
fn wish(
    entry: &CacheSpecEntry,
    name: &str,
    (by, credentials): (DesiredBy, ScopeId),
    names: &mut Names,
    settings: &Settings,
) -> DesiredImage {
    let image = names.images.intern(name, &mut names.registries);
    // As in kube-fledged: without a tag or with `:latest` the registry is always asked.
    let default = if names.images.get(image).floating {
        ImagePullPolicy::Always
    } else {
        settings.image_pull_policy
    };
    let deadline = settings.pull_deadline_binds;
    let deadline = deadline.then_some(settings.pull_deadline);
    DesiredImage {
        image,
        reference: Arc::from(name),
        by,
        credentials,
        policy: entry.image_pull_policy.unwrap_or(default),
        priority: entry.priority.unwrap_or(0),
        deadline: entry.pull_deadline.map(|set| set.0).or(deadline),
    }
}

/// Adds the images that workloads name to their lists. Returns the scopes of their pull secrets.
fn add_named(
    lists: &mut [List],
    spec: &ImageCacheSpec,
    following: &Named,
    names: &mut Names,
    settings: &Settings,
) -> BTreeSet<ScopeId> {
    let mut scopes = BTreeSet::new();
    for image in &following.images {
        let at = image.list as usize;
        // The names were read from an earlier spec.
        let (Some(list), Some(entry)) = (lists.get_mut(at), spec.cache_spec.get(at)) else {
            continue;
        };
        let credentials = names.scopes.intern(image.credentials.clone());
        scopes.insert(credentials);
        let by = DesiredBy::Workload { list: image.list };
        let wish = wish(entry, &image.reference, (by, credentials), names, settings);
        list.images.push(wish);
    }
    scopes
}

/// Names that stay and that nobody desires.
fn kept(following: Option<&Named>, desired: &IdSet<ImageId>, names: &mut Names) -> Kept {
    let kept = following.into_iter().flat_map(|following| &following.kept);
    let kept = kept.map(|(name, since)| {
        let image = names.images.intern(name, &mut names.registries);
        (image, (name.clone(), *since))
    });
    kept.filter(|(image, _)| !desired.contains(*image))
        .collect()
}

/// Images and selectors, in any order. A version comes before the hash: if the way to compute it ever
/// changes, the value changes too.
fn purge_hash(spec: &ImageCacheSpec) -> String {
    let hash = hash_of(spec, |entry| {
        let images: BTreeSet<_> = entry.images.iter().collect();
        let mut fields = serde_json::json!({"images": images, "nodeSelector": entry.node_selector});
        // Only fields that are set: a field that is added to the API later changes no hash.
        if let Some(affinity) = &entry.node_affinity {
            fields["nodeAffinity"] = serde_json::json!(affinity);
        }
        if !entry.images_from.is_empty() {
            fields["imagesFrom"] = serde_json::json!(entry.images_from);
        }
        fields
    });
    format!("v1-{hash:016x}")
}

fn hash_of(spec: &ImageCacheSpec, fields: impl Fn(&CacheSpecEntry) -> serde_json::Value) -> u64 {
    let lists = spec.cache_spec.iter();
    let mut lists: Vec<String> = lists.map(|entry| fields(entry).to_string()).collect();
    lists.sort();
    let parts: Vec<&[u8]> = lists.iter().map(String::as_bytes).collect();
    backoff::hash(0, &parts)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::image_set::longer;
    use super::*;

    fn desired(json: &str) -> Desired {
        let spec: ImageCacheSpec = serde_json::from_str(json).unwrap();
        let key = CacheKey {
            namespace: "ns".into(),
            name: "a".into(),
        };
        Desired::compile(
            &key,
            1,
            &spec,
            None,
            &mut Names::default(),
            &Settings::default(),
        )
    }

    #[test]
    fn another_order_changes_no_hash_and_other_images_or_selectors_change_both() {
        let one = desired(r#"{"cacheSpec": [{"images": ["a", "b"]}, {"images": ["c"]}]}"#);
        let same = desired(r#"{"cacheSpec": [{"images": ["c"]}, {"images": ["b", "a"]}]}"#);
        assert_eq!((one.hash, &one.purge_hash), (same.hash, &same.purge_hash));
        for json in [
            r#"{"cacheSpec": [{"images": ["a", "b", "c"]}]}"#,
            r#"{"cacheSpec": [{"images": ["a", "b"], "nodeSelector": {"k": "v"}}, {"images": ["c"]}]}"#,
            r#"{"cacheSpec": [{"images": ["a", "b"], "nodeAffinity": {}}, {"images": ["c"]}]}"#,
        ] {
            let other = desired(json);
            assert_ne!(one.purge_hash, other.purge_hash, "{json}");
            assert_ne!(one.hash, other.hash, "{json}");
        }
    }

    #[test]
    fn editing_a_pull_policy_starts_an_update_and_leaves_a_purged_cache_purged() {
        let one = desired(r#"{"cacheSpec": [{"images": ["a"]}]}"#);
        let policy = desired(r#"{"cacheSpec": [{"images": ["a"], "imagePullPolicy": "Always"}]}"#);
        assert_ne!(one.hash, policy.hash);
        assert_eq!(one.purge_hash, policy.purge_hash);
    }

    #[test]
    fn editing_priorities_deadlines_or_secrets_starts_no_update() {
        let one = desired(r#"{"cacheSpec": [{"images": ["a"]}]}"#);
        let other = desired(
            r#"{"cacheSpec": [{"images": ["a"], "priority": 3, "pullDeadline": "1h"}], "suspend": true,
            "imagePullSecrets": [{"name": "s"}], "retention": "Pinned", "maxConcurrentNodes": "1%"}"#,
        );
        assert_eq!(one.hash, other.hash);
    }

    #[test]
    fn of_two_lists_with_one_image_the_one_without_a_deadline_is_the_longer() {
        let short = Some(Duration::from_secs(60));
        let long = Some(Duration::from_secs(3600));
        assert_eq!(longer(short, long), long);
        assert_eq!(longer(short, None), None);
        let mut desired = desired(
            r#"{"cacheSpec": [{"images": ["a:1"], "pullDeadline": "1m"}, {"images": ["a:1"]}]}"#,
        );
        let node = NodeName("n".into());
        let facts = Facts::new(
            crate::vocabulary::NodeFacts::default(),
            None,
            &mut super::super::texts::Texts::default(),
        );
        let mut names = Names::default();
        let image = names.images.intern("a:1", &mut names.registries);
        let set = desired.select(&node, &facts, &names.images);
        assert_eq!(desired.set(set).get(image).unwrap().deadline, None);
    }
}
