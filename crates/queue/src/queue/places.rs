//! Who may pull beside those that pull already.

use std::collections::BTreeMap;

use super::index::{Turn, namespace};

/// Turns and namespaces that are remembered; beyond that all begin anew.
const MOST_TURNS: usize = 4096;

/// The pulls that have a place now. Among them are pulls that were ended and of which the runtime has not
/// let go yet.
///
/// `--max-parallel-pulls` places are for any image. Beyond them there are two. One is for an image beside a long
/// pull, so that a pull of 10 GB does not delay one of 5 MB, or for a cache and a registry of which nothing runs.
/// The other one is there if a single namespace or a single registry has all others: nobody has all places, however
/// many caches and registries, and whatever priority, they may name. Images that are pulled again because the runtime
/// was away have these places too.
#[derive(Debug)]
pub(super) struct Running<'a> {
    /// Pulls at a time, at least one.
    pub most: usize,
    /// One of them runs for long.
    pub long: bool,
    /// The registry and the cache of each.
    pub pulls: Vec<(&'a str, &'a str)>,
}

impl Running<'_> {
    /// There may be a place.
    pub fn any_place(&self) -> bool {
        self.pulls.len() < self.most + 2
    }

    /// There is a place for an image of this turn.
    pub fn place_for(&self, turn: &Turn) -> bool {
        if self.pulls.len() < self.most {
            return true;
        }
        let pulls = || self.pulls.iter();
        let nothing = !pulls().any(|pull| pull.0 == turn.registry || pull.1 == turn.cache);
        if (self.long || nothing) && self.pulls.len() <= self.most {
            return true;
        }
        let namespaces = || pulls().map(|pull| namespace(pull.1));
        let outside = !namespaces().any(|other| other == turn.namespace());
        let registries = pulls().map(|pull| pull.0);
        self.any_place() && (outside && all_same(namespaces()) || nothing && all_same(registries))
    }

    /// How many are of this registry.
    pub fn of_registry(&self, registry: &str) -> usize {
        let pulls = self.pulls.iter();
        pulls.filter(|pull| pull.0 == registry).count()
    }

    /// One more would give this registry all places for any image.
    pub fn last_of_registry(&self, registry: &str) -> bool {
        self.most > 1 && self.of_registry(registry) + 1 >= self.most
    }
}

fn all_same<'a>(mut of: impl Iterator<Item = &'a str>) -> bool {
    let first = of.next();
    of.all(|other| Some(other) == first)
}

/// When each turn, and each namespace, got a place last. Who never got one comes first.
#[derive(Debug, Default)]
pub(super) struct Served {
    turns: BTreeMap<Turn, u64>,
    namespaces: BTreeMap<String, u64>,
}

impl Served {
    pub fn namespace(&self, turn: &Turn) -> Option<u64> {
        self.namespaces.get(turn.namespace()).copied()
    }

    pub fn turn(&self, turn: &Turn) -> Option<u64> {
        self.turns.get(turn).copied()
    }

    /// It gets a place, as the `count`th.
    pub fn serve(&mut self, turn: Turn, count: u64) {
        if self.turns.len() >= MOST_TURNS {
            *self = Self::default();
        }
        let namespace = turn.namespace().to_owned();
        self.namespaces.insert(namespace, count);
        self.turns.insert(turn, count);
    }
}
