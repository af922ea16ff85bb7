//! Flags about workloads that name images.

use std::sync::Arc;

use clap::Args;
use kubefledged_api_types::WorkloadAccess;

/// Flags about workloads that name images.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workloads")]
pub struct WorkloadArgs {
    /// Let ImageCaches take images from workloads (spec.cacheSpec[].imagesFrom); the ServiceAccount must be allowed to
    /// list and watch them
    #[arg(long)]
    workloads: bool,
    /// Namespaces, besides that of --namespace, whose ImageCaches may select workloads of other namespaces, such as
    /// platform,ci
    #[arg(long, value_delimiter = ',', hide_default_value = true)]
    workload_cluster_scope_namespaces: Vec<Arc<str>>,
}

impl WorkloadArgs {
    /// Returns whose workloads ImageCaches may read. `own`: kubefledged's namespace.
    pub fn access(&self, own: &str) -> WorkloadAccess {
        let others = self.workload_cluster_scope_namespaces.iter().cloned();
        WorkloadAccess {
            enabled: self.workloads,
            ..WorkloadAccess::enabled(own, others)
        }
    }
}
