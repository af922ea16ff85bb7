//! What happens in a bad day, decided before it begins: who does what when, and which troubles last
//! how long. A script can be cut down to what a failure needs.

mod gate;
mod generate;
mod peers;
mod specs;
mod workloads;

pub use peers::PeerDay;

use std::fmt;

use kubefledged_api_types::ImageCacheSpec;
use kubefledged_engine::{Source, WatchId};

use crate::runtime::Flavor;

/// How long a bad day lasts, in ms.
pub const DAY: u64 = 30 * 60_000;
/// Caches that users may create.
pub const CACHES: [(&str, &str); 3] = [("ns", "a"), ("ns", "b"), ("other", "c")];
/// A `ServiceAccount` whose imagePullSecrets hold the right password.
pub const ROBOT: &str = "robot";
/// Deployments that users may create.
pub const WORKLOADS: [(&str, &str); 4] = [("ns", "w"), ("ns", "x"), ("other", "y"), ("other", "z")];
/// Zones of nodes.
pub const ZONES: [&str; 2] = ["east", "west"];

/// A whole bad day.
#[derive(Clone, Debug)]
pub struct Script {
    /// Of everything that is decided on the way: latencies, ties, which call a trouble hits.
    pub seed: u64,
    /// Nodes that are there from the start, by their runtime.
    pub nodes: Vec<Flavor>,
    /// Images for which the queue of a puller has room.
    pub room: usize,
    /// Nodes come up with the taint of the node gate, and the controller has its flags.
    pub gated: bool,
    /// Layers from other nodes.
    pub peers: PeerDay,
    /// `--max-registry-pulls`
    pub registry_pulls: u32,
    /// In order of time.
    pub steps: Vec<Step>,
}

/// Parts of a day that have a source of chance of their own: without them the day is as it was before they were written.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Nodes share layers.
    pub peers: bool,
    /// Caches follow workloads.
    pub workloads: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            peers: true,
            workloads: true,
        }
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
pub struct Step {
    /// In ms.
    pub at: u64,
    /// What.
    pub action: Action,
}

/// What people, machines and chance do.
#[derive(Clone, Debug)]
pub enum Action {
    /// A user writes an object; an edit where it is there already.
    Apply(usize, Box<ImageCacheSpec>),
    /// A user deletes it.
    Delete(usize),
    /// A user asks for a refresh; empty or a token.
    Refresh(usize, String),
    /// A user asks for a purge; empty or a token.
    Purge(usize, String),
    /// Somebody changes a label of the object: another resource version.
    Touch(usize),
    /// A user suspends it, or lifts that.
    Suspend(usize, bool),
    /// A user wants its images to stay when it is deleted, perhaps while it is.
    Retain(usize),
    /// A user writes a Deployment with these images and, if that is set, this pull secret.
    Deploy(usize, Vec<usize>, Option<&'static str>),
    /// A user deletes it.
    Undeploy(usize),
    /// Somebody deletes the Lease.
    DeleteLease,
    /// A Node joins, if there is none of this number.
    Join(usize, Flavor),
    /// A Node is deleted; its disk stays or not.
    Leave(usize),
    /// It is in another zone from now on.
    Relabel(usize, usize),
    /// Cordoned, or not any more.
    Cordon(usize, bool),
    /// Its Ready condition.
    Ready(usize, bool),
    /// Labelled to get no images, or not any more.
    Exclude(usize, bool),
    /// A machine that left comes back as another Node; the disk may be empty then.
    Rejoin(usize, bool),
    /// Somebody else puts a taint before all others, or takes it away.
    Taint(usize, bool),
    /// Somebody puts the taint of the node gate onto a Node.
    Retaint(usize),
    /// Somebody takes our condition off a Node.
    DropCondition(usize),
    /// The machine starts anew; the disk may be empty then.
    Reboot(usize, bool),
    /// The puller's container starts anew in the same pod.
    PullerRestarts(usize),
    /// Another pod takes its place.
    PullerReplaced(usize),
    /// The runtime is away for so many ms.
    RuntimeRestarts(usize, u64),
    /// The kubelet collects so many images.
    Collect(usize, usize),
    /// A container starts from this image, if it is there.
    Run(usize, usize),
    /// A container that mounts this image as a volume starts, if the image is there.
    Mount(usize, usize),
    /// All containers but the sandbox end.
    Stop(usize),
    /// The kubelet pulls this name for a pod.
    ForeignPull(usize, usize),
    /// Somebody pins the image of this name.
    ForeignPin(usize, usize),
    /// A tag means another image from now on.
    MoveTag(usize),
    /// A controller is killed and comes back after so many ms.
    Crash(usize, u64),
    /// A controller stands still for so many ms, and does not know it.
    Pause(usize, u64),
    /// The wall clock of a controller is set, in seconds.
    Skew(usize, i64),
    /// A trouble that lasts so many ms.
    Trouble(Trouble, u64),
}

/// What is wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Somebody writes to objects just before we do.
    Conflicts,
    /// The API server refuses writes.
    WritesFail,
    /// Writes happen, and their answers are lost.
    AnswersLost,
    /// The API server takes its time.
    ApiSlow,
    /// A controller does not reach the API server.
    ApiUnreachable(usize),
    /// A watch of a controller is broken; it lists anew afterwards.
    WatchBroken(usize, SourceKey),
    /// Lists are some time old.
    ListsStale,
    /// Secrets cannot be read.
    SecretsUnreadable,
    /// Calls to a node get lost.
    CallsLost(usize),
    /// Calls to a node come late, also after their caller has given up.
    CallsLate(usize),
    /// Calls to a node come twice.
    CallsTwice(usize),
    /// Streams of a node break in the middle.
    StreamsBreak(usize),
    /// A node is cut off.
    CutOff(usize),
    /// The runtime takes its time.
    RuntimeSlow(usize),
    /// The runtime says no to anything now and then.
    RuntimeErrs(usize),
    /// The runtime does what it was asked to, and its answer is lost.
    EffectsUntold(usize),
    /// Pulls begin and never end.
    PullsStall(usize),
    /// The runtime drops pulls that nobody cancelled.
    PullsCancelled(usize),
    /// Containers start just after somebody has looked for them.
    ContainersStart(usize),
    /// Nothing fits on the disk.
    DiskFull(usize),
    /// Others write onto the disk until it is full.
    DiskFills(usize),
    /// The disk is just below the watermark: no large image fits any more.
    DiskTight(usize),
    /// Pulls that were cancelled end later all the same.
    PullsEndLate(usize),
    /// A registry does not answer.
    RegistryDown(usize),
    /// A registry refuses everybody.
    RegistryRefuses(usize),
    /// A registry asks to wait.
    RateLimited(usize),
    /// A registry does not have a name.
    NameUnknown(usize),
    /// A registry accepts pulls and never answers.
    RegistrySilent(usize),
    /// A registry sends less than counts as progress.
    RegistryDrips(usize),
    /// The runtime of a node inspects one image after the other, and takes seconds for each.
    InspectionsSlow(usize),
    /// A node lies.
    Rogue(usize, Lie),
    /// A node hands on layers badly.
    Peer(usize, PeerFault),
}

