//! Layers from other nodes: who fetches an image from the registry, who waits, and who takes it from whom.

mod waits;

use super::*;

const APP: &str = "r.test/app:1";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What a pull was told of where the layers come from.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    node: String,
    image: String,
    peers: Vec<String>,
    holds: bool,
}

/// Nodes that can all share, with one slow image, and a leader.
fn wave(nodes: &[&str], names: &[&str]) -> Harness {
    wave_with(Settings::default(), nodes, names)
}

fn wave_with(settings: Settings, nodes: &[&str], names: &[&str]) -> Harness {
    let mut harness = sharing(settings, nodes);
    harness.slow.extend(names.iter().map(ToString::to_string));
    harness.create(images(names));
    harness.lead();
    harness
}

fn sharing(settings: Settings, nodes: &[&str]) -> Harness {
    let mut harness = Harness::with(settings, nodes);
    harness.shares = Some(nodes.iter().map(ToString::to_string).collect());
    harness
}

const EIGHT: [&str; 8] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"];

impl Harness {
    /// All pulls so far, in order.
    fn told(&self) -> Vec<Told> {
        let mut told = Vec::new();
        for batch in &self.batches {
            let Work::Pull { images, .. } = &batch.work else {
                continue;
            };
            told.extend(images.iter().map(|item| {
                Told {
                    node: batch.node.to_string(),
                    image: item.reference.to_string(),
                    peers: item
                        .peers
                        .iter()
                        .flat_map(|peers| &peers.nodes)
                        .map(|peer| peer.name.to_string())
                        .collect(),
                    holds: item.hold_layers.is_some(),
                }
            }));
        }
        told
    }

    /// Nodes that were told to pull an image from the registry.
    fn registry_pulls(&self, image: &str) -> Vec<String> {
        let told = self.told().into_iter();
        let told = told.filter(|told| told.image == image && told.peers.is_empty());
        told.map(|told| told.node).collect()
    }

    fn peer_pulls(&self) -> Vec<Told> {
        let told = self.told().into_iter();
        told.filter(|told| !told.peers.is_empty()).collect()
    }

    /// The open pull of an image on a node.
    fn open_pull(&self, node: &str, image: &str) -> Option<(BatchId, usize, PullItem)> {
        self.batches.iter().rev().find_map(|batch| {
            let Work::Pull { images, .. } = &batch.work else {
                return None;
            };
            let open = self.open.get(&batch.id)?;
            let (index, _) = open.iter().find(|(_, name)| **name == image)?;
            (*batch.node.0 == *node).then(|| (batch.id, *index, images[*index].clone()))
        })
    }

    /// One pull ends, well or with a failure.
    fn end(&mut self, node: &str, image: &str, failure: Option<&'static str>) {
        let (id, index, item) = self.open_pull(node, image).expect("it is pulled");
        let outcome = if let Some(reason) = failure {
            ImageOutcome::new(index, failed(reason))
        } else {
            let slow = self.slow.remove(image);
            let outcome = self.pull(node, index, &item).unwrap();
            if slow {
                self.slow.insert(image.to_owned());
            }
            outcome
        };
        self.answer(id, vec![outcome]);
        self.run();
    }

    /// Ends all pulls that come from other nodes.
    fn end_all_from_peers(&mut self, image: &str) {
        for told in self.peer_pulls() {
            if told.image == image && self.open_pull(&told.node, image).is_some() {
                self.end(&told.node, image, None);
            }
        }
    }

    /// A puller tells how far a pull is.
    fn moves(&mut self, node: &str, image: &str, done_bytes: u64, total_bytes: u64) {
        let (id, index, _) = self.open_pull(node, image).expect("it is pulled");
        let transfer = Transfer {
            index,
            total_bytes,
            done_bytes,
            peer_bytes: 0,
            digest: None,
        };
        self.handle(Event::Transfers(id, vec![transfer]));
        self.run();
    }

    /// The size of the image is known.
    fn moves_known(&mut self, bytes: u64) {
        let mut names = self.engine().model.names.images.iter();
        let image = names.next().map(|(id, _)| id).unwrap();
        drop(names);
        self.engine().model.peers.measure(image, bytes);
    }

    /// The most that any node hands on at a time, counted from the pulls that are open.
    fn most_uploads(&self) -> usize {
        let mut uploads: BTreeMap<&str, usize> = BTreeMap::new();
        for batch in &self.batches {
            let Work::Pull { images, .. } = &batch.work else {
                continue;
            };
            let open = self.open.get(&batch.id).into_iter().flatten();
            for (index, _) in open {
                for peer in images[*index].peers.iter().flat_map(|peers| &peers.nodes) {
                    *uploads.entry(&peer.name.0).or_default() += 1;
                }
            }
        }
        uploads.into_values().max().unwrap_or(0)
    }
}

#[test]
fn one_node_fetches_an_image_and_the_others_take_it_from_each_other() {
    let mut harness = wave(&EIGHT, &[APP]);
    let told = harness.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].holds, "it keeps the layers for the others");
    let seed = told[0].node.clone();
    let waits = |harness: &Harness| {
        let others = EIGHT.iter().filter(|node| **node != seed);
        let whys = others.map(|node| harness.why("a", node).remove(0));
        whys.collect::<Vec<_>>()
    };
    for why in waits(&harness) {
        assert!(matches!(why, Err(PullBlock::AwaitsSource(_))), "{why:?}");
    }
    harness.end(&seed, APP, None);
    let told = harness.peer_pulls();
    assert_eq!(
        told.len(),
        7,
        "all at once: they pass it on while they receive it"
    );
    assert!(told.iter().all(|told| told.holds));
    assert!(harness.most_uploads() <= 2);
    assert_eq!(waits(&harness), vec![Err(PullBlock::FromPeers); 7]);
    harness.end_all_from_peers(APP);
    harness.wait(1);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(harness.registry_pulls(APP), [seed]);
}

