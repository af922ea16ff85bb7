//! Workloads that name images, and Namespaces, as far as some cache wants to know of them. Equal workloads are kept
//! once, because a hundred thousand Pods have a few thousand templates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::{Timestamp, WorkloadKind};

use crate::{
    ids::CacheIdx,
    vocabulary::{CredentialScope, Labels, WatchFailure, WatchId, Watched, Workload, WorkloadKey},
};

/// What equal workloads of a namespace have in common.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Their labels and images.
    pub workload: Workload,
    /// Where their pods get credentials, by the kubelet's rules: their own pull secrets, or, if they have none, those
    /// that admission takes over from their `ServiceAccount`.
    pub credentials: CredentialScope,
}

impl Template {
    fn new(namespace: Arc<str>, mut workload: Workload) -> Self {
        let secrets = std::mem::take(&mut workload.secrets);
        let account = workload.service_account.take();
        Self {
            credentials: CredentialScope {
                namespace: namespace.clone(),
                service_account: account.filter(|_| secrets.is_empty()),
                secrets: secrets.into_vec().into(),
                of_pods: true,
            },
            namespace,
            workload,
        }
    }
}

/// A workload that is known.
#[derive(Debug)]
struct Row {
    template: Arc<Template>,
    /// Number of the list that brought it last.
    listed: u32,
}

/// Whether a watch can be believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WatchState {
    /// Its first list is not complete.
    #[default]
    Opening,
    /// It tells of everything that exists.
    Synced,
    /// The kind does not exist, and so there are no workloads of it.
    Absent(String),
    /// It cannot be read. What it told last is still believed. True: it was synced before.
    Failed(String, bool),
}

/// One watch.
#[derive(Debug)]
pub struct Watch {
    /// What it is of.
    pub target: Watched,
    /// Whether it can be believed.
    pub state: WatchState,
    /// Since when it is synced.
    pub since: Option<Timestamp>,
    rows: BTreeMap<WorkloadKey, Row>,
    templates: BTreeSet<Arc<Template>>,
    /// Number of the list that is or was received last.
    list: u32,
}

/// A workload came, changed or went.
#[derive(Debug)]
pub struct Change {
    /// Its kind.
    pub kind: WorkloadKind,
    /// As it was; `None`: it is new.
    pub old: Option<Arc<Template>>,
    /// As it is; `None`: it is gone.
    pub new: Option<Arc<Template>>,
}

/// Everything that is known of workloads.
#[derive(Debug, Default)]
pub struct Workloads {
    watches: BTreeMap<WatchId, Watch>,
    by_target: BTreeMap<Watched, WatchId>,
    /// Labels of Namespaces, with the number of the list that brought them last.
    namespaces: BTreeMap<Arc<str>, (Labels, u32)>,
    /// Caches that workloads name images for.
    pub followers: BTreeSet<CacheIdx>,
    /// Which watches are wanted must be decided again.
    pub stale: bool,
    used: u64,
}

impl Watch {
    fn new(target: Watched) -> Self {
        Self {
            target,
            state: WatchState::Opening,
            since: None,
            rows: BTreeMap::new(),
            templates: BTreeSet::new(),
            list: 0,
        }
    }

    /// A template that is equal to this one.
    fn intern(&mut self, template: Template) -> Arc<Template> {
        if let Some(known) = self.templates.get(&template) {
            return known.clone();
        }
        let template = Arc::new(template);
        self.templates.insert(template.clone());
        template
    }

    /// Drops a template that no workload has any more.
    fn release(&mut self, template: &Arc<Template>) {
        // The set, and whoever calls.
        if Arc::strong_count(template) <= 2 {
            self.templates.remove(template);
        }
    }
}

impl Workloads {
    /// Forgets everything: another leader may have led meanwhile, and its watches are not ours.
    pub fn reset(&mut self) {
        let used = self.used;
        *self = Self {
            used,
            stale: true,
            ..Self::default()
        };
    }

    /// Sets which watches are wanted. Returns all of them if any began or ended.
    pub fn want(&mut self, targets: &BTreeSet<Watched>) -> Option<Vec<(WatchId, Watched)>> {
        let known = self.by_target.keys();
        if known.eq(targets.iter()) {
            return None;
        }
        let (watches, namespaces) = (&mut self.watches, &mut self.namespaces);
        self.by_target.retain(|target, id| {
            let wanted = targets.contains(target);
            if !wanted {
                watches.remove(id);
            }
            if !wanted && *target == Watched::Namespaces {
                namespaces.clear();
            }
            wanted
        });
        for target in targets {
            if !self.by_target.contains_key(target) {
                self.used += 1;
                let id = WatchId(self.used);
                self.by_target.insert(target.clone(), id);
                self.watches.insert(id, Watch::new(target.clone()));
            }
        }
        let all = self.by_target.iter();
        Some(all.map(|(target, id)| (*id, target.clone())).collect())
    }

