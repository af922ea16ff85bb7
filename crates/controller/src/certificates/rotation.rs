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
mod tests {
    use super::{super::issue, *};

    const NOW: i64 = 1_700_000_000;
    const DAY: i64 = 24 * 3600;

    /// The Secrets, and a leader that looks at them.
    struct World {
        now: i64,
        authority: Option<Authority>,
        leaves: Vec<(Role, Vec<String>, Option<Certificate>)>,
        requested: bool,
    }

    impl World {
        fn empty() -> Self {
            let leaves = Role::ALL.map(|role| (role, role.names("ns", "svc"), None));
            Self {
                now: NOW,
                authority: None,
                leaves: leaves.into(),
                requested: false,
            }
        }

        fn installed() -> Self {
            let mut world = Self::empty();
            world.look(false);
            assert_eq!(world.look(false), nothing());
            world
        }

        /// One look, and what comes of it.
        fn look(&mut self, settled: bool) -> Plan {
            self.authority = self
                .authority
                .take()
                .map(|authority| authority.pruned(self.now));
            let plan = plan(&Situation {
                now: self.now,
                authority: self.authority.as_ref(),
                inherited: &[],
                leaves: &self.leaves,
                requested: self.requested,
                settled,
            });
            self.authority = Some(carry_out(plan.step, self.authority.take(), self.now));
            self.requested &= plan.step != Step::Begin;
            for (role, signer) in &plan.issue {
                let authority = self.authority.as_ref().unwrap();
                let ca = match signer {
                    Signer::Newest => &authority.newest,
                    Signer::Previous => authority.previous.as_ref().unwrap(),
                };
                let leaf = self.leaves.iter_mut().find(|(other, ..)| other == role);
                let (_, names, leaf) = leaf.unwrap();
                let made = issue::leaf(ca, *role, names, self.now).unwrap();
                *leaf = Some(made.certificate);
            }
            self.everything_is_verified();
            plan
        }

        fn trusted(&self) -> Vec<String> {
            let authority = self.authority.as_ref().unwrap();
            authority.trusted().map(Certificate::fingerprint).collect()
        }

        /// Whatever is presented is trusted, at every moment.
        fn everything_is_verified(&self) {
            for (role, _, leaf) in &self.leaves {
                let leaf = leaf.as_ref().unwrap();
                let authority = self.authority.as_ref().unwrap();
                let verified = authority
                    .trusted()
                    .any(|ca| ca.issued(leaf, *role, self.now));
                assert!(verified, "{role:?}");
            }
        }
    }

    fn carry_out(step: Step, authority: Option<Authority>, now: i64) -> Authority {
        let new = || issue::ca(now).unwrap();
        match (step, authority) {
            (Step::Create, _) | (_, None) => Authority {
                newest: new(),
                previous: None,
                old: Vec::new(),
            },
            (Step::Begin, Some(authority)) => authority.succeeded_by(new()),
            (step, Some(authority)) => authority.after(step),
        }
    }

    fn nothing() -> Plan {
        Plan {
            step: Step::Keep,
            issue: Vec::new(),
        }
    }

    fn all(signer: Signer) -> Vec<(Role, Signer)> {
        Role::ALL.map(|role| (role, signer)).into()
    }

    #[test]
    fn an_installation_makes_a_ca_and_all_leaves_at_once() {
        let plan = World::empty().look(false);
        assert_eq!(plan.step, Step::Create);
        assert_eq!(plan.issue, all(Signer::Newest));
    }

    #[test]
    fn a_rotation_takes_three_steps_and_each_waits_until_everybody_has_seen_the_last() {
        let mut world = World::installed();
        let first = world.trusted();
        world.requested = true;
        assert_eq!(world.look(true).step, Step::Begin);
        let both = world.trusted();
        assert_eq!(both[1..], first);
        assert_eq!(world.look(false), nothing());
        assert_eq!(world.look(true).issue, all(Signer::Newest));
        assert_eq!(world.look(false).step, Step::Forget);
        assert_eq!(world.trusted(), both);
        assert_eq!(world.look(false), nothing());
        assert_eq!(world.look(true).step, Step::Retire);
        assert_eq!(world.trusted(), both[..1]);
        assert_eq!(world.look(true), nothing());
    }

