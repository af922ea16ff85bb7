//! `kubefledged-sim --seeds 2000`, `kubefledged-sim --seed 17 --trace`.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use clap::{Parser, ValueEnum};
use kubefledged_sim::{Parts, Script, World, run, shrink::shrink};

/// Simulates bad days, and ends with an error at the first one on which a rule is broken.
#[derive(Debug, Parser)]
struct Args {
    /// How many days.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The seed of the first one.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only this day: what happens is told, and a failure is cut down to a short script.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: tell everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Days at the same time; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Leave these parts of the days out, as before they were written.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Part>,
    /// Go on after a failure and list all of them.
    #[arg(long)]
    keep_going: bool,
}

/// A part of a day that has a source of chance of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Layers from other nodes.
    Peers,
    /// Caches that follow workloads.
    Workloads,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => replay(script(&args, seed), args.trace),
        None => many(&args),
    }
}

fn script(args: &Args, seed: u64) -> Script {
    let parts = Parts {
        peers: !args.without.contains(&Part::Peers),
        workloads: !args.without.contains(&Part::Workloads),
    };
    Script::with(seed, parts)
}

fn replay(script: Script, trace: bool) -> ExitCode {
    println!("{script}");
    if trace {
        World::new(script.clone(), true).run();
    }
    let report = run(&script);
    let Some(failure) = &report.failure else {
        println!("{} events, trace {:016x}", report.events, report.hash);
        return ExitCode::SUCCESS;
    };
    println!("at {}: {}: {}", failure.at, failure.rule, failure.detail);
    let short = shrink(script);
    println!("\nthe shortest script found:\n{short}");
    if let Some(failure) = run(&short).failure {
        println!("at {}: {}: {}", failure.at, failure.rule, failure.detail);
    }
    ExitCode::FAILURE
}

fn many(args: &Args) -> ExitCode {
    let started = Instant::now();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = if args.jobs == 0 {
        processors
    } else {
        args.jobs
    };
    let next = AtomicU64::new(args.first);
    let end = args.first + args.seeds;
    let (failed, events, traces) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let stop = !args.keep_going && failed.load(Ordering::Relaxed) > 0;
                    if seed >= end || stop {
                        return;
                    }
                    let report = run(&script(args, seed));
                    events.fetch_add(report.events, Ordering::Relaxed);
                    // Their sum: the same in whichever order days end.
                    traces.fetch_add(report.hash, Ordering::Relaxed);
                    if let Some(failure) = report.failure {
                        failed.fetch_add(1, Ordering::Relaxed);
                        let detail: String = failure.detail.chars().take(400).collect();
                        println!("seed {seed} at {}: {}: {detail}", failure.at, failure.rule);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!(
        "{} days, each twice, {} events, traces {:016x}, {failed} failed, {:.1} s",
        args.seeds,
        events.into_inner(),
        traces.into_inner(),
        started.elapsed().as_secs_f64()
    );
    if failed > 0 {
        println!("replay one with its trace: make sim SEED=...");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
