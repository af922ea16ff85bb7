//! Tasks by what they wait for: with ten thousand of them, one answer of the runtime costs no pass over
//! all of them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use slab::Slab;

use crate::{
    Tick,
    task::{State, Task, TaskKey},
};

/// Higher priority first, then older.
type Rank = (Reverse<i32>, u64);

/// Who take turns at slots within a priority: namespaces first, and in each of them pairs of a registry and
/// a cache. A registry that never answers, a cache of thousands of images, or a tenant with many of both must
/// not keep others waiting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub registry: String,
    /// As namespace/name.
    pub cache: String,
}

impl Turn {
    pub fn of(key: &TaskKey, task: &Task) -> Self {
        Self {
            registry: key.registry().to_owned(),
            cache: task.cache.clone(),
        }
    }

    pub fn namespace(&self) -> &str {
        namespace(&self.cache)
    }
}

/// The namespace of a cache.
pub(super) fn namespace(cache: &str) -> &str {
    cache.split('/').next().unwrap_or(cache)
}

/// The turn under which a task waits for a slot; `None`: it waits for none.
fn slot_turn(key: &TaskKey, task: &Task) -> Option<Turn> {
    let waits = matches!(task.state, State::Waiting(_)) && !task.wants_look();
    waits.then(|| Turn::of(key, task))
}

/// All tasks. Those that an answer of the runtime passes over are found by their place, without a comparison of
/// names.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    all: Slab<Task>,
    /// Where each is.
    places: BTreeMap<TaskKey, usize>,
    /// They wait for an inspection: is the image there?
    inspections: BTreeMap<Rank, TaskKey>,
    /// They wait for a slot: by priority, then by whose turn it is, the oldest first.
    slots: BTreeMap<Reverse<i32>, BTreeMap<Turn, BTreeMap<u64, TaskKey>>>,
    /// They have had one, or the runtime works for them, or did and is asked again.
    active: BTreeMap<TaskKey, usize>,
    /// Those that ended, in the order in which they are forgotten.
    ended: VecDeque<(Tick, TaskKey)>,
}

impl Tasks {
    pub fn get(&self, key: &TaskKey) -> Option<&Task> {
        self.all.get(*self.places.get(key)?)
    }

    fn get_mut(&mut self, key: &TaskKey) -> Option<&mut Task> {
        self.all.get_mut(*self.places.get(key)?)
    }

    fn get_key_value(&self, key: &TaskKey) -> Option<(&TaskKey, &Task)> {
        let (key, place) = self.places.get_key_value(key)?;
        Some((key, self.all.get(*place)?))
    }

    /// Takes in a new task in place of an older one.
    pub fn insert(&mut self, key: &TaskKey, task: Task) {
        self.remove(key);
        self.places.insert(key.clone(), self.all.insert(task));
        self.index(key);
    }

    pub fn remove(&mut self, key: &TaskKey) -> Option<Task> {
        let task = self.all.try_remove(self.places.remove(key)?)?;
        self.leave(key, task.rank(), slot_turn(key, &task).as_ref());
        Some(task)
    }

    /// The only way to change a task: what it waits for may be something else afterwards.
    pub fn change<T>(&mut self, key: &TaskKey, change: impl FnOnce(&mut Task) -> T) -> Option<T> {
        let task = self.get_mut(key)?;
        let (rank, turn) = (task.rank(), slot_turn(key, task));
        let result = change(task);
        self.leave(key, rank, turn.as_ref());
        self.index(key);
        Some(result)
    }

    /// Out of all that it waits for.
    fn leave(&mut self, key: &TaskKey, rank: Rank, turn: Option<&Turn>) {
        self.inspections.remove(&rank);
        self.active.remove(key);
        let (priority, age) = rank;
        let Some((turn, turns)) = turn.zip(self.slots.get_mut(&priority)) else {
            return;
        };
        if let Some(tasks) = turns.get_mut(turn)
            && tasks.remove(&age).is_some()
            && tasks.is_empty()
        {
            turns.remove(turn);
        }
        if turns.is_empty() {
            self.slots.remove(&priority);
        }
    }

