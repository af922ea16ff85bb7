//! The part of workloads and Namespaces that is read. Everything else is skipped during parsing.

use std::{borrow::Cow, fmt::Debug};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicObject, DynamicResourceScope},
};
use kubefledged_api_types::workloads::{PathStep, TemplatePath};
use kubefledged_engine::{Labels, Workload};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::pods::{self, Container, PodSpec};
use crate::inputs::lean;

/// An object of one of Kubernetes' own kinds.
#[derive(Clone, Debug, Deserialize)]
pub struct Lean<S> {
    #[serde(deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    spec: S,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

impl<S> Resource for Lean<S> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A Deployment, `StatefulSet`, `DaemonSet`, `ReplicaSet` or Job.
#[derive(Clone, Debug, Deserialize)]
pub struct Templated {
    replicas: Option<i32>,
    #[serde(default)]
    template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Template {
    #[serde(default)]
    spec: PodSpec,
}

/// A `CronJob`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cron {
    job_template: JobTemplate,
}

#[derive(Clone, Debug, Deserialize)]
struct JobTemplate {
    spec: Templated,
}

/// An object whose workload is read.
pub trait Read: Resource<DynamicType = ApiResource> {
    /// Returns what it names; `None`: no image.
    fn read(self, how: &How) -> Option<Workload>;
}

/// How objects of a kind are read.
#[derive(Clone, Debug)]
pub enum How {
    /// As they are.
    Plain,
    /// Those with 0 replicas name nothing: the `ReplicaSets` of earlier revisions.
    Scaled,
    /// Finished ones name nothing: Jobs.
    Finishing,
    /// Their pod template stands there.
    At(TemplatePath),
}

impl<S> Lean<S> {
    fn is_finished(&self) -> bool {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.any(|condition| {
            matches!(&*condition.type_, "Complete" | "Failed") && condition.status == "True"
        })
    }
}

impl Read for Lean<Templated> {
    fn read(self, how: &How) -> Option<Workload> {
        let idle = match how {
            How::Scaled => self.spec.replicas == Some(0),
            How::Finishing => self.is_finished(),
            How::Plain | How::At(_) => false,
        };
        if idle {
            return None;
        }
        pods::workload(labels(self.metadata), &[self.spec.template.spec], true)
    }
}

impl Read for Lean<Cron> {
    fn read(self, _: &How) -> Option<Workload> {
        let template = self.spec.job_template.spec.template.spec;
        pods::workload(labels(self.metadata), &[template], true)
    }
}

impl Read for Lean<PodSpec> {
    fn read(self, _: &How) -> Option<Workload> {
        pods::workload(labels(self.metadata), &[self.spec], false)
    }
}

impl Read for DynamicObject {
    fn read(self, how: &How) -> Option<Workload> {
        let How::At(path) = how else { return None };
        let found = at(&self.data, path.steps());
        let templates: Vec<PodSpec> = found.into_iter().filter_map(template).collect();
        pods::workload(labels(self.metadata), &templates, true)
    }
}

/// A Namespace, of which only the metadata is read.
pub type Namespace = Lean<IgnoredAny>;

/// Labels of an object.
pub fn labels(metadata: ObjectMeta) -> Labels {
    metadata.labels.into_iter().flatten().collect()
}

/// The values at a path.
fn at<'v>(value: &'v Value, steps: &[PathStep]) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        found = match step {
            PathStep::Field(name) => found
                .into_iter()
                .filter_map(|value| value.get(&**name))
                .collect(),
            PathStep::Each => found
                .into_iter()
                .filter_map(Value::as_array)
                .flatten()
                .collect(),
        };
    }
    found
}

/// Reads a pod template, a pod spec or a container.
fn template(value: &Value) -> Option<PodSpec> {
    let spec = value
        .get("spec")
        .filter(|spec| spec.get("containers").is_some());
    let spec = spec.unwrap_or(value);
    if spec.get("containers").is_some() || spec.get("image").is_none() {
        return PodSpec::deserialize(spec).ok();
    }
    Container::deserialize(spec).ok().map(PodSpec::from)
}

#[cfg(test)]
mod tests;
