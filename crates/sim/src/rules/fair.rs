//! Whom a registry that does not answer, or a puller that is slow or busy, may hold up: nobody else.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::{ImageCacheStatus, names::failure};
use kubefledged_contract::terms::CLAIM_AGE;
use kubefledged_engine::CacheKey;
use kubefledged_queue::{Call, PullOutcome, PullRequest, StreamId};

use crate::{
    network::Purpose,
    node::{Plan, Process},
    registry::{HOSTS, host, normalized},
    script::Trouble,
    world::{Event, World},
};

/// An image waits at most so long while all pulls that run get no answer and are of one registry or of one
/// namespace to which it does not belong, in ms. The queue's rule: nobody has all places. So nothing is left
/// to wait for but inspections.
const HELD_UP: u64 = 15_000;
/// Longest inspection of a runtime that is not slow, in ms.
const SLOW: u64 = 1_000;
/// A node that was in reach for so long is not unreachable, in ms: the grace time, the longest wait between two
/// calls, and a call.
const IN_REACH: u64 = 240_000;

/// What was asked of a puller and has no outcome yet.
#[derive(Debug, Default)]
pub struct Waiting {
    /// By normalized name.
    images: BTreeMap<String, Wait>,
    /// For which caches a name was ever asked for.
    caches: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Wait {
    /// Requests and the index of the image there.
    asked: BTreeSet<(StreamId, usize)>,
    /// Its pull has begun once.
    begun: bool,
    /// Since when only a registry that does not answer could hold it up.
    since: Option<u64>,
}

impl Waiting {
    /// Notes a request.
    pub fn asked(&mut self, stream: StreamId, images: &[PullRequest]) {
        for (index, image) in images.iter().enumerate() {
            let name = normalized(&image.reference);
            let caches = self.caches.entry(name.clone()).or_default();
            caches.insert(image.cache.clone());
            let wait = self.images.entry(name).or_default();
            wait.asked.insert((stream, index));
        }
    }

    /// Notes outcomes.
    pub fn told(&mut self, stream: StreamId, outcomes: &[PullOutcome]) {
        self.forget(|known, index| {
            let mut told = outcomes.iter();
            known == stream && told.any(|outcome| outcome.index == index)
        });
    }

    /// Nobody waits for this request any more.
    pub fn ended(&mut self, stream: StreamId) {
        self.forget(|known, _| known == stream);
    }

    fn forget(&mut self, which: impl Fn(StreamId, usize) -> bool) {
        self.images.retain(|_, wait| {
            wait.asked.retain(|(stream, index)| !which(*stream, *index));
            !wait.asked.is_empty()
        });
    }

    /// Namespaces that ever asked for a name.
    pub fn namespaces(&self, name: &str) -> BTreeSet<&str> {
        let caches = self.caches.get(name).into_iter().flatten();
        caches.filter_map(|cache| cache.split('/').next()).collect()
    }

    /// Are these pulls of other registries, all of one registry or all of one namespace, and does this image belong
    /// to neither? A registry that failed often gets one pull at a time, whoever asks.
    fn outside(&self, stuck: &[String], name: &str) -> bool {
        let (mine, others) = (&self.caches[name], || stuck.iter());
        let foreign = others().all(|other| host(other) != host(name));
        let mut caches = others().filter_map(|other| self.caches.get(other));
        let elsewhere = caches.all(|other| other.is_disjoint(mine));
        let one_registry = others().all(|other| host(other) == host(&stuck[0])) && elsewhere;
        let holders: BTreeSet<&str> = others().flat_map(|other| self.namespaces(other)).collect();
        let one_namespace = holders.len() == 1 && holders.is_disjoint(&self.namespaces(name));
        foreign && (one_registry || one_namespace)
    }

    /// A pull begins.
    pub fn begun(&mut self, name: &str) {
        if let Some(wait) = self.images.get_mut(name) {
            wait.begun = true;
        }
    }
}

/// Names that are being pulled, if none of them gets an answer.
fn stuck(process: &Process) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for running in process.calls.values() {
        match (&running.call, &running.plan) {
            (Call::Pull(name, ..), Plan::Silent | Plan::Drip) if !running.cancelled => {
                names.push(normalized(name));
            }
            (Call::Pull(..) | Call::Remove(_) | Call::Untag(_), _) => return None,
            // Begun while the runtime was slow.
            _ if running.takes > SLOW => return None,
            _ => {}
        }
    }
    (!names.is_empty()).then_some(names)
}

impl World {
    /// While registries do not answer, images wait only for those of their own cache, registry or namespace.
    pub fn check_fair(&mut self, node: usize) {
        let now = self.now;
        let healthy = !self.disturbs(node) && self.nodes[node].runtime.away_until <= now;
        let troubled: Vec<&str> = (0..HOSTS.len())
            .filter(|at| self.registry_is_troubled(*at))
            .map(|at| HOSTS[at])
            .collect();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let stuck = stuck(process).filter(|_| healthy && process.seen.removals.is_empty());
        let incarnation = process.incarnation;
        let waiting = &process.seen.waiting;
        let concerned = |name: &String, wait: &Wait| {
            let stuck = stuck.as_ref().filter(|_| !wait.begun)?;
            let healthy = !troubled.contains(&&*host(name));
            (healthy && waiting.outside(stuck, name)).then_some(stuck)
        };
        let held: BTreeMap<String, &Vec<String>> = waiting
            .images
            .iter()
            .filter_map(|(name, wait)| Some((name.clone(), concerned(name, wait)?)))
            .collect();
        let (mut look_again, mut held_up) = (false, None);
        for (name, wait) in &mut process.seen.waiting.images {
            let Some(stuck) = held.get(name) else {
                wait.since = None;
                continue;
            };
            look_again |= wait.since.is_none();
            let since = *wait.since.get_or_insert(now);
            if now > since + HELD_UP {
                held_up = Some(format!("n{node}: {name} waits for {stuck:?}"));
            }
        }
        if look_again {
            self.after(HELD_UP + 1, Event::Fair(node, incarnation));
        }
        if let Some(held_up) = held_up {
            self.broken(
                "a registry that does not answer holds up nobody else",
                held_up,
            );
        }
    }

