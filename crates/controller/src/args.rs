//! Flags of the controller. Flags of kube-fledged keep their names. Those that have no effect any
//! more are accepted, and the controller logs a warning.

use std::{sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser, value_parser};
use kubefledged_api_types::{DurationError, GoDuration, ImagePullPolicy};
use kubefledged_engine::{GateSettings, Settings};
use kubefledged_process::{LogArgs, debug::DebugAddress, traces::TraceArgs};

use crate::certificates::{self, Mode};

mod node_gate;
mod peers;
mod registries;
mod workloads;

pub use peers::PeerArgs;
pub use registries::PullsByHost;

/// Keeps container images on Kubernetes nodes before a pod needs them.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// A command to run instead of the controller.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the running controller.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Commands other than running the controller.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinition as YAML
    Crd,
    /// Prepare the removal of kubefledged: stop the controller, remove its pins from the nodes and its
    /// finalizers from ImageCaches
    Cleanup(Once),
    /// Check whether an installation works, without creating anything
    Verify(Once),
}

/// Flags of a command that runs once in the cluster of an installed controller.
#[derive(Args, Clone, Debug)]
pub struct Once {
    /// Time limit for the whole command (Go duration)
    #[arg(long, default_value = "1m")]
    pub timeout: GoDuration,
    /// Flags of the installed controller.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Pull policy of image lists that do not set one.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Pull images that a node lacks; always pull images without a tag or with the tag latest
    IfNotPresent,
    /// Ask the registry for a newer image at every create, update and refresh
    Always,
}

/// Flags of the running controller.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "This installation")]
pub struct RunArgs {
    /// Namespace of the pullers, the Lease and the Secrets with certificates
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
    /// `DaemonSet` of the pullers; nodes that it does not select are not counted
    #[arg(long, default_value = "kubefledged-puller")]
    pub puller_daemonset: String,
    /// Service of the webhook; the webhook's certificate is issued for this name
    #[arg(long, default_value = "kubefledged-webhook-server")]
    pub webhook_service: String,
    /// `ValidatingWebhookConfiguration` whose caBundle the controller keeps up to date; empty: none
    #[arg(long, default_value = "kubefledged-webhook-server")]
    pub webhook_configuration: String,

