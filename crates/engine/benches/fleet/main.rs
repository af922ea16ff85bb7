//! The engine alone over a large fleet. `make bench-engine` prints the table; with numbers of nodes as
//! arguments, only of those fleets. With the name of a step, that one step runs in [`measured`], for
//! `hack/bench-guard` to count its instructions.

mod world;

use std::{alloc::System, hint::black_box, time::Duration};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use world::{Size, World};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CACHES: usize = 20;
const IMAGES: usize = 100;
const FLEETS: [usize; 6] = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000];
/// Repeats of what takes microseconds.
const REPEATS: usize = 1_000;

/// For the guard: small, because its instructions are counted one by one.
const GUARDED: Size = Size {
    nodes: 200,
    caches: 10,
    images: 20,
};

fn main() {
    // cargo bench passes --bench.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let fleets: Result<Vec<usize>, _> = args.iter().map(|arg| arg.parse()).collect();
    match (fleets, args.first()) {
        (Ok(fleets), Some(_)) => table(&fleets),
        (Err(_), Some(step)) => guard(step),
        (_, None) => table(&FLEETS),
    }
}

/// What is counted happens in here.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
    black_box(());
}

fn guard(step: &str) {
    match step {
        "cold-wave" => {
            let mut world = World::new(GUARDED);
            measured(|| {
                world.lead(1);
                world.settle();
            });
        }
        "new-leader" => {
            let mut world = World::warm(GUARDED);
            measured(|| {
                world.lead(2);
                world.poll();
            });
            assert_eq!(world.waiting(), GUARDED.nodes, "one check for every node");
        }
        "check-round" => {
            let mut world = World::warm(GUARDED);
            world.lead(2);
            measured(|| world.settle());
        }
        "image-added" => {
            let mut world = World::warm(GUARDED);
            measured(|| {
                world.apply(0, GUARDED.images + 1);
                world.settle();
            });
        }
        "node-event" => {
            let mut world = World::warm(GUARDED);
            measured(|| (0..GUARDED.nodes).for_each(|node| world.node_event(node, 1)));
        }
        "idle-tick" => {
            let mut world = World::warm(GUARDED);
            measured(|| (0..REPEATS).for_each(|_| world.poll()));
        }
        other => unreachable!("no step {other}"),
    }
}

/// What one size of fleet costs.
struct Row {
    nodes: usize,
    leader: Duration,
    node_event: Duration,
    tick: Duration,
    wave_pair: Duration,
    check_pair: Duration,
    edit: Duration,
    bytes: usize,
}

fn table(fleets: &[usize]) {
    println!(
        "Engine alone, {CACHES} ImageCaches of {IMAGES} images over all nodes; CPU time of one thread.\n"
    );
    println!(
        "| nodes | full plan (new leader) | the same, a node | node event | tick, nothing due | \
         one image more in one cache | cold wave, a pair | check round, a pair | memory a node |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    let mut rows = Vec::new();
    for nodes in fleets {
        let row = row(*nodes);
        println!(
            "| {} | {:.1} ms | {:.1} µs | {:.2} µs | {:.2} µs | {:.1} ms | {:.0} ns | {:.0} ns | {:.1} KiB |",
            row.nodes,
            micros(row.leader) / 1e3,
            micros(row.leader) / float(row.nodes),
            micros(row.node_event),
            micros(row.tick),
            micros(row.edit) / 1e3,
            micros(row.wave_pair) * 1e3,
            micros(row.check_pair) * 1e3,
            float(row.bytes) / 1024.0,
        );
        rows.push(row);
    }
    if rows.len() < 2 {
        return;
    }
    let fit = |value: fn(&Row) -> f64| {
        let points: Vec<_> = rows
            .iter()
            .map(|row| (float(row.nodes), value(row)))
            .collect();
        exponent(&points)
    };
    println!(
        "| exponent | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
        fit(|row| micros(row.leader)),
        fit(|row| micros(row.leader) / float(row.nodes)),
        fit(|row| micros(row.node_event)),
        fit(|row| micros(row.tick)),
        fit(|row| micros(row.edit)),
        fit(|row| micros(row.wave_pair)),
        fit(|row| micros(row.check_pair)),
        fit(|row| float(row.bytes)),
    );
}

fn row(nodes: usize) -> Row {
    let size = Size {
        nodes,
        caches: CACHES,
        images: IMAGES,
    };
    let pairs = u32::try_from(size.pairs()).expect("fewer pairs");
    let repeats = u32::try_from(REPEATS).expect("few repeats");
    let before = live_bytes();
    let mut world = World::new(size);
    let wave_pair = spent(&mut world, |world| {
        world.lead(1);
        world.settle();
    }) / pairs;
    let bytes = (live_bytes() - before) / nodes;
    let tick = spent(&mut world, |world| {
        (0..REPEATS).for_each(|_| world.poll());
    }) / repeats;
    let node_event = spent(&mut world, |world| {
        (0..REPEATS).for_each(|round| world.node_event(round % nodes, round + 1));
    }) / repeats;
    let edit = spent(&mut world, |world| {
        world.apply(0, IMAGES + 1);
        world.poll();
    });
    world.settle();
    let leader = spent(&mut world, |world| {
        world.lead(2);
        world.poll();
    });
    let check_pair = spent(&mut world, World::settle) / pairs;
    Row {
        nodes,
        leader,
        node_event,
        tick,
        wave_pair,
        check_pair,
        edit,
        bytes,
    }
}

fn spent(world: &mut World, work: impl FnOnce(&mut World)) -> Duration {
    world.spent = Duration::ZERO;
    work(world);
    world.spent
}

fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(value: usize) -> f64 {
    value as f64
}

/// The exponent of `y ~ x^k` that fits best; 1 is linear.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs = || points.iter().map(|(x, y)| (x.ln(), y.ln()));
    let count = float(points.len());
    let (mean_x, mean_y) = (
        logs().map(|(x, _)| x).sum::<f64>() / count,
        logs().map(|(_, y)| y).sum::<f64>() / count,
    );
    let covariance: f64 = logs().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = logs().map(|(x, _)| (x - mean_x).powi(2)).sum();
    covariance / variance
}
