//! The day of a seed.

use kubefledged_api_types::{DeletionPolicy, ImageCacheSpec};

use super::{
    Action, CACHES, DAY, Lie, Parts, PeerDay, Script, SourceKey, Step, Trouble, ZONES, gate, peers,
    workloads,
};
use crate::{
    registry::{HOSTS, NAMES},
    rng::Rng,
    runtime::Flavor,
};

/// Images for which a queue has room, and on some days.
const ROOM: usize = 16_384;
/// One request fits, and not all of them at a time.
const SMALL_ROOM: usize = 12;

/// Classes of what can happen. A day has some of them only: a mixture of everything hides what a
/// few of them together do.
#[derive(Clone, Copy, Debug)]
struct Classes(u64);

impl Classes {
    fn has(self, class: u32) -> bool {
        self.0 >> class & 1 == 1
    }
}

impl Script {
    /// The day of a seed.
    pub fn generate(seed: u64) -> Self {
        Self::with(seed, Parts::default())
    }

    /// The day of a seed with some parts of it only.
    pub fn with(seed: u64, parts: Parts) -> Self {
        let mut rng = Rng::new(seed);
        let mut nodes: Vec<Flavor> = (0..rng.between(3, 5)).map(|_| flavor(&mut rng)).collect();
        let registry_pulls = *rng.pick(&[1, 3, 512, 512]);
        // Some days are fine.
        let classes = Classes(match rng.below(10) {
            0 => 0,
            1 => u64::MAX,
            _ => rng.next() & rng.next(),
        });
        let mut day = Day {
            rng,
            classes,
            nodes: nodes.len(),
            steps: Vec::new(),
        };
        day.users();
        day.machines();
        day.troubles();
        day.lasting_troubles();
        day.node_itself();
        if classes.has(50) {
            day.second_thoughts();
        }
        let mut steps = day.steps;
        let gated = gate::add(seed, nodes.len(), &mut steps);
        let peers = if parts.peers {
            peers::add(seed, &mut nodes, &mut steps)
        } else {
            PeerDay::default()
        };
        if parts.workloads {
            // Steps of one time stay in the order in which they came.
            steps.sort_by_key(|step| step.at);
            workloads::add(seed, &mut steps);
        }
        steps.sort_by_key(|step| step.at);
        Self {
            seed,
            gated,
            peers,
            nodes,
            room: if classes.has(45) { SMALL_ROOM } else { ROOM },
            registry_pulls,
            steps,
        }
    }
}

fn flavor(rng: &mut Rng) -> Flavor {
    *rng.pick(&[
        Flavor::Containerd16,
        Flavor::Containerd2,
        Flavor::Crio,
        Flavor::Docker,
    ])
}

/// A day that is being made.
pub(super) struct Day {
    /// Decides.
    pub(super) rng: Rng,
    classes: Classes,
    nodes: usize,
    steps: Vec<Step>,
}

impl Day {
    fn push(&mut self, action: Action) {
        let at = self.rng.below(DAY);
        self.steps.push(Step { at, action });
    }

    fn node(&mut self) -> usize {
        // One more than there are: a node that joins later.
        self.rng.index(self.nodes + 1)
    }

    fn users(&mut self) {
        for cache in 0..CACHES.len() {
            let action = Action::Apply(cache, Box::new(self.spec()));
            let early = self.rng.percent(70);
            let at = self.rng.below(if early { 1_000 } else { DAY });
            self.steps.push(Step { at, action });
        }
        for _ in 0..self.rng.between(1, 10) {
            let cache = self.rng.index(CACHES.len());
            let action = match self.rng.below(14) {
                0..=4 => Action::Apply(cache, Box::new(self.spec())),
                5 => Action::Delete(cache),
                6 | 7 => Action::Refresh(cache, self.token()),
                8 | 9 => Action::Purge(cache, self.token()),
                10 => Action::Touch(cache),
                11 => Action::Suspend(cache, true),
                12 => Action::Suspend(cache, false),
                _ => {
                    // The deletion of an object waits for its images: time to think again.
                    let at = self.rng.below(DAY);
                    let action = Action::Delete(cache);
                    self.steps.push(Step { at, action });
                    let at = at + self.rng.below(30_000);
                    let action = Action::Retain(cache);
                    self.steps.push(Step { at, action });
                    continue;
                }
            };
            self.push(action);
        }
    }