    /// Who issues the certificates
    #[arg(long, value_enum, default_value_t = Mode::Managed, help_heading = "Certificates")]
    pub certificate_mode: Mode,
    /// Prefix of the names of the Secrets with certificates: <prefix>-ca, <prefix>-puller-tls,
    /// <prefix>-controller-tls, <prefix>-webhook-server-tls and <prefix>-debug-tls
    #[arg(long, default_value = "kubefledged", help_heading = "Certificates")]
    pub secret_prefix: String,
    /// Deployment of the controller; it owns the Secrets with certificates, so that they are deleted
    /// with it
    #[arg(
        long,
        default_value = "kubefledged-controller",
        help_heading = "Certificates"
    )]
    pub deployment_name: String,

    /// Time limit for one attempt to pull one image to one node (Go duration, 1s to 24h). Not set: 5m
    /// if the runtime does not report the progress of pulls; otherwise a pull continues as long as
    /// data arrives
    #[arg(long, help_heading = "Images", value_parser = pull_deadline)]
    pub image_pull_deadline_duration: Option<GoDuration>,
    /// Time between automatic refreshes (Go duration of at least 1m); 0s switches them off
    #[arg(long, default_value = "15m", help_heading = "Images", value_parser = refresh_frequency)]
    pub image_cache_refresh_frequency: GoDuration,
    /// Pull policy of image lists that do not set one
    #[arg(long, value_enum, default_value_t = PullPolicy::IfNotPresent, help_heading = "Images")]
    pub image_pull_policy: PullPolicy,
    /// ServiceAccount in the namespace of each ImageCache whose imagePullSecrets are used too, unless
    /// the ImageCache names another one
    #[arg(long, help_heading = "Images", value_parser = NonEmptyStringValueParser::new())]
    pub service_account_name: Option<String>,
    /// Time between checks of the images that a node holds (Go duration, 10s to 24h)
    #[arg(long, default_value = "5m", help_heading = "Images", value_parser = check_interval)]
    pub check_interval: GoDuration,
    /// Time for which a puller may not answer before its node counts as unreachable (Go duration, 1s
    /// to 24h)
    #[arg(long, default_value = "2m", help_heading = "Images", value_parser = puller_grace)]
    pub puller_grace: GoDuration,
    /// Time limit for removing the images of a deleted ImageCache with deletionPolicy Purge (Go
    /// duration, 1s to 168h); an Event names the images that are left then
    #[arg(long, default_value = "10m", help_heading = "Images", value_parser = purge_deadline)]
    pub purge_deadline: GoDuration,

    /// Write the condition kubefledged.io/ImagesCached of Nodes
    #[arg(long, help_heading = "Node gate")]
    pub node_gate_condition: bool,
    /// Remove taints with this key from a node when it holds the images of all `ImageCaches` with nodeGate
    /// Required, such as kubefledged.io/images-not-cached. Not set: no taint is removed
    #[arg(long, help_heading = "Node gate", value_parser = node_gate::taint_key)]
    pub node_gate_taint_key: Option<Arc<str>>,
    /// Maximum time for which a node is held, from the creation of its Node (Go duration, 1s to 24h), for
    /// `ImageCaches` without nodeGateTimeout
    #[arg(long, default_value = "10m", help_heading = "Node gate", value_parser = node_gate::timeout)]
    pub node_gate_timeout: GoDuration,

    /// Layers that nodes take from each other.
    #[command(flatten)]
    pub peers: PeerArgs,

    /// Maximum number of connection attempts to pullers at the same time (2 to 4096); half of them are
    /// reserved for pullers that do not answer at once
    #[arg(long, default_value_t = 64, help_heading = "Limits", value_parser = value_parser!(u32).range(2..=4096))]
    pub max_dials: u32,
    /// Maximum number of open connections to pullers (1 to 65536), plus the same number for pullers
    /// with long pulls; each takes about 60 KiB of memory
    #[arg(long, default_value_t = 512, help_heading = "Limits", value_parser = value_parser!(u32).range(1..=65536))]
    pub max_connections: u32,
    /// Maximum number of pulls from one registry at the same time, on all nodes together (1 to 65536);
    /// the controller allows fewer for a registry that answers 429
    #[arg(long, default_value_t = 512, help_heading = "Limits", value_parser = value_parser!(u32).range(1..=65536))]
    pub max_registry_pulls: u32,
    /// The same for single registries, such as docker.io=10,ghcr.io=100; one entry holds for all spellings of a host
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        help_heading = "Limits",
        value_name = "HOST=PULLS,..."
    )]
    pub max_registry_pulls_by_host: PullsByHost,
    /// Number of pulls from one registry with which the controller begins (1 to 65536), at most the maximum; it
    /// doubles while more pulls bring more, and halves at answers of 429 and when more pulls fail
    #[arg(long, default_value_t = 64, help_heading = "Limits", value_parser = value_parser!(u32).range(1..=65536))]
    pub initial_registry_pulls: u32,

    /// Maximum number of image names in all ImageCaches of one namespace (1 to 10000000); the controller does not
    /// take up an ImageCache with which there would be more
    #[arg(long, default_value_t = 100_000, help_heading = "Limits", value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub max_images_per_namespace: u32,

    /// Flags about workloads that name images.
    #[command(flatten)]
    pub workloads: workloads::WorkloadArgs,

    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 8080, help_heading = "Probes and metrics")]
    pub http_port: u16,
    /// Address of the gRPC debug endpoint: a loopback address and port, or off
    #[arg(
        long,
        default_value = "127.0.0.1:7070",
        help_heading = "Probes and metrics"
    )]
    pub debug_address: DebugAddress,
    /// Flags for logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// Flags for traces.
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Flags of kube-fledged without effect.
    #[command(flatten)]
    pub obsolete: ObsoleteArgs,
}

/// Flags of kube-fledged that have no effect any more.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Accepted for compatibility with kube-fledged, without effect")]
pub struct ObsoleteArgs {
    /// No effect: the puller finds the socket itself; see its flag --cri-socket-path
    #[arg(long)]
    pub cri_socket_path: Option<String>,
    /// No effect: images are not pulled by Jobs
    #[arg(long)]
    pub job_retention_policy: Option<String>,
    /// No effect: images are not pulled by Jobs
    #[arg(long)]
    pub job_priority_class_name: Option<String>,
    /// No effect: images are not pulled by Jobs
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub image_delete_job_host_network: Option<String>,
    /// No effect: images are not pulled by Jobs
    #[arg(long)]
    pub jobs_max_surge: Option<String>,
}