    /// Is something wrong with this node that may hold up a pull?
    fn disturbs(&self, node: usize) -> bool {
        use Trouble as T;
        self.troubles.iter().any(|trouble| {
            matches!(trouble,
                T::RuntimeSlow(n)
                | T::RuntimeErrs(n)
                | T::EffectsUntold(n)
                | T::PullsCancelled(n)
                | T::PullsStall(n)
                | T::InspectionsSlow(n)
                | T::DiskFull(n)
                | T::DiskFills(n)
                | T::DiskTight(n) if *n == node)
        })
    }

    fn registry_is_troubled(&self, at: usize) -> bool {
        use Trouble as T;
        self.troubles.iter().any(|trouble| {
            matches!(trouble,
                T::RegistryDown(r)
                | T::RegistryRefuses(r)
                | T::RateLimited(r)
                | T::RegistrySilent(r)
                | T::RegistryDrips(r) if *r == at)
        })
    }

    /// A puller has no room for a request. A check has room of its own.
    pub fn check_overloaded(&mut self, node: usize, stream: StreamId) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let is_check = |link: &u64| {
            let link = self.links.get(link);
            link.is_some_and(|link| link.purpose == Purpose::Check)
        };
        let checks = process.streams.values().filter(|link| is_check(link));
        if process.streams.get(&stream).is_some_and(is_check) && checks.count() == 1 {
            let told = format!("n{node}: stream {}", stream.0);
            self.broken("a check has room beside a full queue", told);
        }
    }

    /// A node that is in reach is not unreachable, however slow or busy it is.
    pub fn check_reach(&mut self, who: usize, key: &CacheKey, status: &ImageCacheStatus) {
        let controller = &self.controllers[who];
        let known = controller.view.caches.get(key);
        let known = known.map(|object| &object.status.failures);
        let news = status.failures.iter().flat_map(|(image, failures)| {
            let before = known.and_then(|known| known.get(image));
            let said = move |node: &String| {
                before.is_some_and(|before| before.iter().any(|failure| failure.node == *node))
            };
            failures.iter().filter(move |failure| !said(&failure.node))
        });
        let unreachable = news.filter(|failure| failure.reason == failure::PULLER_UNAVAILABLE);
        let hidden = |what: Hidden| {
            let mut troubles = self.troubles.iter();
            troubles.any(|trouble| hides(*trouble, who) == Some(what))
        };
        let in_reach = |node: &String| {
            let mut nodes = self.nodes.iter().enumerate();
            let machine = nodes.find(|(_, machine)| *machine.name.0 == **node);
            machine.is_some_and(|(index, machine)| {
                let since = machine.disturbed.max(controller.disturbed);
                machine.process.is_some()
                    && since + IN_REACH < self.now
                    && !hidden(Hidden::Node(index))
                    && !hidden(Hidden::Controller)
            })
        };
        let mut wrong = unreachable.map(|failure| &failure.node);
        let wrong = wrong.find(|node| in_reach(node));
        if let Some(node) = wrong.cloned() {
            let told = format!("{key}: {node} is said to be unreachable");
            self.broken("a slow or busy node is in reach", told);
        }
    }

    /// What a puller claims of terms is believed. Without another puller that answers, one is enough.
    pub fn check_claim(&mut self, who: usize, node: usize, believed: u64) {
        let age = u64::try_from(CLAIM_AGE.as_millis()).unwrap_or(u64::MAX);
        let mut heard = self.controllers[who].heard.iter();
        if !heard.any(|(other, at)| *other != node && self.now - at < age) {
            self.only_claim = self.only_claim.max(believed);
        }
    }

    /// A term goes into the Lease: it is at most one above all in which somebody led, whatever a single node
    /// claims, unless no other node answered then.
    pub fn check_term(&mut self, who: usize, term: u64) {
        if term > self.highest_term.max(self.only_claim) + 1 {
            let told = format!("c{who} leads in {term} after {}", self.highest_term);
            self.broken("a single puller raises no term", told);
        }
        self.highest_term = self.highest_term.max(term);
    }

    /// A trouble begins or ends: what it hides is in reach from now on at the earliest.
    pub fn disturb(&mut self, trouble: Trouble) {
        let now = self.now;
        for who in 0..self.controllers.len() {
            match hides(trouble, who) {
                Some(Hidden::Node(node)) => {
                    if let Some(node) = self.nodes.get_mut(node) {
                        node.disturbed = now;
                    }
                }
                Some(Hidden::Controller) => self.controllers[who].disturbed = now,
                None => {}
            }
        }
    }
}

/// What a trouble makes hard to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hidden {
    /// A node, for everybody.
    Node(usize),
    /// All nodes, for a controller.
    Controller,
}

fn hides(trouble: Trouble, who: usize) -> Option<Hidden> {
    use Trouble as T;
    match trouble {
        T::CutOff(node)
        | T::CallsLost(node)
        | T::CallsLate(node)
        | T::StreamsBreak(node)
        | T::Rogue(node, _) => Some(Hidden::Node(node)),
        T::ApiUnreachable(whom) | T::WatchBroken(whom, _) if whom == who => {
            Some(Hidden::Controller)
        }
        _ => None,
    }
}
