//! Layers from other nodes in a day: a larger fleet that shares layers, waves of pulls, and nodes that hand on badly. It
//! has a source of chance of its own, so that days without it are as they were.

use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, ImagePullPolicy};

use super::{Action, DAY, PeerFault, Step, Trouble};
use crate::{
    registry::{HOSTS, NAMES},
    rng::{Rng, mix},
    runtime::Flavor,
};

/// Images of a wave: the large one takes three quarters of a minute from the registry.
const WAVE: [&str; 4] = ["r1.test/big:1", "r1.test/app:2", "nginx", "r1.test/app:1"];

/// What a day has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerDay {
    /// Runtimes share layers.
    pub on: bool,
    /// Nodes say in which zone they are.
    pub zones: bool,
    /// So few nodes may take images from others at a time that each takes several in one call.
    pub few_at_once: bool,
}

/// Adds layers from other nodes to some days.
pub fn add(seed: u64, nodes: &mut Vec<Flavor>, steps: &mut Vec<Step>) -> PeerDay {
    let mut rng = Rng::new(mix(seed ^ 0x9ee5));
    if !rng.percent(30) {
        return PeerDay::default();
    }
    let fleet = usize::try_from(rng.between(5, 9)).unwrap_or(5);
    while nodes.len() < fleet {
        nodes.push(Flavor::Containerd2);
    }
    for flavor in nodes.iter_mut() {
        if rng.percent(70) {
            *flavor = *rng.pick(&[Flavor::Containerd16, Flavor::Containerd2]);
        }
    }
    for _ in 0..rng.between(1, 4) {
        let begun = rng.below(DAY - 180_000);
        wave(&mut rng, begun, nodes.len(), steps);
    }
    PeerDay {
        on: true,
        zones: rng.percent(50),
        few_at_once: rng.percent(30),
    }
}

/// A user wants images on all nodes, and something goes wrong while they come.
fn wave(rng: &mut Rng, begun: u64, nodes: usize, steps: &mut Vec<Step>) {
    let mut push = |at: u64, action| steps.push(Step { at, action });
    let mut images = vec![(*rng.pick(&WAVE)).to_owned()];
    let other = (*rng.pick(&WAVE)).to_owned();
    if !images.contains(&other) {
        images.push(other);
    }
    let entry = CacheSpecEntry {
        images,
        image_pull_policy: rng.percent(40).then_some(ImagePullPolicy::Always),
        ..CacheSpecEntry::default()
    };
    let spec = ImageCacheSpec {
        cache_spec: vec![entry],
        ..ImageCacheSpec::default()
    };
    let cache = rng.index(2);
    // So that there is something to pull.
    if rng.percent(60) {
        for node in 0..nodes {
            push(begun.saturating_sub(1), Action::Collect(node, NAMES.len()));
        }
    }
    push(begun, Action::Apply(cache, Box::new(spec)));
    push(begun + 1, Action::Refresh(cache, String::new()));
    for _ in 0..rng.between(0, 5) {
        let at = begun + rng.between(100, 60_000);
        let node = rng.index(nodes);
        let lasts = rng.between(5_000, 120_000);
        let action = match rng.below(12) {
            0 => Action::PullerRestarts(node),
            1 => Action::PullerReplaced(node),
            2 => Action::Leave(node),
            3 => Action::Reboot(node, rng.percent(50)),
            4 => Action::Collect(node, NAMES.len()),
            5 => Action::Crash(rng.index(2), rng.between(500, 30_000)),
            6 => Action::MoveTag(rng.index(NAMES.len() - 1)),
            7 => Action::Trouble(Trouble::CutOff(node), lasts),
            8 => Action::Trouble(Trouble::PullsStall(node), lasts),
            9 => Action::Trouble(Trouble::RegistrySilent(rng.index(HOSTS.len())), lasts * 3),
            _ => {
                let faults = [PeerFault::Lies, PeerFault::Stalls, PeerFault::Refuses];
                let fault = *rng.pick(&faults);
                Action::Trouble(Trouble::Peer(node, fault), lasts)
            }
        };
        push(at, action);
    }
}
