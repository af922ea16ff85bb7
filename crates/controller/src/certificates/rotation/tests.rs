//! A leader that looks at the Secrets again and again, on days on which something happens to them.

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
