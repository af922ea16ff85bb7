//! One source of a spec: which workloads it selects, and which names they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use kubefledged_api_types::{
    LabelSelector, Timestamp, WorkloadKind, WorkloadSource, status::SourceStatus,
};

use super::{
    retention::Rule,
    workloads::{Template, WatchState, Workloads},
};
use crate::vocabulary::{CredentialScope, Watched};

/// How far the workloads of a cache are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Some are being listed for the first time.
    #[default]
    Opening,
    /// Some kind was never read, and this is why. Nothing goes that may be named there.
    Unknown(String),
    /// All are known. Some kind cannot be read just now, or does not exist, and this is why.
    Known(Option<String>),
}

impl Reading {
    /// Why some kind cannot be read.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Opening => None,
            Self::Unknown(why) => Some(why),
            Self::Known(why) => why.as_deref(),
        }
    }
}

/// Pull secrets, and how many workloads have them.
pub type Scopes = Vec<(CredentialScope, u32)>;

/// One source of the spec.
#[derive(Debug)]
pub struct Source {
    /// Index of its list in `spec.cacheSpec`.
    pub list: u32,
    /// Index in `imagesFrom`.
    pub at: u32,
    /// How long its names stay.
    pub rule: Rule,
    /// As the spec says it.
    pub spec: WorkloadSource,
    /// The kinds that are read.
    pub kinds: Vec<WorkloadKind>,
    /// Why it is not read at all.
    refusal: Option<String>,
    /// How many workloads it selects.
    workloads: i64,
    /// The names that they name, and how many of them do so with which pull secrets.
    pub names: BTreeMap<Arc<str>, Scopes>,
}

impl Source {
    /// A source of a spec. `refusal`: why it is not read.
    pub fn new(
        (list, at): (u32, u32),
        rule: Rule,
        spec: &WorkloadSource,
        refusal: Option<String>,
    ) -> Self {
        let (kinds, unusable) = match spec.parsed_kinds() {
            Ok(mut kinds) => {
                kinds.sort();
                kinds.dedup();
                (kinds, None)
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Self {
            list,
            at,
            rule,
            spec: spec.clone(),
            kinds: if refusal.is_some() { Vec::new() } else { kinds },
            refusal: refusal.or(unusable),
            workloads: 0,
            names: BTreeMap::new(),
        }
    }

    /// Must labels of Namespaces be known? `{}` selects all.
    fn reads_namespaces(&self) -> bool {
        let selector = self.spec.namespace_selector.as_ref();
        selector.is_some_and(|selector| *selector != LabelSelector::default())
    }

    /// The watches that it needs.
    pub fn targets(&self) -> impl Iterator<Item = Watched> {
        let namespaces = !self.kinds.is_empty() && self.reads_namespaces();
        let kinds = self.kinds.iter().cloned().map(Watched::Workloads);
        kinds.chain(namespaces.then_some(Watched::Namespaces))
    }

    /// Does it select a workload like this?
    pub fn selects(&self, own: &str, template: &Template, workloads: &Workloads) -> bool {
        let namespace = match &self.spec.namespace_selector {
            None => *template.namespace == *own,
            Some(_) if !self.reads_namespaces() => true,
            Some(selector) => {
                let labels = workloads.namespace(&template.namespace);
                labels.is_some_and(|labels| selector.matches(|key| labels.get(key)))
            }
        };
        let labels = &template.workload.labels;
        let selector = self.spec.selector.as_ref();
        namespace && selector.is_none_or(|selector| selector.matches(|key| labels.get(key)))
    }

    /// The names of a template that count.
    fn names_of<'a>(&self, template: &'a Template) -> BTreeSet<&'a Arc<str>> {
        let images = template.workload.images.iter();
        let counts = images.filter(|image| self.spec.selects(image.place, &image.container));
        counts.map(|image| &image.reference).collect()
    }

    /// Adds a workload. True: a name or its pull secrets are new.
    pub fn add(&mut self, template: &Template) -> bool {
        self.workloads += 1;
        let mut changed = false;
        for name in self.names_of(template) {
            let scopes = self.names.entry(name.clone()).or_default();
            let mut known = scopes.iter_mut();
            if let Some((_, count)) = known.find(|(scope, _)| *scope == template.credentials) {
                *count += 1;
            } else {
                scopes.push((template.credentials.clone(), 1));
                changed = true;
            }
        }
        changed
    }

    /// Takes a workload away. True: a name or its pull secrets are gone.
    pub fn remove(&mut self, template: &Template) -> bool {
        self.workloads -= 1;
        let mut changed = false;
        for name in self.names_of(template) {
            let Some(scopes) = self.names.get_mut(name) else {
                continue;
            };
            if let Some((_, count)) = scopes
                .iter_mut()
                .find(|(scope, _)| *scope == template.credentials)
            {
                *count -= 1;
            }
            let before = scopes.len();
            scopes.retain(|(_, count)| *count > 0);
            changed |= scopes.len() != before;
            if scopes.is_empty() {
                self.names.remove(name);
            }
        }
        changed
    }

    /// How far its workloads are known.
    pub fn reading(&self, workloads: &Workloads) -> Reading {
        if let Some(why) = &self.refusal {
            return Reading::Unknown(why.clone());
        }
        let mut known = None;
        for target in self.targets() {
            match workloads.watch(&target).map(|watch| &watch.state) {
                None | Some(WatchState::Opening) => return Reading::Opening,
                Some(WatchState::Synced) => {}
                Some(WatchState::Failed(why, false)) => return Reading::Unknown(why.clone()),
                Some(WatchState::Absent(why) | WatchState::Failed(why, true)) => {
                    known.get_or_insert_with(|| why.clone());
                }
            }
        }
        Reading::Known(known)
    }

    /// The pull secrets with which a name is pulled. Of several workloads, one with secrets of its own counts first.
    pub fn credentials(scopes: &[(CredentialScope, u32)]) -> Option<&CredentialScope> {
        let scopes = scopes.iter().map(|(scope, _)| scope);
        scopes.min_by_key(|scope| (scope.secrets.is_empty(), *scope))
    }

    /// Its part of `status.sources`.
    pub fn status(&self, workloads: &Workloads) -> SourceStatus {
        let watches = self.targets().map(|target| workloads.watch(&target)?.since);
        let since: Option<Vec<Timestamp>> = watches.collect();
        let error = self.reading(workloads);
        SourceStatus {
            list: self.list,
            source: self.at,
            workloads: self.workloads,
            images: i64::try_from(self.names.len()).unwrap_or(i64::MAX),
            since: since.and_then(|since| since.into_iter().max()),
            error: error.error().unwrap_or_default().to_owned(),
        }
    }

    /// Reads all workloads anew. `own`: the namespace of its cache.
    pub fn fill(&mut self, own: &str, workloads: &Workloads) {
        self.workloads = 0;
        self.names.clear();
        let kinds = mem::take(&mut self.kinds);
        let only = self.spec.namespace_selector.is_none().then_some(own);
        for (_, template) in kinds.iter().flat_map(|kind| workloads.of_kind(kind, only)) {
            if self.selects(own, template, workloads) {
                self.add(template);
            }
        }
        self.kinds = kinds;
    }
}
