//! What must hold whatever fails in the middle of the work: once it is whole again, every node holds
//! exactly what is wanted, every status is true, and nothing is left over. docs/faults.md tells what
//! is done. One test at a time: they share the nodes.
//!
//! `make test-faults` runs the long ones on a cluster of their own: `FAULTS_SECONDS` and `FAULTS_SEED`
//! say for how long and which.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says where"
)]

mod amiss;
mod rest;
mod strike;
mod trial;
mod view;

use std::time::{Duration, Instant};

use kubefledged_e2e::demo;
use serde_json::json;

use crate::{
    rest::summary,
    strike::{ALL, Fault},
    trial::Trial,
};

const NAMESPACE: &str = "faults";
const IMAGES: [&str; 5] = ["web", "api", "worker", "cache", "extra"];
/// The one that only nodes with tier=backend get.
const BACKEND: &str = "backend";
/// The one whose images would stay, so that it is never deleted.
const RETAINED: &str = "retained";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    number("FAULTS_SEED").unwrap_or_else(|| now.unwrap().as_secs())
}

#[test]
fn a_controller_a_puller_and_a_registry_that_fail_in_the_middle_lose_nothing() {
    let mut trial = Trial::new(seed());
    trial.round(&[
        Fault::KillController,
        Fault::RegistryFails,
        Fault::KillPuller,
    ]);
    trial.assert_no_panic();
    trial.view.cluster.clean(NAMESPACE).unwrap();
}

#[test]
#[ignore = "long, and it takes nodes away: make test-faults"]
fn whatever_fails_in_the_middle_nothing_is_lost() {
    let mut trial = Trial::new(seed());
    let until = Instant::now() + Duration::from_secs(number("FAULTS_SECONDS").unwrap_or(600));
    let mut rounds = 0;
    // Every fault once, in an order of its own; then two at a time.
    let mut left = ALL.to_vec();
    while Instant::now() < until || !left.is_empty() {
        let fault = if left.is_empty() {
            *trial.dice.pick(&ALL)
        } else {
            left.swap_remove(trial.dice.roll(left.len()))
        };
        let second = *trial.dice.pick(&ALL);
        let faults = if rounds < ALL.len() || second == fault {
            vec![fault]
        } else {
            vec![fault, second]
        };
        trial.round(&faults);
        rounds += 1;
    }
    trial.assert_no_panic();
    trial.view.cluster.clean(NAMESPACE).unwrap();
    println!("{rounds} rounds");
}

#[test]
#[ignore = "long: make test-faults"]
fn a_thousand_image_caches_come_and_go() {
    const COUNT: usize = 1000;
    let trial = Trial::new(0);
    let before = trial.assert_nothing_leaks();
    let object = |i: usize| {
        let image = demo(IMAGES[i % IMAGES.len()]);
        json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": format!("cache-{i}"), "namespace": NAMESPACE},
            "spec": {"cacheSpec": [{"images": [image]}]},
        })
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": (0..COUNT).map(object).collect::<Vec<_>>()});
    let start = Instant::now();
    trial
        .view
        .cluster
        .run(&["kubectl", "create", "-f", "-"], &list.to_string())
        .unwrap();
    let created = start.elapsed();
    let statuses = format!("get ic -n {NAMESPACE} -o jsonpath={{.items[*].status.status}}");
    let count = || -> anyhow::Result<usize> {
        Ok(trial
            .view
            .cluster
            .kubectl(&statuses)?
            .split_whitespace()
            .filter(|status| *status == "Succeeded")
            .count())
    };
    trial
        .view
        .cluster
        .until(Duration::from_secs(300), "all have succeeded", || {
            Ok((count()? == COUNT).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", count()));
    let succeeded = start.elapsed();
    for node in trial.view.cluster.nodes().unwrap() {
        assert_eq!(
            trial.view.cluster.demo_images(&node).unwrap().len(),
            IMAGES.len(),
            "n{node}"
        );
    }
    let full = summary(&trial.all_hold().unwrap());
    let start = Instant::now();
    trial
        .view
        .cluster
        .kubectl(&format!("delete ic --all -n {NAMESPACE}"))
        .unwrap();
    let deleted = start.elapsed();
    let after = trial.assert_nothing_leaks();
    println!(
        "{COUNT} objects: created in {created:.1?}, all Succeeded after {succeeded:.1?}, deleted in {deleted:.1?}"
    );
    println!("before: {before}\nwith {COUNT}: {full}\nafter: {after}");
    trial.assert_no_panic();
    trial.view.cluster.clean(NAMESPACE).unwrap();
}
