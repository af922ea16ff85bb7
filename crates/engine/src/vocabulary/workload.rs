use std::{fmt, sync::Arc};

use kubefledged_api_types::{WorkloadKind, workloads::ImagePlace};

/// Number of one watch of workloads or of Namespaces. It is never used again in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// What a watch is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    /// Namespaces, for their labels.
    Namespaces,
    /// Workloads of a kind.
    Workloads(WorkloadKind),
}

/// Namespace and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// The part of a workload that decisions depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its labels.
    pub labels: Labels,
    /// The images of its pod template.
    pub images: Box<[WorkloadImage]>,
    /// `imagePullSecrets` of its pod template, in their order.
    pub secrets: Box<[String]>,
    /// The `ServiceAccount` whose pull secrets its pods get if the template has none; `None`: a Pod, which has got
    /// them already.
    pub service_account: Option<Arc<str>>,
}

/// One image of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadImage {
    /// Name of its container or volume.
    pub container: Arc<str>,
    /// Where it stands.
    pub place: ImagePlace,
    /// Its name, as the workload writes it.
    pub reference: Arc<str>,
}

/// Labels of an object. A hundred thousand objects are kept, so that they take as little memory as possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// Value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key));
        at.ok().map(|at| &*self.0[at].1)
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels = labels.into_iter();
        let mut labels: Vec<(Box<str>, Box<str>)> = labels
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        labels.sort();
        Self(labels.into())
    }
}

/// Why workloads cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchFailure {
    /// The API server does not serve the kind: its `CustomResourceDefinition` does not exist. So there are no
    /// workloads of it.
    Absent(String),
    /// Any other error. The watch goes on trying.
    Failed(String),
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespaces => f.write_str("Namespace"),
            Self::Workloads(kind) => write!(f, "{kind}"),
        }
    }
}
