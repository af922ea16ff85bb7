//! The workloads that name images for one cache: which of them its spec selects, the names that they name, and the
//! names that stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use kubefledged_api_types::{
    AppliedImage, ImageCacheSpec, Timestamp, WorkloadAccess, WorkloadKind, status::SourceStatus,
};

use super::{
    retention::{Chosen, Retention, Rule},
    source::{Reading, Scopes, Source},
    workloads::{Change, Template, Workloads},
};
use crate::vocabulary::{CacheKey, CredentialScope, Tick, Watched, WorkloadImage, WorkloadKey};

/// An image that a workload names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Index of the list in `spec.cacheSpec` whose source selects the workload.
    pub list: u32,
    /// Its name.
    pub reference: Arc<str>,
    /// The pull secrets of a workload that names it.
    pub credentials: CredentialScope,
}

/// What is desired because of workloads, and what stays.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Desired images, by list.
    pub images: Vec<NamedImage>,
    /// Names that stay on nodes, and since when nobody names them.
    pub kept: BTreeMap<Arc<str>, Option<Timestamp>>,
    /// How many names have no room.
    pub beyond: usize,
}

/// Names that came and went, and that no Event has told of yet.
#[derive(Debug, Default)]
pub struct Untold {
    /// Names that workloads name now.
    pub came: BTreeSet<Arc<str>>,
    /// Names that no workload names any more.
    pub went: BTreeSet<Arc<str>>,
    /// The next Event does not come before this; `None`: there was none.
    pub not_before: Option<Tick>,
}

/// The sources of one cache.
#[derive(Debug)]
pub struct Sources {
    namespace: Arc<str>,
    all: Vec<Source>,
    /// Names that workloads name, or named not long ago.
    pub retention: Retention,
    /// What follows from it.
    pub named: Named,
    /// How far the workloads are known.
    pub reading: Reading,
    /// Something has changed.
    pub stale: bool,
    /// The spec is another one, and nothing was decided about it yet.
    pub renewed: bool,
    /// When the next name has stayed long enough.
    pub next: Option<Timestamp>,
    /// What no Event has told of.
    pub untold: Untold,
}

impl Sources {
    /// The sources of a spec; `None`: it has none. What stays because of an earlier spec goes on staying.
    pub fn new(
        before: Option<Self>,
        key: &CacheKey,
        spec: &ImageCacheSpec,
        access: &WorkloadAccess,
    ) -> Option<Self> {
        let mut all = Vec::new();
        for (list, entry) in (0_u32..).zip(&spec.cache_spec) {
            let rule = Rule {
                previous: entry.keep_previous() as usize,
                seconds: i64::try_from(entry.retain_for().as_secs()).unwrap_or(i64::MAX),
            };
            for (at, source) in (0_u32..).zip(&entry.images_from) {
                let Some(workloads) = &source.workloads else {
                    continue;
                };
                let selects = workloads.namespace_selector.is_some();
                let refusal = access.refusal(&key.namespace, selects);
                all.push(Source::new((list, at), rule, workloads, refusal));
            }
        }
        if all.is_empty() {
            return None;
        }
        let before = before.map(|before| (before.retention, before.named, before.untold));
        let (retention, named, untold) = before.unwrap_or_default();
        Some(Self {
            namespace: key.namespace.clone(),
            all,
            retention,
            named,
            reading: Reading::Opening,
            stale: true,
            renewed: true,
            next: None,
            untold,
        })
    }

    /// Takes over names that the status listed before a restart, and that the spec does not list itself: workloads
    /// may name them.
    pub fn adopt(&mut self, applied: &[AppliedImage], spec: &ImageCacheSpec) {
        let listed = spec.cache_spec.iter().flat_map(|list| &list.images);
        let listed: BTreeSet<&String> = listed.collect();
        for image in applied {
            if image.since.is_none() && !listed.contains(&image.name) {
                self.retention.adopt(&image.name, image.retained_since);
            }
        }
        self.named.kept = self.retention.choose(usize::MAX).kept;
    }

    /// The watches that it needs.
    pub fn targets(&self) -> impl Iterator<Item = Watched> {
        self.all.iter().flat_map(Source::targets)
    }

    /// Does it read this?
    pub fn reads(&self, target: &Watched) -> bool {
        self.targets().any(|known| known == *target)
    }

    /// Is some kind listed for the first time?
    pub fn is_opening(&self) -> bool {
        self.reading == Reading::Opening
    }

    /// Is everything known that its workloads name?
    pub fn is_known(&self) -> bool {
        matches!(self.reading, Reading::Known(_))
    }

    /// Reads all workloads anew.
    pub fn fill(&mut self, workloads: &Workloads) {
        for source in &mut self.all {
            source.fill(&self.namespace, workloads);
        }
        self.stale = true;
    }