/// What a node does wrong that hands on layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerFault {
    /// It sends wrong bytes.
    Lies,
    /// Its streams stand still.
    Stalls,
    /// It refuses tickets, as if an old leader had signed them, or has no place.
    Refuses,
}

/// What a rogue node tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// That it has seen the next term.
    NextTerm,
    /// That it has seen the last term that there can be.
    LastTerm,
    /// More outcomes than it was asked for.
    TooMany,
}

/// [`Source`] with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKey {
    /// `ImageCaches`.
    Caches,
    /// Nodes.
    Nodes,
    /// Pullers.
    Pullers,
    /// Deployments, which only a leader watches, and only if some cache wants it.
    Workloads,
}

impl SourceKey {
    /// Those that are always watched.
    pub const ALL: [Self; 3] = [Self::Caches, Self::Nodes, Self::Pullers];

    /// As the engine calls it. `watch`: the number of the watch of workloads.
    pub fn source(self, watch: WatchId) -> Source {
        match self {
            Self::Workloads => Source::Watch(watch),
            Self::Caches => Source::Caches,
            Self::Nodes => Source::Nodes,
            Self::Pullers => Source::Pullers,
        }
    }
}

impl Action {
    /// The node it is about.
    pub fn node(&self) -> Option<usize> {
        use Trouble as T;
        match self {
            Self::Join(n, _)
            | Self::Leave(n)
            | Self::Relabel(n, _)
            | Self::Cordon(n, _)
            | Self::Ready(n, _)
            | Self::Exclude(n, _)
            | Self::Reboot(n, _)
            | Self::Rejoin(n, _)
            | Self::Taint(n, _)
            | Self::Retaint(n)
            | Self::DropCondition(n)
            | Self::PullerRestarts(n)
            | Self::PullerReplaced(n)
            | Self::RuntimeRestarts(n, _)
            | Self::Collect(n, _)
            | Self::Run(n, _)
            | Self::Mount(n, _)
            | Self::Stop(n)
            | Self::ForeignPull(n, _)
            | Self::ForeignPin(n, _)
            | Self::Trouble(
                T::CallsLost(n)
                | T::CallsLate(n)
                | T::CallsTwice(n)
                | T::StreamsBreak(n)
                | T::CutOff(n)
                | T::RuntimeSlow(n)
                | T::RuntimeErrs(n)
                | T::EffectsUntold(n)
                | T::PullsCancelled(n)
                | T::PullsStall(n)
                | T::ContainersStart(n)
                | T::DiskFull(n)
                | T::DiskFills(n)
                | T::DiskTight(n)
                | T::PullsEndLate(n)
                | T::InspectionsSlow(n)
                | T::Rogue(n, _)
                | T::Peer(n, _),
                _,
            ) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, pulls, room) = (&self.nodes, self.registry_pulls, self.room);
        writeln!(
            f,
            "seed {}, nodes {nodes:?}, {pulls} pulls per registry, room for {room} images{}",
            self.seed,
            match (self.gated, self.peers.on) {
                (true, true) => ", gated, with peers",
                (true, false) => ", gated",
                (false, true) => ", with peers",
                (false, false) => "",
            }
        )?;
        for step in &self.steps {
            write!(f, "  {:>8} ", step.at)?;
            match &step.action {
                Action::Apply(cache, spec) => {
                    let spec = serde_json::to_string(spec).map_err(|_| fmt::Error)?;
                    let (namespace, name) = CACHES[*cache];
                    writeln!(f, "apply {namespace}/{name} {spec}")?;
                }
                other => writeln!(f, "{other:?}")?,
            }
        }
        Ok(())
    }
}
