//! Decides the next step of a rotation from the content of the Secrets. This module is pure.

use super::{
    parsed::{Certificate, Pair},
    roles::Role,
};

/// The CAs.
#[derive(Clone)]
pub struct Authority {
    /// The newest CA. It issues certificates once everybody trusts it.
    pub newest: Pair,
    /// The CA before it. It issues certificates that cannot wait until then. Set from the first step to
    /// the second.
    pub previous: Option<Pair>,
    /// Older CAs that stay trusted, because a certificate of theirs may still be presented.
    pub old: Vec<Certificate>,
}

impl Authority {
    /// Returns all trusted CAs, newest first.
    pub fn trusted(&self) -> impl Iterator<Item = &Certificate> {
        let previous = self.previous.iter().map(|pair| &pair.certificate);
        std::iter::once(&self.newest.certificate)
            .chain(previous)
            .chain(&self.old)
    }

    /// Returns all trusted CAs as PEM.
    pub fn bundle(&self) -> String {
        self.trusted().map(|ca| ca.pem.as_str()).collect()
    }

    /// Returns whether a rotation is in progress.
    pub fn is_rotating(&self) -> bool {
        self.previous.is_some() || !self.old.is_empty()
    }

    /// Returns the CAs with a new CA added.
    pub fn succeeded_by(self, new: Pair) -> Self {
        let Self { newest, old, .. } = self;
        Self {
            newest: new,
            previous: Some(newest),
            old,
        }
    }

    /// Returns the CAs after a step that needs no new CA.
    pub fn after(self, step: Step) -> Self {
        let Self {
            newest,
            previous,
            mut old,
        } = self;
        match step {
            Step::Keep | Step::Create | Step::Begin => Self {
                newest,
                previous,
                old,
            },
            Step::Forget => {
                old.extend(previous.map(|pair| pair.certificate));
                Self {
                    newest,
                    previous: None,
                    old,
                }
            }
            Step::Retire => Self {
                newest,
                previous: None,
                old: Vec::new(),
            },
        }
    }

    /// Drops expired CAs.
    pub fn pruned(mut self, now: i64) -> Self {
        self.old.retain(|ca| ca.is_valid_at(now));
        self.previous = self
            .previous
            .filter(|previous| previous.certificate.is_valid_at(now));
        self
    }
}

/// The facts from which the next step is decided.
pub struct Situation<'a> {
    /// Wall-clock time in seconds since the epoch.
    pub now: i64,
    /// The CAs without expired ones. `None` if there is none, or none can be used.
    pub authority: Option<&'a Authority>,
    /// CAs in the bundles of the certificates. They remain if the Secret of a CA is lost.
    pub inherited: &'a [Certificate],
    /// The usable certificate of each role, with the names that it should have.
    pub leaves: &'a [(Role, Vec<String>, Option<Certificate>)],
    /// Whether a new CA was requested.
    pub requested: bool,
    /// Whether all bundles and certificates have been published for a while, and every puller that answers
    /// reports them.
    pub settled: bool,
}

/// A change of the CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No change.
    Keep,
    /// Creates a CA, because none can be used. The CAs of the existing certificates stay trusted.
    Create,
    /// Creates a new CA. The newest becomes the previous one.
    Begin,
    /// Drops the key of the previous CA, because all certificates were issued by the newest.
    Forget,
    /// Drops the old CAs, because no certificate of theirs is left.
    Retire,
}

/// The CA that issues a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The newest CA.
    Newest,
    /// The previous CA, because not everybody trusts the newest yet.
    Previous,
}

/// The work to do now. The step comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Change of the CAs.
    pub step: Step,
    /// Certificates to issue. After [`Step::Create`] and [`Step::Begin`] the newest CA is the new one.
    pub issue: Vec<(Role, Signer)>,
}

/// Decides what to do. Repeated calls end with a plan that does nothing.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let Situation {
        now,
        authority,
        inherited: _,
        leaves,
        requested,
        settled,
    } = situation;
    let usable = authority.filter(|authority| authority.newest.certificate.is_valid_at(*now));
    let Some(authority) = usable else {
        return create(situation);
    };
    let newest = &authority.newest.certificate;
    let sound = |role: &Role, names: &Vec<String>, leaf: &&Certificate| {
        leaf.names() == *names
            && !leaf.is_due_at(*now)
            && authority.trusted().any(|ca| ca.issued(leaf, *role, *now))
    };
    let of_newest = |(role, _, leaf): &(Role, _, Option<Certificate>)| {
        leaf.as_ref()
            .is_some_and(|leaf| newest.issued(leaf, *role, *now))
    };
    let switched = leaves.iter().all(of_newest);
    let signer = if switched || authority.previous.is_none() {
        Signer::Newest
    } else {
        Signer::Previous
    };
    let urgent = leaves
        .iter()
        .filter(|(role, names, leaf)| !leaf.as_ref().is_some_and(|leaf| sound(role, names, &leaf)))
        .map(|(role, ..)| (*role, signer));
    if !switched && *settled {
        // The second step: issue every certificate again that the newest CA did not issue.
        let rest = leaves.iter().filter(|leaf| !of_newest(leaf));
        return Plan {
            step: Step::Keep,
            issue: rest.map(|(role, ..)| (*role, Signer::Newest)).collect(),
        };
    }
    let step = if !switched {
        Step::Keep
    } else if authority.previous.is_some() {
        Step::Forget
    } else if !authority.old.is_empty() {
        if *settled { Step::Retire } else { Step::Keep }
    } else if *requested || newest.is_due_at(*now) {
        Step::Begin
    } else {
        Step::Keep
    };
    Plan {
        step,
        // A step that changes the issuing CA leaves the certificates to the next reconciliation.
        issue: if step == Step::Keep {
            urgent.collect()
        } else {
            Vec::new()
        },
    }
}

/// Certificates that can still be verified stay until everybody trusts the new CA.
fn create(situation: &Situation<'_>) -> Plan {
    let kept = |(role, _, leaf): &&(Role, Vec<String>, Option<Certificate>)| {
        leaf.as_ref().is_some_and(|leaf| {
            let mut inherited = situation.inherited.iter();
            inherited.any(|ca| ca.issued(leaf, *role, situation.now))
        })
    };
    let missing = situation.leaves.iter().filter(|leaf| !kept(leaf));
    Plan {
        step: Step::Create,
        issue: missing.map(|(role, ..)| (*role, Signer::Newest)).collect(),
    }
}

#[cfg(test)]
mod tests;