    /// Somebody got the outcome of a task.
    pub fn hear(&mut self, key: &TaskKey) {
        if let Some(task) = self.get_mut(key) {
            task.heard = true;
        }
    }

    /// Changes what no index knows: who waits for a task. In the order of the keys.
    pub fn change_interests(&mut self, mut change: impl FnMut(&mut Task)) {
        for place in self.places.values() {
            if let Some(task) = self.all.get_mut(*place) {
                change(task);
            }
        }
    }

    fn index(&mut self, key: &TaskKey) {
        let Some(place) = self.places.get(key).copied() else {
            return;
        };
        let Some(task) = self.all.get(place) else {
            return;
        };
        let rank = task.rank();
        match task.state {
            State::Finished(_, until) => self.ended.push_back((until, key.clone())),
            State::Waiting(_) if task.wants_look() => {
                self.inspections.insert(rank, key.clone());
            }
            State::Waiting(_) => {
                let (priority, age) = rank;
                let turns = self.slots.entry(priority).or_default();
                let tasks = turns.entry(Turn::of(key, task)).or_default();
                tasks.insert(age, key.clone());
            }
            State::Calling(..) | State::Paused(..) => {}
        }
        let works = task.call().is_some() || task.paused_until().is_some();
        let begun = task.started.is_some() || works || task.repeats();
        if !task.finished() && begun {
            self.active.insert(key.clone(), place);
        }
    }

    /// In the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&TaskKey, &Task)> {
        self.places
            .iter()
            .filter_map(|(key, place)| Some((key, self.all.get(*place)?)))
    }

    /// Of one image.
    pub fn of<'a>(&'a self, image: &'a str) -> impl Iterator<Item = (&'a TaskKey, &'a Task)> {
        let from = TaskKey::first(image);
        let range = self.places.range(from..);
        range
            .take_while(move |(key, _)| key.image == image)
            .filter_map(|(key, place)| Some((key, self.all.get(*place)?)))
    }

    /// Those that have had a slot, or that the runtime works for, or did and is asked again.
    pub fn active(&self) -> impl Iterator<Item = (&TaskKey, &Task)> + Clone {
        self.active
            .iter()
            .filter_map(|(key, place)| Some((key, self.all.get(*place)?)))
    }

    /// Those that wait for an inspection, the first to be served first.
    pub fn inspections(&self) -> impl Iterator<Item = (&TaskKey, &Task)> {
        self.inspections
            .values()
            .filter_map(|key| self.get_key_value(key))
    }

    /// Those that wait for a slot, one priority after the other, the highest first; in each by turn, the oldest
    /// first.
    pub fn slots(
        &self,
    ) -> impl Iterator<Item = impl Iterator<Item = (&Turn, impl Iterator<Item = (&TaskKey, &Task)>)>>
    {
        self.slots.values().map(|turns| {
            turns.iter().map(|(turn, tasks)| {
                let keys = tasks.values();
                (turn, keys.filter_map(|key| self.get_key_value(key)))
            })
        })
    }

    /// Some wait for a slot.
    pub fn any_waits_for_slot(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Some have not ended.
    pub fn any_open(&self) -> bool {
        !(self.inspections.is_empty() && self.slots.is_empty() && self.active.is_empty())
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// When the next one is forgotten.
    pub fn next_end(&self) -> Option<Tick> {
        self.ended.front().map(|(until, _)| *until)
    }

    /// Forgets those that ended long ago.
    pub fn forget(&mut self, now: Tick) {
        while self.next_end().is_some_and(|until| until <= now) {
            self.forget_oldest();
        }
    }

    /// Forgets the one that ended first. False: there is none.
    pub fn forget_oldest(&mut self) -> bool {
        while let Some((until, key)) = self.ended.pop_front() {
            // Another task may have its key by now.
            let same = |task: &Task| matches!(task.state, State::Finished(_, at) if at == until);
            if self.get(&key).is_some_and(same) {
                self.remove(&key);
                return true;
            }
        }
        false
    }
}