    /// Takes in a workload that came, changed or went.
    pub fn change(&mut self, change: &Change, workloads: &Workloads) {
        for source in &mut self.all {
            if !source.kinds.contains(&change.kind) {
                continue;
            }
            let selected =
                |template: &&Arc<Template>| source.selects(&self.namespace, template, workloads);
            let new = change.new.as_ref().filter(selected);
            let old = change.old.as_ref().filter(selected);
            // The new one comes first: a name of both is not gone meanwhile.
            self.stale |= new.is_some_and(|new| source.add(new));
            self.stale |= old.is_some_and(|old| source.remove(old));
        }
    }

    /// Decides what is desired and what stays. `most`: how many more names the namespace may have. Returns what was
    /// desired before, if anything is different now.
    pub fn resolve(&mut self, workloads: &Workloads, most: usize, now: Timestamp) -> Option<Named> {
        let (mut named, mut rules) = (BTreeMap::new(), Rule::default());
        let mut known = true;
        for source in &self.all {
            rules = rules.join(source.rule);
            known &= matches!(source.reading(workloads), Reading::Known(_));
            for name in source.names.keys() {
                let rule: &mut Rule = named.entry(name.clone()).or_default();
                *rule = rule.join(source.rule);
            }
        }
        self.retention.update(&named, known, rules, now);
        self.next = self.retention.next(rules, now);
        let chosen = self.retention.choose(most);
        let named = Named {
            images: self.images(&chosen),
            kept: chosen.kept,
            beyond: chosen.beyond,
        };
        (self.named != named).then(|| mem::replace(&mut self.named, named))
    }

    /// The chosen names by list, with their pull secrets.
    fn images(&self, chosen: &Chosen) -> Vec<NamedImage> {
        let mut images: BTreeMap<(u32, &Arc<str>), Scopes> = BTreeMap::new();
        for source in &self.all {
            for (name, scopes) in &source.names {
                if chosen.named.contains(name) {
                    let all = images.entry((source.list, name)).or_default();
                    all.extend(scopes.iter().cloned());
                }
            }
        }
        let images = images
            .into_iter()
            .filter_map(|((list, reference), scopes)| {
                Some(NamedImage {
                    list,
                    reference: reference.clone(),
                    credentials: Source::credentials(&scopes)?.clone(),
                })
            });
        images.collect()
    }

    /// Looks how far the workloads are known.
    pub fn read(&mut self, workloads: &Workloads) {
        let mut reading = Reading::Known(None);
        for source in &self.all {
            match (source.reading(workloads), &reading) {
                (Reading::Opening, _) => {
                    reading = Reading::Opening;
                    break;
                }
                (Reading::Unknown(why), Reading::Known(_)) => reading = Reading::Unknown(why),
                (Reading::Known(Some(why)), Reading::Known(None)) => {
                    reading = Reading::Known(Some(why));
                }
                _ => {}
            }
        }
        self.reading = reading;
    }

    /// `status.sources`
    pub fn status(&self, workloads: &Workloads) -> Vec<SourceStatus> {
        self.all
            .iter()
            .map(|source| source.status(workloads))
            .collect()
    }

    /// The images that workloads name, with each workload that names them; of one image if it is given.
    pub fn naming<'a>(
        &'a self,
        workloads: &'a Workloads,
        only: Option<&'a str>,
    ) -> impl Iterator<Item = Naming<'a>> {
        self.all.iter().flat_map(move |source| {
            let own = source.spec.namespace_selector.is_none();
            let own = own.then_some(&*self.namespace);
            let rows = source
                .kinds
                .iter()
                .flat_map(move |kind| workloads.of_kind(kind, own).map(move |row| (kind, row)));
            let rows =
                rows.filter(move |(_, (_, row))| source.selects(&self.namespace, row, workloads));
            rows.flat_map(move |(kind, (key, template))| {
                let images = template.workload.images.iter();
                let images = images.filter(move |image| {
                    only.is_none_or(|only| *image.reference == *only)
                        && source.spec.selects(image.place, &image.container)
                });
                images.map(move |image| Naming {
                    kind,
                    key,
                    image,
                    list: source.list,
                })
            })
        })
    }

    /// When the next Event tells of names that came and went; `None`: there is nothing to tell.
    pub fn tells_at(&self) -> Option<Tick> {
        let Untold {
            came,
            went,
            not_before,
        } = &self.untold;
        not_before.filter(|_| !came.is_empty() || !went.is_empty())
    }

    /// How many names it desires and keeps.
    pub fn count(&self) -> usize {
        self.named.images.len() + self.named.kept.len()
    }
}

/// A workload that names an image.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// Its kind.
    pub kind: &'a WorkloadKind,
    /// Its namespace and name.
    pub key: &'a WorkloadKey,
    /// The image.
    pub image: &'a WorkloadImage,
    /// The list whose source selects it.
    pub list: u32,
}