#[test]
fn the_ticket_is_for_the_digest_that_the_source_reported() {
    let mut harness = wave(&EIGHT, &[APP]);
    let seed = harness.told()[0].node.clone();
    harness.end(&seed, APP, None);
    for node in EIGHT.iter().filter(|node| **node != seed) {
        let (_, _, item) = harness.open_pull(node, APP).unwrap();
        assert_eq!(&*item.peers.unwrap().digest, format!("sha256:{APP}-1"));
    }
}

#[test]
fn two_nodes_pull_at_once_and_each_from_the_registry() {
    let harness = wave(&EIGHT[..2], &[APP]);
    assert_eq!(harness.registry_pulls(APP), ["n1", "n2"]);
    assert!(harness.told().iter().all(|told| !told.holds));
}

#[test]
fn nobody_waits_where_runtimes_cannot_share_or_peers_are_off() {
    let mut harness = Harness::new(&EIGHT);
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    assert_eq!(harness.registry_pulls(APP).len(), 8, "pullers do not say");

    let mut harness = Harness::new(&EIGHT);
    harness.shares = Some(BTreeSet::new());
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    assert_eq!(harness.registry_pulls(APP).len(), 8, "runtimes cannot");

    let peers = PeerSettings {
        enabled: false,
        ..PeerSettings::default()
    };
    let settings = Settings {
        peers,
        ..Settings::default()
    };
    let harness = wave_with(settings, &EIGHT, &[APP]);
    assert_eq!(harness.registry_pulls(APP).len(), 8, "peers are off");
    assert!(harness.told().iter().all(|told| !told.holds));
}

#[test]
fn in_a_mixed_fleet_nodes_without_support_pull_as_ever() {
    let mut harness = Harness::new(&EIGHT);
    harness.shares = Some(EIGHT[..5].iter().map(ToString::to_string).collect());
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    let mut nodes = harness.registry_pulls(APP);
    nodes.sort();
    assert_eq!(nodes, ["n1", "n6", "n7", "n8"]);
    harness.end("n6", APP, None);
    assert!(harness.peer_pulls().is_empty(), "CRI-O hands on nothing");
    harness.end("n1", APP, None);
    assert_eq!(harness.peer_pulls().len(), 4);
}

#[test]
fn each_zone_has_a_seed_and_no_layer_crosses_zones() {
    let mut harness = Harness::new(&[]);
    for (at, node) in EIGHT.iter().enumerate() {
        harness.join(node, &[(ZONE, ["a", "b"][at % 2])]);
    }
    harness.shares = Some(EIGHT.iter().map(ToString::to_string).collect());
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    assert_eq!(harness.registry_pulls(APP), ["n1", "n2"]);
    harness.end("n1", APP, None);
    harness.end("n2", APP, None);
    let told = harness.peer_pulls();
    assert_eq!(told.len(), 6);
    let zone = |node: &str| node.trim_start_matches('n').parse::<usize>().unwrap() % 2;
    for told in told {
        for peer in &told.peers {
            assert_eq!(zone(&told.node), zone(peer), "{told:?}");
        }
    }
}

#[test]
fn a_zone_that_has_nothing_takes_an_image_once_from_another_zone() {
    let mut harness = Harness::new(&[]);
    harness.join("n1", &[(ZONE, "a")]);
    for node in &EIGHT[1..] {
        harness.join(node, &[(ZONE, "b")]);
    }
    harness.shares = Some(EIGHT.iter().map(ToString::to_string).collect());
    harness
        .held
        .entry("n1".into())
        .or_default()
        .insert(APP.into(), 1);
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    let told = harness.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].peers, ["n1"]);
    let first = told[0].node.clone();
    harness.end(&first, APP, None);
    let told = harness.peer_pulls();
    assert_eq!(told.len(), 7);
    assert!(
        told[1..]
            .iter()
            .all(|told| !told.peers.contains(&"n1".into()))
    );
    assert!(harness.registry_pulls(APP).is_empty());
}

#[test]
fn nodes_of_another_architecture_are_no_peers() {
    let mut harness = Harness::new(&[]);
    for (at, node) in EIGHT.iter().enumerate() {
        harness.join(node, &[("kubernetes.io/arch", ["amd64", "arm64"][at % 2])]);
    }
    harness.shares = Some(EIGHT.iter().map(ToString::to_string).collect());
    harness.slow.insert(APP.into());
    harness.create(images(&[APP]));
    harness.lead();
    assert_eq!(harness.registry_pulls(APP).len(), 2);
    harness.end("n1", APP, None);
    let told = harness.peer_pulls();
    assert_eq!(told.len(), 3);
    assert!(
        told.iter()
            .all(|told| ["n3", "n5", "n7"].contains(&&*told.node))
    );
}

#[test]
fn different_images_have_different_seeds() {
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1", "r.test/d:1"];
    let harness = wave(&EIGHT, &names);
    let told = harness.told();
    let seeds: BTreeSet<&str> = told.iter().map(|told| &*told.node).collect();
    assert_eq!((told.len(), seeds.len()), (4, 4), "{told:?}");
}
