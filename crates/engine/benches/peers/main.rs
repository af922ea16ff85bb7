//! Layers from other nodes, with a real engine over simulated lines: how long a wave takes, and what it fetches from the
//! registry. `make bench-peers-model` prints the table; with a part of its name, only these scenarios.

mod links;
mod objects;
mod wave;

use kubefledged_engine::PeerSettings;
use links::{Lines, Stripes};
use wave::{Outcome, Scenario, Wave};

const MB: f64 = 1e6;
const MBIT: f64 = MB / 8.0;

fn main() {
    // cargo bench passes --bench.
    let only = std::env::args().skip(1).find(|arg| arg != "--bench");
    println!(
        "| scenario | half of the nodes | 99 of 100 | all | from the registry | refused | engine\'s CPU |"
    );
    println!("|---|---|---|---|---|---|---|");
    for scenario in scenarios() {
        if only
            .as_ref()
            .is_none_or(|only| scenario.name.contains(only))
        {
            let (name, image) = (scenario.name, size(&scenario));
            row(name, image, &Wave::run(scenario));
        }
    }
}

fn size(scenario: &Scenario) -> f64 {
    scenario.images.iter().flatten().sum()
}

fn row(name: &str, image: f64, outcome: &Outcome) {
    let at = |percent: usize| {
        outcome.done[(outcome.done.len() * percent / 100).min(outcome.done.len() - 1)]
    };
    println!(
        "| {name} | {:.1} s | {:.1} s | {:.1} s | {:.2} x | {} | {:.2} s |",
        at(50),
        at(99),
        at(100),
        outcome.registry / image,
        outcome.refused,
        outcome.engine.as_secs_f64()
    );
}

fn peers(enabled: bool) -> PeerSettings {
    PeerSettings {
        enabled,
        ..PeerSettings::default()
    }
}

/// One image of so many layers of equal size.
fn layers(bytes: f64, layers: u32) -> Stripes {
    let layer = bytes / f64::from(layers);
    let even = f64::from(layers.div_ceil(2)) * layer;
    [even, bytes - even]
}

/// Thirty images of 5 to 80 MB.
fn mixed() -> Vec<Stripes> {
    let size = |at: u32| 5.0 + f64::from(at * 7 % 30) * 75.0 / 29.0;
    (0..30).map(|at| layers(size(at) * MB, 3)).collect()
}

/// Eight nodes and a slow registry.
fn small() -> Scenario {
    Scenario {
        name: "8 nodes, 150 MB",
        nodes: 8,
        images: vec![layers(150.0 * MB, 3)],
        holders: 0,
        lines: Lines {
            node: 500.0 * MBIT,
            registry: 50.0 * MBIT,
        },
        connections: 512,
        peers: peers(true),
        least: 0.0,
        limit: usize::MAX,
    }
}

/// A large fleet and a registry that serves so many pulls at a time, each in so many seconds.
fn limited(name: &'static str, least: f64, limit: usize) -> Scenario {
    Scenario {
        name,
        nodes: 5_000,
        images: vec![[1.0, 0.0]; 20],
        lines: Lines {
            node: 1e12,
            registry: 1e15,
        },
        peers: peers(false),
        least,
        limit,
        ..small()
    }
}

/// A large fleet and a fast registry.
fn fleet() -> Scenario {
    Scenario {
        name: "5,000 nodes, 10 images of 10 MB",
        nodes: 5_000,
        images: vec![layers(10.0 * MB, 2); 10],
        lines: Lines {
            node: 1_000.0 * MBIT,
            registry: 100_000.0 * MBIT,
        },
        ..small()
    }
}

/// One large image that one node has.
fn large() -> Scenario {
    Scenario {
        name: "2,600 nodes, 3 GB, one has it, --max-connections=4096",
        nodes: 2_600,
        images: vec![layers(3_000.0 * MB, 2)],
        holders: 1,
        lines: Lines {
            node: 300.0 * MB,
            registry: 300.0 * MB,
        },
        connections: 4_096,
        peers: PeerSettings {
            at_once: 4_096,
            ..peers(true)
        },
        ..small()
    }
}

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "8 nodes, 150 MB, without peers",
            peers: peers(false),
            ..small()
        },
        Scenario {
            name: "8 nodes, 30 images of 5 to 80 MB, without peers",
            images: mixed(),
            peers: peers(false),
            ..small()
        },
        Scenario {
            name: "8 nodes, 30 images of 5 to 80 MB",
            images: mixed(),
            ..small()
        },
        small(),
        Scenario {
            name: "5,000 nodes, 10 images of 10 MB, without peers",
            peers: peers(false),
            ..fleet()
        },
        Scenario {
            name: "5,000 nodes, 10 images of 10 MB, --peers-min-image-size=0",
            peers: PeerSettings {
                min_image_size: 0,
                ..peers(true)
            },
            ..fleet()
        },
        fleet(),
        limited(
            "5,000 nodes, 20 images, pulls of 20 ms, 40 at a time",
            0.02,
            40,
        ),
        limited(
            "5,000 nodes, 20 images, pulls of 2 s, 400 at a time",
            2.0,
            400,
        ),
        limited("5,000 nodes, 20 images, pulls of 50 ms", 0.05, usize::MAX),
        Scenario {
            name: "2,600 nodes, 3 GB, one has it, --max-connections=512",
            connections: 512,
            peers: peers(true),
            ..large()
        },
        large(),
    ]
}
