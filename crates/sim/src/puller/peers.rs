//! Layers from other nodes, as the pullers of two nodes move them: what a peer hands on, and what that costs.

use kubefledged_engine::PeerSettings;
use kubefledged_proto::puller::TicketClaims;
use kubefledged_queue::{Call, Peer, Sharing, Sources};
use prost::Message as _;

use crate::{
    node::Plan,
    registry::{Manifest, normalized},
    script::{PeerFault, Trouble},
    world::World,
};

/// How long a megabyte takes from another node, in ms: a tenth of what it takes from the registry.
const MS_A_MB: u64 = 10;
/// Until a stream that stands still is given up, in ms.
const STALLED: u64 = 4_000;
/// A child that finds its parent without the pull asks again for so long, in ms.
const ASKS_AGAIN: u64 = 5_000;

/// What a peer does for a node that asks it.
enum Handed {
    /// It has the image or receives it; in the second case it has all after so many ms.
    All(u64),
    /// It sends nothing; that is known after so many ms.
    Nothing(u64),
    /// It sends bytes that are none of the layers.
    Wrong,
}

/// Nodes that take images from others at a time, on days on which they are few.
const FEW: usize = 2;

impl World {
    /// Flags of the controllers.
    pub fn peer_settings(&self) -> PeerSettings {
        let mut settings = PeerSettings::default();
        if self.script.peers.few_at_once {
            settings.at_once = FEW;
        }
        settings
    }

    /// How long a pull takes that takes layers from other nodes where they have them, and where the bytes come from.
    pub fn shared(
        &mut self,
        node: usize,
        name: &str,
        sharing: &Sharing,
        manifest: &Manifest,
        takes: u64,
    ) -> (u64, Sources) {
        if !self.script.peers.on {
            return (takes, Sources::default());
        }
        let mb = manifest.lacks(&self.nodes[node].runtime.layers());
        let registry = Sources {
            registry: mb << 20,
            ..Sources::default()
        };
        let Some(peers) = &sharing.peers else {
            return (takes, registry);
        };
        let claims = match TicketClaims::decode(&*peers.claims) {
            Ok(claims) => claims,
            Err(error) => {
                self.broken("tickets decode", error.to_string());
                return (takes, registry);
            }
        };
        if claims.node_name != *self.nodes[node].name.0 {
            self.broken("a ticket is for the node that uses it", claims.node_name);
            return (takes, registry);
        }
        let mut lost = 0;
        let mut wasted = 0;
        for peer in &peers.nodes {
            match self.handed(node, peer, name, &claims.digest) {
                Handed::All(after) => {
                    let came = 50 + mb * MS_A_MB * self.rng.between(70, 130) / 100;
                    // The registry has another image by now: nothing of it is of use.
                    if !manifest.digest.ends_with(&claims.digest) {
                        wasted += mb << 19;
                        break;
                    }
                    let sources = Sources {
                        peers: mb << 20,
                        wasted,
                        ..Sources::default()
                    };
                    return (lost + came.max(after + 100), sources);
                }
                Handed::Nothing(after) => lost += after,
                Handed::Wrong => {
                    lost += mb * MS_A_MB / 2;
                    wasted += mb << 19;
                }
            }
        }
        (takes + lost, Sources { wasted, ..registry })
    }

    fn handed(&mut self, asks: usize, peer: &Peer, name: &str, digest: &str) -> Handed {
        let Some(at) = self
            .nodes
            .iter()
            .position(|node| *node.name.0 == *peer.node)
        else {
            return Handed::Nothing(10);
        };
        let machine = &self.nodes[at];
        let process = machine.process.as_ref();
        let process = process.filter(|p| p.puller.address.to_string() == peer.address);
        let Some(process) = process else {
            return Handed::Nothing(2_000);
        };
        if self.is(Trouble::CutOff(at)) || self.is(Trouble::CutOff(asks)) {
            return Handed::Nothing(2_000);
        }
        let fault = |fault| self.is(Trouble::Peer(at, fault));
        if fault(PeerFault::Refuses) {
            return Handed::Nothing(10);
        }
        if fault(PeerFault::Stalls) {
            return Handed::Nothing(STALLED);
        }
        if fault(PeerFault::Lies) {
            return Handed::Wrong;
        }
        let runtime = &machine.runtime;
        let held = runtime.resolve(name).and_then(|id| runtime.images.get(&id));
        if held.is_some_and(|held| held.digests.iter().any(|known| known.ends_with(digest))) {
            // The content may be collected between the offer and the read.
            let gone = self.rng.percent(5);
            return if gone {
                Handed::Nothing(10)
            } else {
                Handed::All(0)
            };
        }
        let name = normalized(name);
        let receiving =
            process
                .calls
                .values()
                .find_map(|running| match (&running.call, &running.plan) {
                    (Call::Pull(known, _, sharing), Plan::Succeed(_))
                        if normalized(known) == name && sharing.peers.is_some() =>
                    {
                        Some((running.since + running.takes).saturating_sub(self.now))
                    }
                    _ => None,
                });
        receiving.map_or(Handed::Nothing(ASKS_AGAIN), Handed::All)
    }
}