    fn token(&mut self) -> String {
        match self.rng.below(3) {
            0 => String::new(),
            token => format!("t{token}"),
        }
    }

    fn machines(&mut self) {
        for class in (0..16).chain(40..41) {
            if !self.classes.has(class) {
                continue;
            }
            for _ in 0..self.rng.between(1, 2) {
                self.machine(class);
            }
        }
    }

    fn machine(&mut self, class: u32) {
        let node = self.node();
        let image = self.rng.index(NAMES.len());
        let who = self.rng.index(2);
        let flag = self.rng.percent(50);
        let while_ms = self.rng.between(500, 90_000);
        let action = match class {
            0 => Action::Join(self.nodes, flavor(&mut self.rng)),
            1 => Action::Leave(node),
            2 => Action::Relabel(node, self.rng.index(ZONES.len())),
            3 => Action::Cordon(node, flag),
            4 => Action::Ready(node, flag),
            5 => Action::Exclude(node, flag),
            6 => Action::Reboot(node, flag),
            7 => Action::PullerRestarts(node),
            8 => Action::PullerReplaced(node),
            9 => Action::RuntimeRestarts(node, while_ms / 3),
            10 => Action::Collect(node, self.rng.index(4)),
            11 => Action::Run(node, image),
            12 if flag => Action::ForeignPull(node, image),
            12 => Action::ForeignPin(node, image),
            13 => Action::MoveTag(image),
            14 if flag => Action::Crash(who, while_ms),
            14 => Action::Pause(who, while_ms),
            40 => Action::DeleteLease,
            _ => Action::Skew(who, i64::try_from(self.rng.below(600)).unwrap_or(0) - 300),
        };
        if matches!(action, Action::Run(..)) && flag {
            self.push(Action::Stop(node));
        }
        self.push(action);
    }

    fn troubles(&mut self) {
        for class in 16..40 {
            if !self.classes.has(class) {
                continue;
            }
            for _ in 0..self.rng.between(1, 3) {
                let trouble = self.trouble(class);
                let lasts = self.rng.between(1_000, 240_000);
                self.push(Action::Trouble(trouble, lasts));
            }
        }
    }

    /// Troubles that show only after minutes. A node that lies is one node: two are believed.
    fn lasting_troubles(&mut self) {
        for class in 41..45 {
            if !self.classes.has(class) {
                continue;
            }
            let lie = *self.rng.pick(&[Lie::NextTerm, Lie::LastTerm, Lie::TooMany]);
            let trouble = match class {
                41 => Trouble::RegistrySilent(self.rng.index(HOSTS.len())),
                42 => Trouble::RegistryDrips(self.rng.index(HOSTS.len())),
                43 => Trouble::InspectionsSlow(self.node()),
                _ => Trouble::Rogue(0, lie),
            };
            let at = self.rng.below(DAY / 2);
            let lasts = self.rng.between(60_000, DAY / 2);
            let action = Action::Trouble(trouble, lasts);
            self.steps.push(Step { at, action });
        }
    }

    /// What the node itself does: its runtime, its disk and its containers.
    fn node_itself(&mut self) {
        for class in 46..50 {
            if !self.classes.has(class) {
                continue;
            }
            for _ in 0..self.rng.between(1, 4) {
                let node = self.node();
                let lasts = self.rng.between(10_000, 300_000);
                let trouble = match class {
                    46 => {
                        self.gives_up_early();
                        continue;
                    }
                    47 => Trouble::DiskFills(node),
                    48 => Trouble::DiskTight(node),
                    _ => {
                        self.mounts(node);
                        continue;
                    }
                };
                self.push(Action::Trouble(trouble, lasts));
            }
        }
    }

