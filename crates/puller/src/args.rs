//! Flags of the puller.

use std::path::PathBuf;

use clap::Parser;
use kubefledged_api_types::GoDuration;
use kubefledged_process::{LogArgs, debug::DebugAddress};

/// Pulls and removes container images on one node, as the controller requests.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Name of the Node; the puller refuses requests for another node
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// UID of this pod. The puller uses the runtime that runs it
    #[arg(long, env = "POD_UID", default_value = "")]
    pub pod_uid: String,
    /// Namespace of this pod; the certificates of permitted clients contain it in their name
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-fledged")]
    pub namespace: String,
    /// Directory where the Secret with tls.crt, tls.key and ca.crt is mounted; the puller reads it
    /// again when it changes
    #[arg(long, default_value = "/etc/kubefledged/tls")]
    pub tls_dir: PathBuf,
    /// Port of the gRPC service; 0 takes a free one
    #[arg(long, default_value_t = 7443)]
    pub listen_port: u16,
    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 8082)]
    pub http_port: u16,
    /// Address of the gRPC debug endpoint: a loopback address and port, or off
    #[arg(long, default_value = "127.0.0.1:7071")]
    pub debug_address: DebugAddress,
    /// Directory where the node's /run is mounted; the puller looks for the runtime's socket below it
    #[arg(long, default_value = "/host/run", help_heading = "Runtime")]
    pub host_run_dir: PathBuf,
    /// Path of the runtime's socket in this container. Not set: the puller looks for the runtime that runs its own
    /// pod
    #[arg(long, help_heading = "Runtime")]
    pub cri_socket_path: Option<PathBuf>,
    /// A path on the image file system, by which the puller sees how full it is. Not set: the root of
    /// this container, if that shows it
    #[arg(long, help_heading = "Runtime")]
    pub image_fs_path: Option<PathBuf>,
    /// Directory in which the puller remembers which images it pulled, for ImageCaches with removalPolicy
    /// OnlyPulled on runtimes other than containerd, which keeps that itself. Not set: in memory, until the
    /// puller ends
    #[arg(long, help_heading = "Images")]
    pub state_dir: Option<PathBuf>,
    /// Disk usage in percent of the image file system at which the puller stops to pull and pin
    /// images; 100 switches this limit off
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "Images")]
    pub disk_watermark: u8,
    /// Time without data after which a pull is ended, if the runtime reports progress (Go duration)
    #[arg(long, default_value = "2m", help_heading = "Images")]
    pub no_progress_limit: GoDuration,
    /// Pulls at the same time; up to two more may run, so that nobody waits for a long pull or for somebody
    /// else's silent registry
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "Images")]
    pub max_parallel_pulls: u8,
    /// Glob patterns of image names that are never removed, separated by commas
    #[arg(
        long,
        default_value = "*/pause*",
        value_delimiter = ',',
        help_heading = "Images"
    )]
    pub protected_images: Vec<String>,
    /// Images of kubefledged itself, which are never removed, separated by commas
    #[arg(long, value_delimiter = ',', help_heading = "Images")]
    pub own_images: Vec<String>,
    /// Take layers from other nodes and hand them on, as the controller says, if the runtime lets us
    #[arg(
        long,
        default_value_t = true,
        action = clap::ArgAction::Set,
        help_heading = "Peers"
    )]
    pub peers: bool,
    /// Layers that are handed to other nodes at the same time; 0 hands on none
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64), help_heading = "Peers")]
    pub max_peer_uploads: u16,
    /// Bytes a second that are handed to other nodes; 0 sets no limit
    #[arg(long, default_value_t = 0, help_heading = "Peers")]
    pub max_peer_upload_rate: u64,
    /// Bytes a second that are taken from other nodes; 0 sets no limit
    #[arg(long, default_value_t = 0, help_heading = "Peers")]
    pub max_peer_download_rate: u64,
    /// File with the kubelet's CredentialProviderConfig; its plugins provide the node's credentials
    /// for images without imagePullSecrets of their own
    #[arg(
        long,
        requires = "credential_provider_bin_dir",
        help_heading = "Credentials"
    )]
    pub credential_provider_config: Option<PathBuf>,
    /// Directory of the credential provider plugins
    #[arg(
        long,
        requires = "credential_provider_config",
        help_heading = "Credentials"
    )]
    pub credential_provider_bin_dir: Option<PathBuf>,
    /// Flags for logs.
    #[command(flatten)]
    pub log: LogArgs,
}