impl ObsoleteArgs {
    /// Logs a warning for each of these flags that is set.
    pub fn warn(&self) {
        let Self {
            cri_socket_path,
            job_retention_policy,
            job_priority_class_name,
            image_delete_job_host_network,
            jobs_max_surge,
        } = self;
        for (flag, value) in [
            ("--cri-socket-path", cri_socket_path),
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

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Default time limit of a pull if the runtime does not report its progress.
const PULL_DEADLINE: Duration = Duration::from_secs(5 * 60);

fn pull_deadline(text: &str) -> Result<GoDuration, String> {
    between(text, SECOND, DAY)
}

fn refresh_frequency(text: &str) -> Result<GoDuration, String> {
    let frequency: GoDuration = text
        .parse()
        .map_err(|error: DurationError| error.to_string())?;
    if frequency.0.is_zero() || frequency.0 >= MINUTE {
        return Ok(frequency);
    }
    Err("it must be at least 1m, or 0s for never".to_owned())
}

fn check_interval(text: &str) -> Result<GoDuration, String> {
    between(text, 10 * SECOND, DAY)
}

fn puller_grace(text: &str) -> Result<GoDuration, String> {
    between(text, SECOND, DAY)
}

fn purge_deadline(text: &str) -> Result<GoDuration, String> {
    between(text, SECOND, 7 * DAY)
}

fn between(text: &str, least: Duration, most: Duration) -> Result<GoDuration, String> {
    let duration: GoDuration = text
        .parse()
        .map_err(|error: DurationError| error.to_string())?;
    if (least..=most).contains(&duration.0) {
        return Ok(duration);
    }
    let (least, most) = (GoDuration(least), GoDuration(most));
    Err(format!("it must be from {least} to {most}"))
}

impl RunArgs {
    /// Returns the settings of the certificates.
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

    /// Returns the settings of the engine.
    pub fn settings(&self) -> Settings {
        Settings {
            refresh_interval: self.image_cache_refresh_frequency.0,
            pull_deadline: self
                .image_pull_deadline_duration
                .map_or(PULL_DEADLINE, |set| set.0),
            pull_deadline_binds: self.image_pull_deadline_duration.is_some(),
            image_pull_policy: match self.image_pull_policy {
                PullPolicy::IfNotPresent => ImagePullPolicy::IfNotPresent,
                PullPolicy::Always => ImagePullPolicy::Always,
            },
            check_interval: self.check_interval.0,
            puller_grace: self.puller_grace.0,
            purge_deadline: self.purge_deadline.0,
            initial_registry_pulls: self.initial_registry_pulls,
            max_registry_pulls: self.max_registry_pulls,
            max_registry_pulls_by_host: self.max_registry_pulls_by_host.0.clone(),
            max_namespace_images: usize::try_from(self.max_images_per_namespace)
                .unwrap_or(usize::MAX),
            gate: GateSettings {
                condition: self.node_gate_condition,
                taint: self.node_gate_taint_key.clone(),
                timeout: self.node_gate_timeout.0,
            },
            peers: self.peers.settings(self.max_connections),
            workloads: self.workloads.access(&self.namespace),
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
    fn a_deadline_binds_everywhere_only_if_somebody_sets_it() {
        let settings = parse(&[]).unwrap().run.settings();
        assert_eq!(settings.pull_deadline.as_secs(), 300);
        assert!(!settings.pull_deadline_binds);
        let flag = "--image-pull-deadline-duration=5m";
        let settings = parse(&[flag]).unwrap().run.settings();
        assert_eq!(settings.pull_deadline.as_secs(), 300);
        assert!(settings.pull_deadline_binds);
    }

    #[test]
    fn a_service_account_is_no_obsolete_flag() {
        let cli = parse(&["--service-account-name=puller"]).unwrap();
        assert_eq!(cli.run.service_account_name.as_deref(), Some("puller"));
    }

    #[test]
    fn a_value_that_would_stop_all_work_is_refused_with_its_bounds() {
        for (flag, bounds) in [
            ("--max-dials=0", "2..=4096"),
            ("--max-dials=1", "2..=4096"),
            ("--max-connections=0", "1..=65536"),
            ("--max-registry-pulls=0", "1..=65536"),
            ("--initial-registry-pulls=0", "1..=65536"),
            (
                "--max-registry-pulls-by-host=docker.io",
                "it must be HOST=PULLS",
            ),
            ("--check-interval=0s", "it must be from 10s to 24h"),
            ("--puller-grace=0s", "it must be from 1s to 24h"),
            ("--purge-deadline=0s", "it must be from 1s to 168h"),
            (
                "--image-pull-deadline-duration=0s",
                "it must be from 1s to 24h",
            ),
            (
                "--image-cache-refresh-frequency=59s",
                "at least 1m, or 0s for never",
            ),
            ("--service-account-name=", "a value is required"),
            (
                "--otlp-endpoint=https://collector:4317",
                "https is not supported",
            ),
        ] {
            let said = parse(&[flag]).unwrap_err().to_string();
            let name = flag.split('=').next().unwrap();
            assert!(said.contains(name) && said.contains(bounds), "{said}");
        }
        let never = parse(&["--image-cache-refresh-frequency=0s"]).unwrap();
        assert!(never.run.settings().refresh_interval.is_zero());
    }

    #[test]
    fn help_puts_every_flag_under_a_heading() {
        let command = <Cli as clap::CommandFactory>::command();
        let without = command
            .get_arguments()
            .filter(|flag| !flag.is_hide_set() && flag.get_help_heading().is_none());
        let names: Vec<_> = without.map(|flag| flag.get_id().as_str()).collect();
        assert!(names.is_empty(), "{names:?}");
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