    #[test]
    fn a_second_request_waits_for_the_end_of_the_first() {
        let mut world = World::installed();
        world.requested = true;
        world.look(true);
        world.requested = true;
        for _ in 0..2 {
            assert_ne!(world.look(true).step, Step::Begin);
        }
        assert_eq!(world.look(true).step, Step::Retire);
        assert_eq!(world.look(true).step, Step::Begin);
        assert!(!world.requested);
    }

    #[test]
    fn what_cannot_wait_is_signed_by_the_ca_that_everybody_trusts() {
        let mut world = World::installed();
        world.requested = true;
        world.look(true);
        // The leaf is due before everybody trusts the new CA.
        world.now += 21 * DAY;
        let plan = world.look(false);
        assert_eq!(plan.issue, all(Signer::Previous));
        assert_eq!(world.look(false), nothing());
        assert_eq!(world.look(true).issue, all(Signer::Newest));
    }

    #[test]
    fn a_crash_between_two_writes_is_gone_on_from() {
        let mut world = World::installed();
        world.requested = true;
        world.look(true);
        let old = world.leaves[0].2.clone();
        world.look(true);
        // One leaf was not written.
        world.leaves[0].2 = old;
        assert_eq!(world.look(false), nothing());
        assert_eq!(world.look(true).issue, [(Role::ALL[0], Signer::Newest)]);
        assert_eq!(world.look(true).step, Step::Forget);
    }

    #[test]
    fn leaves_are_renewed_when_due_and_when_their_names_change() {
        let mut world = World::installed();
        world.now += 19 * DAY;
        assert_eq!(world.look(true), nothing());
        world.now += DAY;
        assert_eq!(world.look(true).issue, all(Signer::Newest));
        world.leaves[2].1 = vec!["other.svc".to_owned()];
        assert_eq!(
            world.look(true).issue,
            [(world.leaves[2].0, Signer::Newest)]
        );
        assert_eq!(world.look(true), nothing());
    }

    #[test]
    fn a_clock_beyond_every_expiry_makes_everything_anew_at_once() {
        let mut world = World::installed();
        world.requested = true;
        world.look(true);
        world.now += 500 * DAY;
        let plan = world.look(false);
        assert_eq!(plan.step, Step::Create);
        assert_eq!(plan.issue, all(Signer::Newest));
        assert_eq!(world.trusted().len(), 1);
        assert_eq!(world.look(false), nothing());
    }

    #[test]
    fn a_clock_that_was_set_back_makes_everything_anew_too() {
        let mut world = World::installed();
        world.now -= 30 * DAY;
        assert_eq!(world.look(false).step, Step::Create);
        assert_eq!(world.look(false), nothing());
    }

    #[test]
    fn a_ca_that_is_lost_goes_on_being_trusted_until_nothing_chains_to_it() {
        let mut world = World::installed();
        let lost = world.authority.take().unwrap().newest.certificate;
        let plan = plan(&Situation {
            now: world.now,
            authority: None,
            inherited: std::slice::from_ref(&lost),
            leaves: &world.leaves,
            requested: false,
            settled: false,
        });
        assert_eq!((plan.step, plan.issue), (Step::Create, Vec::new()));
        world.authority = Some(Authority {
            newest: issue::ca(world.now).unwrap(),
            previous: None,
            old: vec![lost],
        });
        assert_eq!(world.look(false), nothing());
        assert_eq!(world.look(true).issue, all(Signer::Newest));
        assert_eq!(world.look(true).step, Step::Retire);
        assert_eq!(world.look(true), nothing());
    }

    #[test]
    fn two_years_pass_and_everything_stays_verified() {
        let mut world = World::installed();
        let mut begun = 0;
        for look in 0..(2 * 365 * 2) {
            world.now = NOW + look * DAY / 2;
            // Some pullers take a week.
            begun += i32::from(world.look(look % 14 == 0).step == Step::Begin);
        }
        assert_eq!(begun, 2);
    }
}
