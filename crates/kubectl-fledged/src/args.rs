//! Flags and commands. Those that kubectl has too mean the same.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use kubefledged_api_types::GoDuration;

use crate::output::Format;

/// See, understand and plan which container images are cached on which nodes.
///
/// Exit codes: 0 good, 1 not ready or failed, 2 usage, 3 would not fit, 4 no access.
#[derive(Debug, Parser)]
#[command(name = "kubectl-fledged", bin_name = "kubectl fledged", version)]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of all commands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Path of the kubeconfig. Not set: $KUBECONFIG, or ~/.kube/config, or the pod's ServiceAccount
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Not set: the current one
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Namespace of the ImageCaches. Not set: that of the context
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// ImageCaches of all namespaces
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// How to print the result
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// Namespace in which kubefledged is installed. Not set: it is searched
    #[arg(long, global = true)]
    pub installation: Option<String>,
    /// Address of a forwarded debug port of the leading controller, such as 127.0.0.1:7070. Not set: the plugin forwards
    /// the port itself
    #[arg(long, global = true)]
    pub debug_address: Option<SocketAddr>,
}

/// One ImageCache.
#[derive(Args, Clone, Debug)]
pub struct Name {
    /// Name of the ImageCache
    pub name: String,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List ImageCaches with their progress and size. The right to list them is enough
    List,
    /// Show one ImageCache on one screen: conditions, causes, slowest nodes, and what is next
    Status(Name),
    /// Show which image is in which state on which node, the worst first
    Matrix(Matrix),
    /// List nodes: whether they get images, their puller, and what they hold
    Nodes(Nodes),
    /// Say in a sentence why a node lacks images, and which command helps
    Why(Why),
    /// Follow the pulls of an ImageCache until they end
    Watch(Watch),
    /// Pull again: images that nodes lack, and newer ones where the pull policy is Always
    Refresh(Request),
    /// Remove the images of an ImageCache from the nodes, after a question
    Purge(Purge),
    /// Say what an ImageCache would pull, where, how much, and whether it fits (exit code 3: it does not). Writes nothing
    Plan(Plan),
    /// Cache the images of workloads or of a list, and wait for them: for CI
    Warm(Warm),
    /// Write an ImageCache with the images that run in a namespace
    Generate(Generate),
    /// Say whether the installation is well; --bundle writes a file for a bug report, without secrets
    Doctor(Doctor),
    /// Serve a page on 127.0.0.1 with a heat map of nodes and images, live progress, and the causes
    Ui(Ui),
    /// Print completions for a shell
    Completion(Completion),
    /// Print candidates for kubectl_complete-fledged
    #[command(name = "__complete", hide = true)]
    Complete(Complete),
}

/// Flags of `matrix`.
#[derive(Args, Clone, Debug)]
pub struct Matrix {
    /// Name of the ImageCache
    pub name: String,
    /// Only this node
    #[arg(long)]
    pub node: Option<String>,
    /// Only images whose name contains this text
    #[arg(long)]
    pub image: Option<String>,
    /// Only nodes with an image in one of these states
    #[arg(long, value_enum, value_delimiter = ',')]
    pub state: Vec<crate::states::Shown>,
    /// Number of nodes to print; the others are counted. 0: all
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
}

/// Flags of `nodes`.
#[derive(Args, Clone, Debug)]
pub struct Nodes {
    /// Only nodes that lack an image, or get none
    #[arg(long)]
    pub unready: bool,
}

/// Flags of `why`.
#[derive(Args, Clone, Debug)]
pub struct Why {
    /// Name of the node
    pub node: String,
    /// Name of the image, or a part of it. Not set: all images that the node lacks
    pub image: Option<String>,
}

/// Flags of `watch`.
#[derive(Args, Clone, Debug)]
pub struct Watch {
    /// Name of the ImageCache
    pub name: String,
    /// End after this time with exit code 1 (Go duration)
    #[arg(long)]
    pub timeout: Option<GoDuration>,
}

/// Flags of a request by annotation.
#[derive(Args, Clone, Debug)]
pub struct Request {
    /// Name of the ImageCache
    pub name: String,
    /// Wait until the operation has ended
    #[arg(long)]
    pub wait: bool,
    /// With --wait: end after this time with exit code 1 (Go duration)
    #[arg(long, default_value = "10m")]
    pub timeout: GoDuration,
}

/// Flags of `purge`.
#[derive(Args, Clone, Debug)]
pub struct Purge {
    /// What to purge, and how long to wait.
    #[command(flatten)]
    pub request: Request,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Flags of `plan`.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// File with an ImageCache or with workloads; - is the standard input
    #[arg(short, long)]
    pub filename: PathBuf,
    /// Host of a registry that speaks plain HTTP, such as registry.test:5000; may be repeated
    #[arg(long, value_name = "HOST")]
    pub plain_http: Vec<String>,
}

/// Flags of `warm`.
#[derive(Args, Clone, Debug)]
pub struct Warm {
    /// File with workloads or an ImageCache; - is the standard input
    #[arg(
        short,
        long,
        conflicts_with = "image",
        required_unless_present = "image"
    )]
    pub filename: Option<PathBuf>,
    /// Image to cache; may be repeated
    #[arg(long)]
    pub image: Vec<String>,
    /// Labels of the nodes, such as tier=web,zone=a. Not set: the nodeSelector of the workloads, or all nodes
    #[arg(short = 'l', long, value_delimiter = ',')]
    pub selector: Vec<String>,
    /// Name of the ImageCache. Not set: that of the first workload
    #[arg(long, required_unless_present = "filename")]
    pub name: Option<String>,
    /// Pull secret of the namespace; may be repeated
    #[arg(long)]
    pub pull_secret: Vec<String>,
    /// Wait until the nodes hold the images; end at once with exit code 1 if that cannot happen by waiting
    #[arg(long)]
    pub wait: bool,
    /// With --wait: end after this time with exit code 1 (Go duration)
    #[arg(long, default_value = "10m")]
    pub timeout: GoDuration,
    /// Delete the ImageCache in the end; the images stay on the nodes
    #[arg(long, requires = "wait")]
    pub rm: bool,
}

/// Flags of `generate`.
#[derive(Args, Clone, Debug)]
pub struct Generate {
    /// Name of the ImageCache. Not set: the namespace's
    #[arg(long)]
    pub name: Option<String>,
    /// Write images with the digests that run
    #[arg(long)]
    pub digests: bool,
    /// Also write each image and the digest that runs to this file, one a line; implies --digests
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
}

/// Flags of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Write everything that a bug report needs to this file, as YAML without secrets
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}

/// Flags of `ui`.
#[derive(Args, Clone, Debug)]
pub struct Ui {
    /// Port on 127.0.0.1. 0: a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

/// Flags of `completion`.
#[derive(Args, Clone, Debug)]
pub struct Completion {
    /// For this shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Flags of `__complete`.
#[derive(Args, Clone, Debug)]
pub struct Complete {
    /// The words that are typed
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_kubectl_stand_before_or_behind_the_command() {
        for line in [
            ["kubectl-fledged", "-n", "shop", "status", "web"],
            ["kubectl-fledged", "status", "web", "-n", "shop"],
        ] {
            let cli = Cli::try_parse_from(line).expect("it parses");
            assert_eq!(cli.global.namespace.as_deref(), Some("shop"));
        }
    }
}
