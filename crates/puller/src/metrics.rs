//! What is counted.

use kubefledged_queue::{PullOutcome, RemoveResult};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::driver::{pull_label, removal_label};

/// See the module; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pulls: Family<Vec<(&'static str, String)>, Counter>,
    durations: Histogram,
    removals: Family<Vec<(&'static str, String)>, Counter>,
    /// Whether the runtime answered when it was last asked.
    pub cri_up: Gauge,
}

impl Metrics {
    /// Named and described.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            pulls: Family::default(),
            durations: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
            removals: Family::default(),
            cri_up: Gauge::default(),
        };
        registry.register(
            "image_pulls",
            "Ended pulls by result and reason",
            metrics.pulls.clone(),
        );
        registry.register_with_unit(
            "image_pull_duration",
            "From the first runtime call to the end of a pull",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register(
            "image_removals",
            "Ended removals by result",
            metrics.removals.clone(),
        );
        registry.register(
            "cri_up",
            "Whether the container runtime answered when it was last asked",
            metrics.cri_up.clone(),
        );
        metrics
    }

    /// A pull ended.
    pub fn pulled(&self, outcome: &PullOutcome) {
        let (result, reason) = pull_label(&outcome.result);
        let labels = vec![("result", result.to_owned()), ("reason", reason.to_owned())];
        self.pulls.get_or_create(&labels).inc();
        if outcome.attempts > 0 {
            self.durations.observe(outcome.took.as_secs_f64());
        }
    }

    /// A removal ended.
    pub fn removed(&self, result: &RemoveResult) {
        let labels = vec![("result", removal_label(result).to_owned())];
        self.removals.get_or_create(&labels).inc();
    }
}
