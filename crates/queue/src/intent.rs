//! The newest wish for each image name: a late removal must not delete what a newer pull made, nor
//! the reverse.

use std::{collections::BTreeMap, time::Duration};

use crate::{Authority, Tick};

/// How long a wish is remembered.
const MEMORY: Duration = Duration::from_secs(3600);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Be there.
    Pull,
    /// Be gone.
    Remove,
}

/// The newest wishes by normalized name.
#[derive(Debug, Default)]
pub struct Intents(BTreeMap<String, (u64, u64, Wish, Tick)>);

impl Intents {
    /// Notes a wish. False: a newer one of the other kind stands.
    pub fn note(&mut self, name: &str, authority: Authority, wish: Wish, now: Tick) -> bool {
        if !self.stands(name, authority, wish) {
            return false;
        }
        let newest = (authority.term, authority.seq, wish, now);
        let entry = self.0.entry(name.to_owned()).or_insert(newest);
        if (entry.0, entry.1) <= (newest.0, newest.1) {
            *entry = newest;
        }
        true
    }

    /// Is no newer wish of the other kind known?
    pub fn stands(&self, name: &str, authority: Authority, wish: Wish) -> bool {
        self.0.get(name).is_none_or(|(term, seq, known, _)| {
            *known == wish || (*term, *seq) < (authority.term, authority.seq)
        })
    }

    /// Names that were asked for after this removal.
    pub fn pulled_since(&self, removal: Authority) -> impl Iterator<Item = &String> {
        self.0
            .iter()
            .filter(move |(name, _)| !self.stands(name, removal, Wish::Remove))
            .map(|(name, _)| name)
    }

    /// Forgets what is old.
    pub fn expire(&mut self, now: Tick) {
        self.0.retain(|_, (.., at)| at.after(MEMORY) > now);
    }

    /// How many.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// When the oldest wish is forgotten.
    pub fn next_expiry(&self) -> Option<Tick> {
        self.0.values().map(|(.., at)| at.after(MEMORY)).min()
    }
}
