//! Who may read workloads.

use std::{collections::BTreeSet, sync::Arc};

use crate::{ImageCacheSpec, validation::Violation};

/// Whose workloads an `ImageCache` may read. The webhook refuses what is not allowed, and the controller reads
/// nothing for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadAccess {
    /// Workloads are read at all (the chart's value `workloads.enabled`).
    pub enabled: bool,
    /// Namespaces whose `ImageCaches` may select workloads of other namespaces.
    pub cluster_scope: BTreeSet<Arc<str>>,
}

impl WorkloadAccess {
    /// Workloads are read. `own`: kubefledged's namespace, which may select those of all others. `others`: more
    /// namespaces that may.
    pub fn enabled(own: &str, others: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            enabled: true,
            cluster_scope: others.into_iter().chain([own.into()]).collect(),
        }
    }

    /// Returns why a source may not be read; `None`: it may. `selects_namespaces`: it has a namespaceSelector.
    pub fn refusal(&self, namespace: &str, selects_namespaces: bool) -> Option<String> {
        if !self.enabled {
            return Some(
                "this installation reads no workloads: set the chart's value workloads.enabled to true, or list the images"
                    .to_owned(),
            );
        }
        if !selects_namespaces || self.cluster_scope.contains(namespace) {
            return None;
        }
        let allowed: Vec<&str> = self.cluster_scope.iter().map(|name| &**name).collect();
        Some(format!(
            "an ImageCache of namespace {namespace} may read the workloads of that namespace alone: remove \
             namespaceSelector, or write the ImageCache into one of the namespaces {}, or add {namespace} to the chart's \
             value workloads.clusterScopeNamespaces",
            allowed.join(", ")
        ))
    }

    /// Returns what the spec of an `ImageCache` of this namespace may not read.
    pub fn violations(&self, namespace: &str, spec: &ImageCacheSpec) -> Vec<Violation> {
        let mut found = Vec::new();
        for (l, list) in spec.cache_spec.iter().enumerate() {
            for (i, source) in list.images_from.iter().enumerate() {
                let selects = source.workloads.as_ref();
                let Some(selects) = selects.map(|source| source.namespace_selector.is_some())
                else {
                    continue;
                };
                if let Some(message) = self.refusal(namespace, selects) {
                    let selector = if self.enabled {
                        ".namespaceSelector"
                    } else {
                        ""
                    };
                    let field = format!("spec.cacheSpec[{l}].imagesFrom[{i}].workloads{selector}");
                    found.push(Violation { field, message });
                }
            }
        }
        found
    }
}
