//! Flags.

use std::path::PathBuf;

use clap::Parser;
use kubefledged_api_types::GoDuration;
use kubefledged_process::{LogArgs, debug::DebugAddress};

/// Pulls and removes container images on one node, as the controller asks.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Name of the Node; requests for another one are refused
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// UID of this pod
    #[arg(long, env = "POD_UID", default_value = "")]
    pub pod_uid: String,
    /// Namespace of this pod; part of the name in the certificates of those who may call
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-fledged")]
    pub namespace: String,
    /// Where the Secret with tls.crt, tls.key and ca.crt is mounted; read again when it changes
    #[arg(long, default_value = "/etc/kubefledged/tls")]
    pub tls_dir: PathBuf,
    /// Port of the gRPC service; 0 takes a free one
    #[arg(long, default_value_t = 7443)]
    pub listen_port: u16,
    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 8082)]
    pub http_port: u16,
    /// Where the gRPC debug endpoint listens: a loopback address and port, or off
    #[arg(long, default_value = "127.0.0.1:7071")]
    pub debug_address: DebugAddress,
    /// Where the node's /run is mounted; the runtime's socket is looked for below it
    #[arg(long, default_value = "/host/run", help_heading = "Runtime")]
    pub host_run_dir: PathBuf,
    /// The runtime's socket, as seen in this container; not set: looked for
    #[arg(long, help_heading = "Runtime")]
    pub cri_socket_path: Option<PathBuf>,
    /// A path on the file system of the images, to see how full it is; not set: the root of this
    /// container, where that tells
    #[arg(long, help_heading = "Runtime")]
    pub image_fs_path: Option<PathBuf>,
    /// Share of that file system in use, in percent, from which on nothing is pulled or pinned; 100
    /// switches the guard off
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "Images")]
    pub disk_watermark: u8,
    /// Longest time in which no byte of a pull arrives, where that can be seen, such as 2m
    #[arg(long, default_value = "2m", help_heading = "Images")]
    pub no_progress_limit: GoDuration,
    /// Pulls at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "Images")]
    pub max_parallel_pulls: u8,
    /// Globs of image names that are never removed, separated by commas
    #[arg(
        long,
        default_value = "*/pause*",
        value_delimiter = ',',
        help_heading = "Images"
    )]
    pub protected_images: Vec<String>,
    /// Images of kubefledged itself, which are never removed either, separated by commas
    #[arg(long, value_delimiter = ',', help_heading = "Images")]
    pub own_images: Vec<String>,
    /// The kubelet's CredentialProviderConfig: logins of this node, for images without
    /// imagePullSecrets of their own
    #[arg(
        long,
        requires = "credential_provider_bin_dir",
        help_heading = "Credentials"
    )]
    pub credential_provider_config: Option<PathBuf>,
    /// Where its plugins lie
    #[arg(
        long,
        requires = "credential_provider_config",
        help_heading = "Credentials"
    )]
    pub credential_provider_bin_dir: Option<PathBuf>,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}
