//! Flags of the webhook. Flags of kube-fledged that have no effect any more are accepted, and the
//! webhook logs a warning.

use std::sync::Arc;

use clap::Parser;
use kubefledged_api_types::{GoDuration, WorkloadAccess};
use kubefledged_process::{AdminArgs, LogArgs};

use crate::{admission::Rules, app::Config, certificate::Names};

/// Admission webhook: refuses ImageCaches that cannot work, and warns about surprising ones
#[derive(Parser, Debug)]
#[command(name = "kubefledged-webhook", version)]
#[command(mut_arg("http_port", |arg| arg.required(false).default_value("8081")))]
pub struct Args {
    /// Namespace of the Secret with the server's certificate
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-fledged")]
    pub namespace: String,
    /// Name of the Secret with the server's certificate, of type kubernetes.io/tls
    #[arg(long, default_value = "kubefledged-webhook-server-tls")]
    pub tls_secret_name: String,
    /// `ValidatingWebhookConfiguration` whose caBundle must contain the CA of the certificate before
    /// the webhook is ready; empty: none
    #[arg(long, default_value = "kubefledged-webhook-server")]
    pub webhook_configuration: String,
    /// Port for the API server (TLS); 0 takes a free one
    #[arg(long, default_value_t = 10250)]
    pub listen_port: u16,
    /// Maximum number of image names in one ImageCache: as many as the controller allows for all ImageCaches of a
    /// namespace
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub max_images_per_namespace: u32,
    /// Allow ImageCaches to take images from workloads: as the controller's flag of the same name
    #[arg(long)]
    pub workloads: bool,
    /// Namespaces, besides that of --namespace, whose ImageCaches may select workloads of other namespaces, such as
    /// platform,ci: as the controller's flag of the same name
    #[arg(long, value_delimiter = ',', hide_default_value = true)]
    pub workload_cluster_scope_namespaces: Vec<Arc<str>>,
    /// Time for which the webhook still serves after SIGTERM (Go duration), until API servers stop
    /// sending requests to it
    #[arg(long, default_value = "5s")]
    pub shutdown_delay: GoDuration,
    /// Flags for probes and metrics.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Flags for logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// No effect, accepted for compatibility with kube-fledged: use --listen-port
    #[arg(long, hide = true)]
    pub port: Option<String>,
    /// No effect, accepted for compatibility with kube-fledged: use --tls-secret-name
    #[arg(long, hide = true)]
    pub cert_file: Option<String>,
    /// No effect, accepted for compatibility with kube-fledged: use --tls-secret-name
    #[arg(long, hide = true)]
    pub key_file: Option<String>,
}

impl Args {
    /// Logs a warning for each given flag without effect. Call it after logging is set up.
    pub fn warn_of_flags_without_effect(&self) {
        for (flag, value, instead) in [
            ("--port", &self.port, "--listen-port"),
            ("--cert-file", &self.cert_file, "--tls-secret-name"),
            ("--key-file", &self.key_file, "--tls-secret-name"),
        ] {
            if value.is_some() {
                tracing::warn!(flag, instead, "this flag has no effect any more");
            }
        }
    }
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let Args {
            namespace,
            tls_secret_name,
            webhook_configuration,
            listen_port,
            max_images_per_namespace,
            workloads,
            workload_cluster_scope_namespaces,
            shutdown_delay,
            admin: AdminArgs { http_port },
            log: _,
            port: _,
            cert_file: _,
            key_file: _,
        } = args;
        let access = WorkloadAccess::enabled(&namespace, workload_cluster_scope_namespaces);
        Self {
            rules: Rules {
                most_images: usize::try_from(max_images_per_namespace).unwrap_or(usize::MAX),
                access: WorkloadAccess {
                    enabled: workloads,
                    ..access
                },
            },
            names: Names {
                namespace,
                secret: tls_secret_name,
                configuration: webhook_configuration,
            },
            listen_port,
            http_port,
            shutdown_delay: shutdown_delay.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["kubefledged-webhook"], args].concat())
    }

    #[test]
    fn no_flag_is_needed() {
        let config = Config::from(parse(&[]).unwrap());
        assert_eq!(config.names.secret, "kubefledged-webhook-server-tls");
        assert_eq!((config.listen_port, config.http_port), (10250, 8081));
    }

    #[test]
    fn the_flags_of_kube_fledgeds_manifests_are_accepted_and_do_nothing() {
        let args = parse(&[
            "--stderrthreshold=INFO",
            "--port=443",
            "--cert-file=/var/run/secrets/webhook-server/tls.crt",
            "--key-file=/var/run/secrets/webhook-server/tls.key",
        ])
        .unwrap();
        args.warn_of_flags_without_effect();
        assert_eq!(Config::from(args).listen_port, 10250);
    }

    #[test]
    fn workloads_are_read_only_if_the_flag_says_so_and_the_own_namespace_may_select_others() {
        let access = |args: &[&str]| Config::from(parse(args).unwrap()).rules.access;
        assert!(
            access(&["--workload-cluster-scope-namespaces=a"])
                .refusal("a", false)
                .is_some()
        );
        let on = access(&[
            "--workloads",
            "--workload-cluster-scope-namespaces=a,b",
            "--namespace=own",
        ]);
        for allowed in ["a", "b", "own"] {
            assert_eq!(on.refusal(allowed, true), None);
        }
        assert!(on.refusal("c", true).is_some() && on.refusal("c", false).is_none());
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        let error = parse(&["--shutdown-delay=5"]).unwrap_err().to_string();
        assert!(error.contains("--shutdown-delay"), "{error}");
    }
}
