//! Flags. Those of kube-fledged keep their names; what has no object any more is accepted and
//! warned about.

use clap::{Args, Parser, Subcommand, ValueEnum};
use kubefledged_api_types::{GoDuration, ImagePullPolicy};
use kubefledged_engine::Settings;
use kubefledged_process::LogArgs;

use crate::certificates::{self, Mode};

/// Keeps container images on Kubernetes nodes before a pod needs them.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of running the controller.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Everything but running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinition as YAML
    Crd,
    /// Before kubefledged is removed: stop the controller, take pins off the nodes and finalizers
    /// off image caches
    Cleanup(Once),
    /// See whether an installation works; nothing is created
    Verify(Once),
}

/// Something that is done once, where a controller is installed.
#[derive(Args, Clone, Debug)]
pub struct Once {
    /// Longest time for all of it (Go duration)
    #[arg(long, default_value = "1m")]
    pub timeout: GoDuration,
    /// Of the controller in question.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The pull policy of lists that have none.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Pull what is missing; an image with no tag or :latest always
    IfNotPresent,
    /// Ask the registry on every create, update and refresh
    Always,
}

/// Flags of the running controller.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Namespace of the pullers, the Lease and our Secrets
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-fledged")]
    pub namespace: String,
    /// Name of this pod; part of the Lease holder's identity
    #[arg(long, env = "POD_NAME", default_value = "kubefledged-controller")]
    pub pod_name: String,
    /// Name of the Lease
    #[arg(long, default_value = "kubefledged-controller")]
    pub lease_name: String,
    /// Headless Service of the pullers
    #[arg(long, default_value = "kubefledged-puller")]
    pub puller_service: String,
    /// Service of the webhook; its certificate is made for this name
    #[arg(long, default_value = "kubefledged-webhook-server")]
    pub webhook_service: String,
    /// `ValidatingWebhookConfiguration` whose caBundle is kept right; empty: none
    #[arg(long, default_value = "kubefledged-webhook-server")]
    pub webhook_configuration: String,

    /// Who makes the certificates
    #[arg(long, value_enum, default_value_t = Mode::Managed, help_heading = "Certificates")]
    pub certificate_mode: Mode,
    /// The Secrets with certificates are called <prefix>-ca, <prefix>-puller-tls,
    /// <prefix>-controller-tls, <prefix>-webhook-server-tls and <prefix>-debug-tls
    #[arg(long, default_value = "kubefledged", help_heading = "Certificates")]
    pub secret_prefix: String,
    /// Our Deployment: the Secrets made here belong to it and go with it
    #[arg(
        long,
        default_value = "kubefledged-controller",
        help_heading = "Certificates"
    )]
    pub deployment_name: String,

    /// Longest time for one attempt at one image on one node (Go duration)
    #[arg(long, default_value = "5m", help_heading = "Images")]
    pub image_pull_deadline_duration: GoDuration,
    /// Time between automatic refreshes (Go duration); 0s: never
    #[arg(long, default_value = "15m", help_heading = "Images")]
    pub image_cache_refresh_frequency: GoDuration,
    /// Pull policy of lists that have none
    #[arg(long, value_enum, default_value_t = PullPolicy::IfNotPresent, help_heading = "Images")]
    pub image_pull_policy: PullPolicy,
    /// Time between looks at what a node holds (Go duration)
    #[arg(long, default_value = "5m", help_heading = "Images")]
    pub check_interval: GoDuration,
    /// How long a puller may be silent before its node counts as failed (Go duration)
    #[arg(long, default_value = "2m", help_heading = "Images")]
    pub puller_grace: GoDuration,

    /// Connections being made at a time
    #[arg(long, default_value_t = 64, help_heading = "Limits")]
    pub max_dials: usize,
    /// Calls to pullers at a time
    #[arg(long, default_value_t = 512, help_heading = "Limits")]
    pub max_connections: usize,

    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 8080)]
    pub http_port: u16,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// Flags without effect.
    #[command(flatten)]
    pub obsolete: ObsoleteArgs,
}

/// Flags of kube-fledged that have no object any more.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Accepted for kube-fledged's sake, without effect")]
pub struct ObsoleteArgs {
    /// The puller finds the socket itself; see its --cri-socket-path
    #[arg(long)]
    pub cri_socket_path: Option<String>,
    /// There are no Jobs
    #[arg(long)]
    pub service_account_name: Option<String>,
    /// There are no Jobs
    #[arg(long)]
    pub job_retention_policy: Option<String>,
    /// There are no Jobs
    #[arg(long)]
    pub job_priority_class_name: Option<String>,
    /// There are no Jobs
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub image_delete_job_host_network: Option<String>,
    /// There are no Jobs
    #[arg(long)]
    pub jobs_max_surge: Option<String>,
}

impl ObsoleteArgs {
    /// Says which of them were set.
    pub fn warn(&self) {
        let Self {
            cri_socket_path,
            service_account_name,
            job_retention_policy,
            job_priority_class_name,
            image_delete_job_host_network,
            jobs_max_surge,
        } = self;
        for (flag, value) in [
            ("--cri-socket-path", cri_socket_path),
            ("--service-account-name", service_account_name),
            ("--job-retention-policy", job_retention_policy),
            ("--job-priority-class-name", job_priority_class_name),
            (
                "--image-delete-job-host-network",
                image_delete_job_host_network,
            ),
            ("--jobs-max-surge", jobs_max_surge),
        ] {
            if value.is_some() {
                tracing::warn!(
                    flag,
                    "this flag has no effect any more: images are not pulled by Jobs"
                );
            }
        }
    }
}

impl RunArgs {
    /// What the keeper of certificates needs of the flags.
    pub fn certificates(&self) -> certificates::Settings {
        certificates::Settings {
            mode: self.certificate_mode,
            namespace: self.namespace.clone(),
            prefix: self.secret_prefix.clone(),
            deployment: self.deployment_name.clone(),
            webhook_service: self.webhook_service.clone(),
            webhook_configuration: self.webhook_configuration.clone(),
            puller_service: self.puller_service.clone(),
            pod_name: self.pod_name.clone(),
        }
    }

    /// What the engine needs of the flags.
    pub fn settings(&self) -> Settings {
        Settings {
            refresh_interval: self.image_cache_refresh_frequency.0,
            pull_deadline: self.image_pull_deadline_duration.0,
            image_pull_policy: match self.image_pull_policy {
                PullPolicy::IfNotPresent => ImagePullPolicy::IfNotPresent,
                PullPolicy::Always => ImagePullPolicy::Always,
            },
            check_interval: self.check_interval.0,
            puller_grace: self.puller_grace.0,
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["kubefledged-controller"], args].concat())
    }

    #[test]
    fn the_flags_of_kube_fledgeds_manifests_are_accepted() {
        let cli = parse(&[
            "--stderrthreshold=INFO",
            "--image-pull-deadline-duration=5m",
            "--image-cache-refresh-frequency=15m",
            "--image-pull-policy=IfNotPresent",
            "--job-retention-policy=delete",
            "--image-delete-job-host-network=false",
        ])
        .unwrap();
        assert_eq!(cli.run.settings().refresh_interval.as_secs(), 900);
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        let error = parse(&["--image-cache-refresh-frequency=15"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--image-cache-refresh-frequency"), "{error}");
        assert!(error.contains("1h30m"), "{error}");
    }
}
