//! Workloads as a source of images: which ones an `ImageCache` reads, which of their containers count, and who may
//! read those of other namespaces.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    CacheSpecEntry, ImageCacheSpec,
    affinity::{no_values_for_exists, some_values_for_in},
    validation::Violation,
};

mod access;
mod kind;

pub use access::WorkloadAccess;
pub use kind::{KindError, PathError, PathStep, TemplatePath, WorkloadKind};

/// How many previous versions stay if `keepPrevious` is not set.
pub const KEEP_PREVIOUS: u32 = 1;
/// How long a name stays if `retainFor` is not set.
pub const RETAIN_FOR: Duration = Duration::from_secs(3600);
/// Longest `retainFor`.
pub const MOST_RETAIN_FOR: Duration = Duration::from_secs(720 * 3600);
/// Maximum number of image names that one `ImageCache` takes from workloads, with those that it keeps.
pub const MOST_WORKLOAD_IMAGES: usize = 4096;

/// A source of image names. Exactly one of its fields is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.workloads)",
    "message": "write workloads: {} to take the images of the workloads of this namespace",
}]))]
pub struct ImageSource {
    /// The images that workloads name, such as Deployments. The list follows the workloads: a new image is pulled
    /// when a workload names it, and a name that no workload names any more goes as keepPrevious and retainFor say.
    /// Not set: the source is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<WorkloadSource>,
}

/// Which workloads name images, and which of their containers count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSource {
    /// Kinds of workloads: Deployment, StatefulSet, DaemonSet, CronJob, Job, ReplicaSet or Pod; any other kind as
    /// group/Kind, such as argoproj.io/Rollout, with podTemplatePath. A ReplicaSet with 0 replicas, a finished Job
    /// and a finished Pod name no images. Not set: Deployment, StatefulSet, DaemonSet and CronJob.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 317)))]
    pub kinds: Vec<String>,
    /// Where kinds written as group/Kind have their pod template, their pod spec or a single container, such as
    /// spec.template or spec.workerGroupSpecs[*].template. Not set: spec.template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub pod_template_path: Option<String>,
    /// Labels of the namespaces whose workloads count; {} selects all namespaces. Only ImageCaches in
    /// kubefledged's own namespace and in those of the chart's value workloads.clusterScopeNamespaces may set it.
    /// Not set: the namespace of this ImageCache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the workloads that count. Not set: all workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Which containers of a workload count. Not set: all containers, init containers and image volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containers: Option<ContainerSelection>,
}

/// Which containers of a workload count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSelection {
    /// Whether init containers count. Not set: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_containers: Option<bool>,
    /// Whether the references of image volumes count. Not set: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_volumes: Option<bool>,
    /// Names of the only containers, init containers and image volumes that count. Not set: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub names: Vec<String>,
    /// Names of containers, init containers and image volumes that do not count, such as istio-proxy. Not set: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub exclude: Vec<String>,
}

/// Where an image stands in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImagePlace {
    /// `containers`
    Container,
    /// `initContainers`
    InitContainer,
    /// `volumes[].image`
    Volume,
}

impl ContainerSelection {
    /// Returns whether a container or volume of this name counts.
    pub fn selects(&self, place: ImagePlace, name: &str) -> bool {
        let counts = match place {
            ImagePlace::Container => true,
            ImagePlace::InitContainer => self.init_containers.unwrap_or(true),
            ImagePlace::Volume => self.image_volumes.unwrap_or(true),
        };
        let is = |listed: &String| listed == name;
        counts
            && (self.names.is_empty() || self.names.iter().any(is))
            && !self.exclude.iter().any(is)
    }
}

/// Selects objects by their labels, as in a Deployment: all requirements must hold. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that an object must have, with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [some_values_for_in(), no_values_for_exists()]))]
pub struct LabelRequirement {
    /// Key of the label.
    #[schemars(length(max = 317))]
    pub key: String,
    /// How the label is compared with `values`: In, NotIn, Exists or DoesNotExist.
    pub operator: LabelOperator,
    /// Values to compare with. In and NotIn need at least one value, Exists and DoesNotExist take none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// Compares a label with the values of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LabelOperator {
    /// The label exists and its value is one of the values.
    In,
    /// The label does not exist, or its value is none of the values.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

impl LabelSelector {
    /// Returns whether an object has such labels; `label` returns the value of one.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let labels = self.match_labels.iter();
        let mut labels = labels.map(|(key, value)| label(key) == Some(value.as_str()));
        let expressions = self.match_expressions.iter();
        let mut expressions = expressions.map(|required| required.holds(label(&required.key)));
        labels.all(|holds| holds) && expressions.all(|holds| holds)
    }
}

