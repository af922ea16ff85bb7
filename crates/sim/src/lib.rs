//! Thousands of bad days: real engines and real queues in a [`World`] of simulated API server,
//! network, runtimes, registries, nodes and users. Nothing in it is left to chance but what the seed
//! of a [`Script`] decides, so that every failure replays. `docs/simulation.md` shows around.

mod actions;
mod api;
mod controller;
mod gate;
mod network;
mod node;
mod puller;
mod registry;
mod rng;
mod rules;
mod runtime;
mod script;
mod settled;
pub mod shrink;
mod world;

pub use script::{Action, Parts, Script, Step, Trouble};
pub use world::{Failure, Report, World};

/// One day, twice. What differs between the two is a failure as well.
pub fn run(script: &Script) -> Report {
    let first = World::new(script.clone(), false).run();
    let second = World::new(script.clone(), false).run();
    if first == second {
        return first;
    }
    let detail = format!("{first:?} and then {second:?}");
    Report {
        failure: Some(Failure {
            at: 0,
            rule: "the same seed gives the same day",
            detail,
        }),
        ..first
    }
}
