use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubefledged_api_types::{ImagePullPolicy, WorkloadAccess};

/// The controller's flags that decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between automatic refreshes; zero means never.
    pub refresh_interval: Duration,
    /// Longest time for one attempt at one image.
    pub pull_deadline: Duration,
    /// Whether `pull_deadline` also binds where the puller can see the progress of a pull. True if
    /// somebody set the flag.
    pub pull_deadline_binds: bool,
    /// Policy for images with a tag other than `:latest`, in lists without a policy of their own.
    pub image_pull_policy: ImagePullPolicy,
    /// Time between two checks of a node.
    pub check_interval: Duration,
    /// How long a puller may be silent before its node counts as unreachable.
    pub puller_grace: Duration,
    /// How long a deleted object waits for its images to be removed.
    pub purge_deadline: Duration,
    /// Pulls from a registry that run at a time before the budget has grown or shrunk; at most its ceiling.
    pub initial_registry_pulls: u32,
    /// Most pulls from one registry that run at a time.
    pub max_registry_pulls: u32,
    /// The same for single registries, by the name that all spellings of the host share.
    pub max_registry_pulls_by_host: BTreeMap<String, u32>,
    /// Most image names of all caches of one namespace; further caches are not taken up.
    pub max_namespace_images: usize,
    /// The node gate.
    pub gate: GateSettings,
    /// Layers from other nodes.
    pub peers: PeerSettings,
    /// Whose workloads caches may read.
    pub workloads: WorkloadAccess,
    /// Spreads work over time that would otherwise begin at the same moment.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            refresh_interval: Duration::from_secs(15 * 60),
            pull_deadline: Duration::from_secs(5 * 60),
            pull_deadline_binds: false,
            image_pull_policy: ImagePullPolicy::IfNotPresent,
            check_interval: Duration::from_secs(5 * 60),
            puller_grace: Duration::from_secs(2 * 60),
            purge_deadline: Duration::from_secs(10 * 60),
            initial_registry_pulls: 64,
            max_registry_pulls: 512,
            max_registry_pulls_by_host: BTreeMap::new(),
            max_namespace_images: 100_000,
            gate: GateSettings::default(),
            peers: PeerSettings::default(),
            workloads: WorkloadAccess::default(),
            seed: 0,
        }
    }
}

/// Settings of the node gate, which keeps pods from a node that joins until its images are there.
#[derive(Clone, Debug)]
pub struct GateSettings {
    /// Whether the condition `kubefledged.io/ImagesCached` of Nodes is written.
    pub condition: bool,
    /// Key of the taint that is removed from Nodes; `None`: none is.
    pub taint: Option<Arc<str>>,
    /// How long after the creation of its Node a node is held at most, for caches without a time-out of their own.
    pub timeout: Duration,
}

impl GateSettings {
    /// Is anything written to Nodes?
    pub fn is_on(&self) -> bool {
        self.condition || self.taint.is_some()
    }
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            condition: false,
            taint: None,
            timeout: Duration::from_secs(10 * 60),
        }
    }
}

/// Settings of layers that nodes take from each other.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Whether they do.
    pub enabled: bool,
    /// A node waits for no other node if an image is smaller than this, in bytes of its compressed layers.
    pub min_image_size: u64,
    /// How long a node waits for another node that has an image or receives it, before it pulls from the registry.
    pub wait: Duration,
    /// Most nodes that take images from others at a time: each needs a connection.
    pub at_once: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            min_image_size: 20_000_000,
            wait: Duration::from_secs(30),
            at_once: 512,
        }
    }
}