    /// The watch of a kind; `None`: there is none yet.
    pub fn watch(&self, target: &Watched) -> Option<&Watch> {
        self.watches.get(self.by_target.get(target)?)
    }

    /// Labels of a Namespace.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name).map(|(labels, _)| labels)
    }

    /// All workloads of a kind, in the order of their namespaces and names; of one namespace if it is given.
    pub fn of_kind<'a>(
        &'a self,
        kind: &WorkloadKind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a WorkloadKey, &'a Arc<Template>)> {
        let watch = self.watch(&Watched::Workloads(kind.clone()));
        let first = namespace.map(|namespace| WorkloadKey {
            namespace: namespace.into(),
            name: "".into(),
        });
        let rows = watch.map(|watch| match first {
            Some(first) => watch.rows.range(first..),
            None => watch.rows.range::<WorkloadKey, _>(..),
        });
        rows.into_iter()
            .flatten()
            .take_while(move |(key, _)| namespace.is_none_or(|only| *key.namespace == *only))
            .map(|(key, row)| (key, &row.template))
    }

    /// Takes in a workload. `None`: nothing that is wanted has changed.
    pub fn apply(&mut self, id: WatchId, key: WorkloadKey, workload: Workload) -> Option<Change> {
        let watch = self.watches.get_mut(&id)?;
        let Watched::Workloads(kind) = &watch.target else {
            return None;
        };
        let (kind, listed) = (kind.clone(), watch.list);
        let template = Template::new(key.namespace.clone(), workload);
        if let Some(row) = watch.rows.get_mut(&key)
            && *row.template == template
        {
            row.listed = listed;
            return None;
        }
        let new = watch.intern(template);
        let row = Row {
            template: new.clone(),
            listed,
        };
        let old = watch.rows.insert(key, row).map(|row| row.template);
        if let Some(old) = &old {
            watch.release(old);
        }
        Some(Change {
            kind,
            old,
            new: Some(new),
        })
    }

    /// Takes in that a workload is gone.
    pub fn delete(&mut self, id: WatchId, key: &WorkloadKey) -> Option<Change> {
        let watch = self.watches.get_mut(&id)?;
        let Watched::Workloads(kind) = &watch.target else {
            return None;
        };
        let kind = kind.clone();
        let old = watch.rows.remove(key)?.template;
        watch.release(&old);
        Some(Change {
            kind,
            old: Some(old),
            new: None,
        })
    }

    /// Takes in a Namespace. True: its labels are others.
    pub fn apply_namespace(&mut self, id: WatchId, name: Arc<str>, labels: Labels) -> bool {
        let Some(watch) = self.watches.get(&id) else {
            return false;
        };
        let old = self.namespace(&name) == Some(&labels);
        self.namespaces.insert(name, (labels, watch.list));
        !old
    }

    /// Takes in that a Namespace is gone. True: it was known.
    pub fn delete_namespace(&mut self, id: WatchId, name: &str) -> bool {
        self.watches.contains_key(&id) && self.namespaces.remove(name).is_some()
    }

    /// A list of a watch begins.
    pub fn listing(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.list = watch.list.wrapping_add(1);
        }
    }

    /// A list of a watch is complete: what it did not bring is gone. Returns what is gone, and what the watch is of.
    pub fn synced(&mut self, id: WatchId, now: Timestamp) -> Option<(Watched, Vec<WorkloadKey>)> {
        let watch = self.watches.get_mut(&id)?;
        watch.state = WatchState::Synced;
        watch.since.get_or_insert(now);
        let list = watch.list;
        if watch.target == Watched::Namespaces {
            self.namespaces.retain(|_, (_, listed)| *listed == list);
        }
        let rows = watch.rows.iter().filter(|(_, row)| row.listed != list);
        let gone = rows.map(|(key, _)| key.clone()).collect();
        Some((watch.target.clone(), gone))
    }

    /// A watch cannot be read. Returns what it is of, if that was not known.
    pub fn failed(&mut self, id: WatchId, failure: WatchFailure) -> Option<Watched> {
        let watch = self.watches.get_mut(&id)?;
        let was_synced = matches!(
            watch.state,
            WatchState::Synced | WatchState::Failed(_, true)
        );
        let state = match failure {
            WatchFailure::Absent(why) => WatchState::Absent(why),
            WatchFailure::Failed(why) => WatchState::Failed(why, was_synced),
        };
        if watch.state == state {
            return None;
        }
        watch.state = state;
        watch.since = None;
        Some(watch.target.clone())
    }
}
