//! Lines of nodes and of the registry, and the pulls that share them. Time goes in steps; in a step every stream of a
//! line gets an equal share, and what one stream cannot use is lost. So the times are rather too long than too short.
//!
//! Left out: what runtimes do with the bytes (unpacking, disks), TLS, other traffic, and switches between the nodes.

/// Bytes that a node must have before it passes them on: one message.
const CHUNK: f64 = (1 << 20) as f64;
/// A node that finds another without the pull asks it again for so long, in seconds.
const ASKS_AGAIN: f64 = 5.0;

/// The runtime looks whether a layer has come: after a random part of so many seconds, then of twice as many, up to the
/// last (`content.OpenWriter` of containerd 2.4).
const LOOKS: (f64, f64) = (0.016, 2.048);

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// What a node receives, and what it sends.
    pub node: f64,
    /// What the registry sends to all.
    pub registry: f64,
}

/// The bytes of an image that a node has, by stripe: even and odd layers.
pub type Stripes = [f64; 2];

/// One pull that runs.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Which node receives.
    pub node: usize,
    /// Which image.
    pub image: usize,
    /// From whom it takes each stripe; `None`: from the registry.
    pub parents: Option<[usize; 2]>,
    /// What it has.
    pub got: Stripes,
    /// What there is.
    pub all: Stripes,
    /// When it began, in seconds.
    pub begun: f64,
    /// Bytes that came from the registry.
    pub registry: f64,
}

impl Pull {
    /// Has everything come?
    pub fn is_done(&self) -> bool {
        self.got.iter().zip(&self.all).all(|(got, all)| got >= all)
    }
}

/// From where a stream comes.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Registry,
    Node(usize),
}

/// What each node has of each image before a step: everything, or the bytes of a running pull.
pub trait Holdings {
    /// Bytes of a stripe that a node can send; `None`: it neither has nor receives the image.
    fn has(&self, node: usize, image: usize, stripe: usize) -> Option<f64>;
}

/// Moves all pulls on by a step. Returns the bytes that the registry sent.
pub fn step(
    pulls: &mut [Pull],
    holdings: &impl Holdings,
    nodes: usize,
    lines: Lines,
    now: f64,
    step: f64,
) -> f64 {
    let mut streams = Vec::new();
    let (mut sends, mut receives, mut registry) = (vec![0_u32; nodes], vec![0_u32; nodes], 0_u32);
    for (at, pull) in pulls.iter().enumerate() {
        for stripe in 0..2 {
            let open = pull.all[stripe] - pull.got[stripe];
            if open <= 0.0 {
                continue;
            }
            let (source, there) = source(pull, stripe, holdings, now);
            if there <= pull.got[stripe] {
                continue;
            }
            match source {
                Source::Registry => registry += 1,
                Source::Node(node) => sends[node] += 1,
            }
            receives[pull.node] += 1;
            streams.push((at, stripe, source, there));
        }
    }
    let mut sent = 0.0;
    for (at, stripe, source, there) in streams {
        let pull = &mut pulls[at];
        let line = match source {
            Source::Registry => lines.registry / f64::from(registry),
            Source::Node(node) => lines.node / f64::from(sends[node]),
        };
        let rate = line.min(lines.node / f64::from(receives[pull.node]));
        let moved = (rate * step).min(there - pull.got[stripe]);
        pull.got[stripe] += moved;
        if source == Source::Registry {
            pull.registry += moved;
            sent += moved;
        }
    }
    sent
}

/// From where a pull takes a stripe now, and how much of it is there.
fn source(pull: &Pull, stripe: usize, holdings: &impl Holdings, now: f64) -> (Source, f64) {
    let all = pull.all[stripe];
    let Some(parents) = pull.parents else {
        return (Source::Registry, all);
    };
    for node in [parents[stripe], parents[1 - stripe]] {
        if let Some(has) = holdings.has(node, pull.image, stripe) {
            let passes_on = if has >= all { all } else { has - CHUNK };
            return (Source::Node(node), passes_on);
        }
        if now < pull.begun + ASKS_AGAIN {
            return (Source::Node(node), 0.0);
        }
    }
    (Source::Registry, all)
}

/// When the runtime, which looks since `begun`, sees a layer that has come at `now`; with the mean of each pause.
pub fn noticed(begun: f64, now: f64) -> f64 {
    let (mut pause, last) = LOOKS;
    let mut at = begun;
    while at < now {
        at += pause / 2.0;
        pause = (2.0 * pause).min(last);
    }
    at
}
