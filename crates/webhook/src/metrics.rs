//! Metrics of admission requests.

use std::time::Instant;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Metrics of the webhook.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    result: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
        };
        registry.register(
            "webhook_requests",
            "Admission requests by result",
            metrics.requests.clone(),
        );
        // A series that begins with its first request would hide that one from rate().
        for result in ["allowed", "refused", "malformed"] {
            drop(metrics.requests.get_or_create(&RequestLabels { result }));
        }
        registry.register_with_unit(
            "webhook_request_duration",
            "Time to answer an admission request",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        metrics
    }

    /// Counts an answer.
    pub(crate) fn count(&self, result: &'static str, since: Instant) {
        self.requests.get_or_create(&RequestLabels { result }).inc();
        self.duration.observe(since.elapsed().as_secs_f64());
    }
}
