//! Workloads in a day: Deployments that come, go, flap and change their secrets, and caches that follow them. It has a
//! source of chance of its own, so that days without it are as they were.

use std::time::Duration;

use kubefledged_api_types::{GoDuration, ImageSource, LabelSelector, WorkloadSource};

use super::{Action, DAY, SourceKey, Step, Trouble, WORKLOADS};
use crate::{
    registry::NAMES,
    rng::{Rng, mix},
};

/// How long names stay, in seconds.
const RETAIN: [u64; 4] = [0, 20, 120, 600];
/// Pull secrets of workloads.
const SECRETS: [Option<&str>; 4] = [Some("right"), Some("wrong"), Some("missing"), None];

/// Adds workloads to some days.
pub fn add(seed: u64, steps: &mut Vec<Step>) {
    let mut rng = Rng::new(mix(seed ^ 0x3017));
    if !rng.percent(30) {
        return;
    }
    for step in steps.iter_mut() {
        let Action::Apply(cache, spec) = &mut step.action else {
            continue;
        };
        for list in &mut spec.cache_spec {
            if !rng.percent(60) {
                continue;
            }
            // Caches of namespace `other` may not select those of others.
            let all = *cache < 2 && rng.percent(30);
            list.images_from = vec![ImageSource {
                workloads: Some(WorkloadSource {
                    kinds: if rng.percent(50) {
                        vec!["Deployment".to_owned()]
                    } else {
                        Vec::new()
                    },
                    namespace_selector: all.then(LabelSelector::default),
                    ..WorkloadSource::default()
                }),
            }];
            if rng.percent(50) {
                list.images.clear();
            }
            list.keep_previous = Some(u32::try_from(rng.below(3)).unwrap_or(0));
            list.retain_for = Some(GoDuration(Duration::from_secs(*rng.pick(&RETAIN))));
        }
    }
    for _ in 0..rng.between(4, 24) {
        let at = rng.below(DAY);
        let action = deploy(&mut rng);
        steps.push(Step { at, action });
    }
    for _ in 0..rng.below(4) {
        let at = rng.below(DAY);
        let action = Action::Undeploy(rng.index(WORKLOADS.len()));
        steps.push(Step { at, action });
    }
    if rng.percent(30) {
        flap(&mut rng, steps);
    }
    for who in 0..2 {
        if rng.percent(25) {
            let at = rng.below(DAY);
            let trouble = Trouble::WatchBroken(who, SourceKey::Workloads);
            let action = Action::Trouble(trouble, rng.between(1_000, 200_000));
            steps.push(Step { at, action });
        }
    }
}

fn deploy(rng: &mut Rng) -> Action {
    let images = (0..rng.between(1, 2)).map(|_| rng.index(NAMES.len() - 1));
    let images = images.collect();
    Action::Deploy(rng.index(WORKLOADS.len()), images, *rng.pick(&SECRETS))
}

/// A template that changes every few seconds.
fn flap(rng: &mut Rng, steps: &mut Vec<Step>) {
    let workload = rng.index(WORKLOADS.len());
    let pause = rng.between(500, 20_000);
    let begun = rng.below(DAY - 400_000);
    for round in 0..rng.between(10, 20) {
        let images = vec![rng.index(NAMES.len() - 1)];
        let action = Action::Deploy(workload, images, Some("right"));
        steps.push(Step {
            at: begun + round * pause,
            action,
        });
    }
}
