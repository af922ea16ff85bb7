//! What goes wrong, by chance that a seed decides.

use std::time::Duration;

use crate::{
    NAMESPACE,
    view::{Process, View},
};

/// Numbers that look random and are the same for a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }

    /// Up to so many milliseconds.
    pub fn moment(&mut self, most: usize) {
        std::thread::sleep(Duration::from_millis(self.roll(most) as u64));
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillController,
    /// Both replicas, and then some time without any.
    KillControllers,
    FreezeController,
    KillPuller,
    FreezePuller,
    KillWebhooks,
    KillRuntime,
    KillKubelet,
    KillApiServer,
    KillEtcd,
    KillRegistry,
    CutNode,
    ReplaceNode,
    RegistryFails,
    FillDisk,
    /// All watches begin in a past that is forgotten: 410.
    ForgetThePast,
}

pub const ALL: [Fault; 16] = [
    Fault::KillController,
    Fault::KillControllers,
    Fault::FreezeController,
    Fault::KillPuller,
    Fault::FreezePuller,
    Fault::KillWebhooks,
    Fault::KillRuntime,
    Fault::KillKubelet,
    Fault::KillApiServer,
    Fault::KillEtcd,
    Fault::KillRegistry,
    Fault::CutNode,
    Fault::ReplaceNode,
    Fault::RegistryFails,
    Fault::FillDisk,
    Fault::ForgetThePast,
];

const REGISTRY_FAULTS: [&str; 8] = [
    "status=500",
    "status=429 retry-after=2",
    "status=503 body=html",
    "slow=200 only=blobs",
    "truncate=100000 only=blobs",
    "reset=50000",
    "corrupt only=blobs",
    "delay=5",
];
/// What goes wrong, while others go on working.
pub struct Striker {
    pub view: View,
    pub dice: Dice,
}

impl Striker {
    pub fn strike(&mut self, fault: Fault) {
        let nodes = self
            .view
            .insist("nodes are listed", || self.view.cluster.nodes());
        let node = self.dice.pick(&nodes).clone();
        let other = self.dice.pick(&nodes[1..]).clone();
        match fault {
            Fault::KillController => self.signal("controller", "KILL", 1),
            Fault::KillControllers => self.signal("controller", "KILL", 9),
            Fault::FreezeController => self.freeze("controller"),
            Fault::KillPuller => self.signal("puller", "KILL", 1),
            Fault::FreezePuller => self.freeze("puller"),
            Fault::KillWebhooks => self.signal("webhook-server", "KILL", 9),
            Fault::KillRuntime => self.kill_runtime(&node),
            Fault::KillKubelet => self.restart(&node, "kubelet", 15),
            Fault::KillApiServer => self.restart("1", "kube-apiserver", 10),
            Fault::KillEtcd => self.restart("1", "etcd", 10),
            Fault::KillRegistry => self.restart("1", "registry-plain", 10),
            Fault::CutNode => {
                let seconds = (5 + self.dice.roll(26)).to_string();
                self.view.run(&["cut", &other, &seconds]);
            }
            Fault::ReplaceNode => {
                self.view.run(&["remove-node", &other]);
                self.dice.moment(5000);
                self.view.run(&["up", &nodes.len().to_string()]);
                self.view.label_backend();
            }
            Fault::RegistryFails => {
                let what = *self.dice.pick(&REGISTRY_FAULTS);
                let args: Vec<&str> = std::iter::once("fault").chain(what.split(' ')).collect();
                self.view.run(&args);
                self.dice.moment(15_000);
                self.view.run(&["fault", "off"]);
            }
            Fault::FillDisk => {
                self.view.run(&["fill", &node, "95"]);
                self.dice.moment(20_000);
                self.view.run(&["fill", &node, "0"]);
            }
            Fault::ForgetThePast => self.forget_the_past(),
        }
    }

    pub fn kill_runtime(&mut self, node: &str) {
        let cluster = &self.view.cluster;
        let runtime = self
            .view
            .insist("a runtime is known", || cluster.runtime(node));
        let program = if runtime.starts_with("cri-o") {
            "crio"
        } else {
            "containerd"
        };
        self.restart(node, program, 8);
    }

    pub fn forget_the_past(&mut self) {
        self.signal("controller", "STOP", 9);
        for i in 0..5 {
            let label = format!("label ic --all -n {NAMESPACE} --overwrite forgotten={i}");
            self.view.kubectl(&label);
        }
        self.view
            .insist("etcd forgets", || self.view.cluster.run(&["compact"], ""));
        self.restart("1", "kube-apiserver", 0);
        self.signal("controller", "CONT", 9);
    }

    /// Killed, and back after so many seconds at most.
    pub fn restart(&mut self, node: &str, component: &str, most: usize) {
        let seconds = self.dice.roll(most + 1).to_string();
        self.view.run(&["restart", node, component, &seconds]);
    }

    pub fn freeze(&mut self, component: &str) {
        self.signal(component, "STOP", 9);
        self.dice.moment(20_000);
        self.signal(component, "CONT", 9);
    }

    pub fn signal(&mut self, component: &str, signal: &str, most: usize) {
        let mut processes = self.view.processes(component);
        for _ in 0..most.min(processes.len()) {
            let at = self.dice.roll(processes.len());
            let Process { pod, node, pid, .. } = processes.swap_remove(at);
            self.view.say(&format!("  kill -{signal} {pod} on n{node}"));
            // It may have ended since.
            let kill = ["node", &node, "kill", &format!("-{signal}"), &pid];
            let _ = self.view.cluster.run(&kill, "");
        }
    }
}
