//! The newest intent for each image name: a late removal must not delete what a newer pull made, nor
//! the reverse.

use std::{collections::BTreeMap, time::Duration};

use crate::{Authority, Tick};

/// How long an intent is remembered.
const MEMORY: Duration = Duration::from_secs(3600);
/// How many are, some 200 bytes each. Beyond it the oldest are forgotten: a removal more than so many
/// names late would be needed to do harm.
const MOST: usize = 20_000;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Be there.
    Pull,
    /// Be gone.
    Remove,
}

/// The newest intents by normalized name.
#[derive(Debug, Default)]
pub struct Intents {
    newest: BTreeMap<String, (u64, u64, Intent, Tick)>,
    /// None is older.
    oldest: Option<Tick>,
}

impl Intents {
    /// Notes an intent. False: a newer one of the other kind stands.
    pub fn note(&mut self, name: &str, authority: Authority, intent: Intent, now: Tick) -> bool {
        if !self.stands(name, authority, intent) {
            return false;
        }
        let newest = (authority.term, authority.seq, intent, now);
        let entry = self.newest.entry(name.to_owned()).or_insert(newest);
        if (entry.0, entry.1) <= (newest.0, newest.1) {
            *entry = newest;
        }
        self.oldest.get_or_insert(now);
        if self.newest.len() > MOST {
            let oldest = self.newest.values().map(|(.., at)| *at).min();
            self.newest
                .retain(|_, (.., at)| Some(*at) > oldest || *at == now);
        }
        true
    }

    /// Is no newer intent of the other kind known?
    pub fn stands(&self, name: &str, authority: Authority, intent: Intent) -> bool {
        self.newest.get(name).is_none_or(|(term, seq, known, _)| {
            *known == intent || (*term, *seq) < (authority.term, authority.seq)
        })
    }

    /// Forgets what is old.
    pub fn expire(&mut self, now: Tick) {
        if self.next_expiry().is_some_and(|at| at <= now) {
            self.newest.retain(|_, (.., at)| at.after(MEMORY) > now);
            self.oldest = self.newest.values().map(|(.., at)| *at).min();
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.newest.len()
    }

    /// When to forget old intents.
    pub fn next_expiry(&self) -> Option<Tick> {
        self.oldest.map(|at| at.after(MEMORY))
    }
}
