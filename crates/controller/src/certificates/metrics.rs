//! When certificates end.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    certificate: &'static str,
}

/// Of the leader; a standby shows none.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    expirations: Family<Labels, Gauge>,
}

impl Metrics {
    /// Metrics that appear in the registry.
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

    /// A certificate was seen.
    pub fn ends(&self, certificate: &'static str, not_after: i64) {
        let labels = Labels { certificate };
        self.expirations.get_or_create(&labels).set(not_after);
    }

    /// This process is no longer the one who knows.
    pub fn clear(&self) {
        self.expirations.clear();
    }
}