    /// A user gives up an object while its images are being pulled, and pulls that are cancelled end late.
    fn gives_up_early(&mut self) {
        let cache = self.rng.index(CACHES.len());
        let begun = self.rng.below(DAY - 60_000);
        let deletion_policy = Some(DeletionPolicy::Purge);
        let spec = ImageCacheSpec {
            suspend: false,
            deletion_policy,
            ..self.spec()
        };
        for node in 0..self.nodes {
            let at = begun.saturating_sub(1_000);
            let action = Action::Trouble(Trouble::PullsEndLate(node), 60_000);
            self.steps.push(Step { at, action });
        }
        let then = match self.rng.below(3) {
            0 => Action::Delete(cache),
            1 => Action::Purge(cache, String::new()),
            _ => Action::Apply(cache, Box::new(self.spec())),
        };
        let ended = begun + self.rng.between(100, 4_000);
        let apply = Action::Apply(cache, Box::new(spec));
        for (at, action) in [(begun, apply), (ended, then)] {
            self.steps.push(Step { at, action });
        }
    }

    /// Containers that mount images, for some time.
    fn mounts(&mut self, node: usize) {
        let at = self.rng.below(DAY);
        for _ in 0..self.rng.between(1, 3) {
            let action = Action::Mount(node, self.rng.index(NAMES.len() - 1));
            self.steps.push(Step { at, action });
        }
        if self.rng.percent(50) {
            let at = at + self.rng.below(DAY - at);
            let action = Action::Stop(node);
            self.steps.push(Step { at, action });
        }
    }

    /// A user drops an image and takes it back within seconds, while calls are late or come twice: late removals meet
    /// newer pulls.
    fn second_thoughts(&mut self) {
        for _ in 0..self.rng.between(1, 3) {
            let cache = self.rng.index(CACHES.len());
            let before = self.rng.below(DAY - 300_000);
            let spec = ImageCacheSpec {
                suspend: false,
                retention: None,
                ..self.spec()
            };
            let mut less = spec.clone();
            for list in &mut less.cache_spec {
                if list.images.len() > 1 {
                    list.images.pop();
                } else {
                    list.images = vec![NAMES[self.rng.index(NAMES.len() - 1)].to_owned()];
                }
            }
            let dropped = before + self.rng.between(60_000, 180_000);
            let back = dropped + self.rng.between(300, 8_000);
            let specs = [(before, spec.clone()), (dropped, less), (back, spec)];
            for (at, spec) in specs {
                let action = Action::Apply(cache, Box::new(spec));
                self.steps.push(Step { at, action });
            }
            for node in 0..self.nodes {
                let trouble = if self.rng.percent(50) {
                    Trouble::CallsLate(node)
                } else {
                    Trouble::CallsTwice(node)
                };
                let action = Action::Trouble(trouble, 60_000);
                let at = dropped - 1_000;
                self.steps.push(Step { at, action });
            }
        }
    }

    fn trouble(&mut self, class: u32) -> Trouble {
        use Trouble as T;
        let node = self.node();
        let host = self.rng.index(HOSTS.len());
        match class {
            16 => T::Conflicts,
            17 => T::WritesFail,
            18 => T::AnswersLost,
            19 => T::ApiSlow,
            20 => T::ApiUnreachable(self.rng.index(2)),
            21 => T::WatchBroken(self.rng.index(2), *self.rng.pick(&SourceKey::ALL)),
            22 => T::ListsStale,
            23 => T::SecretsUnreadable,
            24 => T::CallsLost(node),
            25 => T::CallsLate(node),
            26 => T::CallsTwice(node),
            27 => T::StreamsBreak(node),
            28 => T::CutOff(node),
            29 => T::RuntimeSlow(node),
            30 => T::RuntimeErrs(node),
            31 => T::EffectsUntold(node),
            32 => T::PullsCancelled(node),
            33 => T::DiskFull(node),
            34 => T::RegistryDown(host),
            35 => T::RegistryRefuses(host),
            36 => T::RateLimited(host),
            37 => T::ContainersStart(node),
            38 => T::PullsStall(node),
            _ => T::NameUnknown(self.rng.index(NAMES.len())),
        }
    }
}