impl LabelRequirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = value.is_some_and(|value| self.values.iter().any(|known| known == value));
        match self.operator {
            LabelOperator::In => listed,
            LabelOperator::NotIn => !listed,
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl WorkloadSource {
    /// Returns the kinds whose workloads count.
    ///
    /// # Errors
    /// The first kind or path that cannot be used.
    pub fn parsed_kinds(&self) -> Result<Vec<WorkloadKind>, KindError> {
        let path = self.pod_template_path.as_deref();
        if self.kinds.is_empty() {
            return Ok(WorkloadKind::DEFAULT.to_vec());
        }
        let kinds = self.kinds.iter();
        kinds.map(|kind| WorkloadKind::parse(kind, path)).collect()
    }

    /// Returns whether a container or volume of this name counts.
    pub fn selects(&self, place: ImagePlace, name: &str) -> bool {
        let selection = self.containers.as_ref();
        selection.is_none_or(|selection| selection.selects(place, name))
    }
}

impl CacheSpecEntry {
    /// Returns the workloads that name images of the list.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadSource> {
        let sources = self.images_from.iter();
        sources.filter_map(|source| source.workloads.as_ref())
    }

    /// Returns how many previous versions of an image stay while a newer one is named.
    pub fn keep_previous(&self) -> u32 {
        self.keep_previous.unwrap_or(KEEP_PREVIOUS)
    }

    /// Returns how long a name stays that no workload names any more.
    pub fn retain_for(&self) -> Duration {
        self.retain_for.map_or(RETAIN_FOR, |set| set.0)
    }
}

impl ImageCacheSpec {
    /// Returns whether workloads name images of some list.
    pub fn reads_workloads(&self) -> bool {
        self.cache_spec
            .iter()
            .any(|list| list.workloads().next().is_some())
    }
}

/// Adds the broken rules of the sources of one list.
pub(crate) fn of_list(at: usize, list: &CacheSpecEntry, found: &mut Vec<Violation>) {
    let mut add = |field: String, message: String| {
        let field = format!("spec.cacheSpec[{at}].{field}");
        found.push(Violation { field, message });
    };
    for (i, source) in list.images_from.iter().enumerate() {
        let Some(workloads) = &source.workloads else {
            let advice =
                "write workloads: {} to take the images of the workloads of this namespace";
            add(
                format!("imagesFrom[{i}]"),
                format!("the source is empty: {advice}"),
            );
            continue;
        };
        let field = format!("imagesFrom[{i}].workloads");
        if let Err(error) = workloads.parsed_kinds() {
            add(format!("{field}.{}", error.field()), error.to_string());
        } else if workloads.pod_template_path.is_some()
            && !workloads.kinds.iter().any(|kind| kind.contains('/'))
        {
            let why = "no kind of this source is written as group/Kind, and Kubernetes' own kinds need no path: remove it";
            add(format!("{field}.podTemplatePath"), why.to_owned());
        }
    }
    if list.images_from.is_empty() {
        let why = "it has an effect only with imagesFrom: remove it, or take images from workloads";
        for (field, set) in [
            ("keepPrevious", list.keep_previous.is_some()),
            ("retainFor", list.retain_for.is_some()),
        ] {
            if set {
                add(field.to_owned(), why.to_owned());
            }
        }
    }
    if let Some(retain) = list.retain_for.filter(|retain| retain.0 > MOST_RETAIN_FOR) {
        let message = format!("{retain} is too long: write at most 720h, or list the images");
        add("retainFor".to_owned(), message);
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::InitContainer => "init container",
            Self::Volume => "image volume",
        })
    }
}

#[cfg(test)]
mod tests;
