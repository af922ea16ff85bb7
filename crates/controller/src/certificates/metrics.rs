//! The metric of the certificates' expiration.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    certificate: &'static str,
}

/// Expiration of the certificates. Only the leader shows it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    expirations: Family<Labels, Gauge>,
}

impl Metrics {
    /// Registers the metric.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_with_unit(
            "certificate_expiration_timestamp",
            "Time at which each certificate expires, in seconds since the epoch",
            Unit::Seconds,
            metrics.expirations.clone(),
        );
        metrics
    }

    /// Records the expiration of a certificate.
    pub fn ends(&self, certificate: &'static str, not_after: i64) {
        let labels = Labels { certificate };
        self.expirations.get_or_create(&labels).set(not_after);
    }

    /// Clears the metric, because this process no longer leads.
    pub fn clear(&self) {
        self.expirations.clear();
    }
}
