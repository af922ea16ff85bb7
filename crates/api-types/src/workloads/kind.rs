//! Kinds of workloads, and where they have their pod template.

use std::{fmt, sync::Arc};

/// A kind of workload, as an `ImageCache` names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// `apps`
    Deployment,
    /// `apps`
    StatefulSet,
    /// `apps`
    DaemonSet,
    /// `batch`
    CronJob,
    /// `batch`
    Job,
    /// `apps`
    ReplicaSet,
    /// The core group.
    Pod,
    /// Any other kind.
    Other {
        /// API group.
        group: Arc<str>,
        /// Kind.
        kind: Arc<str>,
        /// Where its pod template stands.
        path: TemplatePath,
    },
}

/// Why a kind cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// The text is no kind.
    #[error(
        "`{0}` is not a kind of workload: write Deployment, StatefulSet, DaemonSet, CronJob, Job, ReplicaSet or Pod, \
         or group/Kind such as argoproj.io/Rollout"
    )]
    Unknown(String),
    /// The path cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// The text is not a path to a pod template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a path: write the names of fields with dots between them, such as spec.template, and [*] after a list"
)]
pub struct PathError(String);

impl KindError {
    /// Returns the field of the source that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "kinds",
            Self::Path(_) => "podTemplatePath",
        }
    }
}

impl WorkloadKind {
    /// The kinds of a source that names none.
    pub const DEFAULT: [Self; 4] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::CronJob,
    ];
    /// Kubernetes' own kinds.
    pub const BUILT_IN: [Self; 7] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::CronJob,
        Self::Job,
        Self::ReplicaSet,
        Self::Pod,
    ];

    /// Parses a kind. `path`: where kinds written as group/Kind have their pod template; `None`: `spec.template`.
    ///
    /// # Errors
    /// It is no kind, or the path cannot be used.
    pub fn parse(text: &str, path: Option<&str>) -> Result<Self, KindError> {
        let mut own = Self::BUILT_IN.into_iter();
        if let Some(known) = own.find(|known| known.kind() == text) {
            return Ok(known);
        }
        let unknown = || KindError::Unknown(text.chars().take(LONGEST_TOLD).collect());
        let (group, kind) = text.split_once('/').ok_or_else(unknown)?;
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_group = group.contains('.')
            && group
                .split('.')
                .all(|part| !part.is_empty() && part.chars().all(label));
        let is_kind = kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_group || !is_kind {
            return Err(unknown());
        }
        Ok(Self::Other {
            group: group.into(),
            kind: kind.into(),
            path: TemplatePath::parse(path.unwrap_or("spec.template"))?,
        })
    }

    /// Returns the kind without its group.
    pub fn kind(&self) -> &str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CronJob => "CronJob",
            Self::Job => "Job",
            Self::ReplicaSet => "ReplicaSet",
            Self::Pod => "Pod",
            Self::Other { kind, .. } => kind,
        }
    }

    /// Returns the API group; empty: the core group.
    pub fn group(&self) -> &str {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => "apps",
            Self::CronJob | Self::Job => "batch",
            Self::Pod => "",
            Self::Other { group, .. } => group,
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other { group, kind, .. } => write!(f, "{group}/{kind}"),
            own => f.write_str(own.kind()),
        }
    }
}

const LONGEST_TOLD: usize = 64;

/// Where an object has its pod template: names of fields, and lists between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplatePath(Arc<[PathStep]>);

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathStep {
    /// The field of this name.
    Field(Box<str>),
    /// Every entry of a list.
    Each,
}

impl TemplatePath {
    /// Parses a path such as `spec.workerGroupSpecs[*].template`. A leading dot is accepted, as kubectl writes it.
    ///
    /// # Errors
    /// A name is empty or has characters that no field has.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let wrong = || PathError(text.chars().take(LONGEST_TOLD).collect());
        let mut steps = Vec::new();
        for part in text.strip_prefix('.').unwrap_or(text).split('.') {
            let name = part.strip_suffix("[*]");
            let field = name.unwrap_or(part);
            let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if field.is_empty() || !field.chars().all(letter) {
                return Err(wrong());
            }
            steps.push(PathStep::Field(field.into()));
            if name.is_some() {
                steps.push(PathStep::Each);
            }
        }
        Ok(Self(steps.into()))
    }

    /// Returns its steps, from the object inwards.
    pub fn steps(&self) -> &[PathStep] {
        &self.0
    }
}

impl fmt::Display for TemplatePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                PathStep::Field(name) if at == 0 => f.write_str(name)?,
                PathStep::Field(name) => write!(f, ".{name}")?,
                PathStep::Each => f.write_str("[*]")?,
            }
        }
        Ok(())
    }
}
