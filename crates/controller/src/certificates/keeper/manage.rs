//! The mode `managed`: reads all Secrets, decides with [`rotation::plan`], and writes the outcome.

use std::time::Duration;

use anyhow::Context as _;

use super::{FLOOR, Keeper, LOOK, LOOK_CLOSELY};
use crate::certificates::{
    fleet::Expected,
    issue,
    parsed::Certificate,
    roles::Role,
    rotation::{self, Authority, Plan, Signer, Situation, Step},
    secrets::{self, Found},
};

type Leaves = Vec<(Role, Found)>;

impl Keeper {
    /// Reconciles once. Returns the time until the next reconciliation.
    pub(super) async fn manage(&mut self) -> anyhow::Result<Duration> {
        let now = (self.clock)();
        let ca_secret = self.ca_secret();
        let found_ca = self.read(&ca_secret).await?;
        let mut leaves: Leaves = Vec::new();
        for role in Role::ALL {
            leaves.push((role, self.read(&self.secret(role)).await?));
        }
        let authority = found_ca
            .authority(now)
            .inspect_err(|error| {
                if found_ca.exists() {
                    let error = format!("{error:#}");
                    tracing::warn!(secret = ca_secret, error, "cannot read the CA");
                }
            })
            .ok();
        let settled = self.is_settled(authority.as_ref(), &leaves, now).await?;
        let inherited = inherited(&leaves, now);
        let plan = rotation::plan(&Situation {
            now,
            authority: authority.as_ref(),
            inherited: &inherited,
            leaves: &self.parsed(&leaves),
            requested: found_ca.rotation_is_requested(),
            settled,
        });
        let authority = apply(plan.step, authority, inherited, now)?;
        let began = matches!(plan.step, Step::Begin | Step::Create);
        let mut written = self
            .secrets
            .write(
                &ca_secret,
                &found_ca,
                secrets::of_authority(&authority),
                began.then_some(secrets::ROTATE),
            )
            .await
            .with_context(|| format!("write Secret {ca_secret}"))?;
        if plan.step != Step::Keep {
            tracing::info!(step = ?plan.step, trusted = authority.trusted().count(), "CA");
        }
        // The bundle is published first, so that every presented certificate is trusted.
        written |= self.publish(&authority.bundle()).await?;
        written |= self.write_leaves(&authority, &leaves, &plan, now).await?;
        if written {
            self.published_since = None;
        } else {
            self.published_since.get_or_insert(now);
        }
        let newest = &authority.newest.certificate;
        self.tell_expiry("ca", &ca_secret, &found_ca, newest).await;
        let pending = plan.step == Step::Forget || written;
        Ok(if authority.is_rotating() || pending {
            LOOK_CLOSELY
        } else {
            LOOK
        })
    }

    /// Returns whether the next step may be taken.
    async fn is_settled(
        &mut self,
        authority: Option<&Authority>,
        leaves: &Leaves,
        now: i64,
    ) -> anyhow::Result<bool> {
        let waited = self
            .published_since
            .is_some_and(|since| now - since >= FLOOR);
        let Some(authority) = authority.filter(|authority| waited && authority.is_rotating())
        else {
            return Ok(waited);
        };
        let puller = leaves.iter().find(|(role, _)| *role == Role::Puller);
        let puller = puller.and_then(|(_, found)| found.pair().ok());
        let mut trusted: Vec<String> = authority.trusted().map(Certificate::fingerprint).collect();
        trusted.sort();
        let expected = Expected {
            trusted,
            serial: puller
                .map(|pair| pair.certificate.serial())
                .unwrap_or_default(),
        };
        let behind = self.fleet.behind(expected).await;
        Ok(behind.context("list the pullers")? == 0)
    }

    async fn write_leaves(
        &mut self,
        authority: &Authority,
        leaves: &Leaves,
        plan: &Plan,
        now: i64,
    ) -> anyhow::Result<bool> {
        let bundle = authority.bundle();
        let mut written = false;
        for (role, found) in leaves {
            let name = self.secret(*role);
            let due = plan.issue.iter().find(|(other, _)| other == role);
            let pair = match due {
                Some((_, signer)) => {
                    let ca = match (signer, &authority.previous) {
                        (Signer::Previous, Some(previous)) => previous,
                        _ => &authority.newest,
                    };
                    issue::leaf(ca, *role, &self.names(*role), now)?
                }
                None => found.pair()?,
            };
            let data = secrets::of_leaf(&pair, &bundle);
            let wrote = self.secrets.write(&name, found, data, None).await;
            written |= wrote.with_context(|| format!("write Secret {name}"))?;
            if *role == Role::Controller {
                // Everybody trusts the previous CA while there is one.
                let issuer = authority.previous.as_ref();
                self.present(&pair, &bundle, issuer.or(Some(&authority.newest)))?;
            }
            self.tell_expiry(role.label(), &name, found, &pair.certificate)
                .await;
        }
        Ok(written)
    }

    fn parsed(&self, leaves: &Leaves) -> Vec<(Role, Vec<String>, Option<Certificate>)> {
        let parsed = leaves.iter().map(|(role, found)| {
            let leaf = found.pair().ok().map(|pair| pair.certificate);
            (*role, self.names(*role), leaf)
        });
        parsed.collect()
    }
}
/// Returns the CAs in the bundles that issued one of the certificates.
fn inherited(leaves: &Leaves, now: i64) -> Vec<Certificate> {
    let mut inherited: Vec<Certificate> = Vec::new();
    for (role, found) in leaves {
        let Ok(leaf) = found.pair() else { continue };
        for ca in Certificate::parse_all(&found.bundle()).unwrap_or_default() {
            if ca.issued(&leaf.certificate, *role, now) && !inherited.contains(&ca) {
                inherited.push(ca);
            }
        }
    }
    inherited
}

fn apply(
    step: Step,
    authority: Option<Authority>,
    inherited: Vec<Certificate>,
    now: i64,
) -> anyhow::Result<Authority> {
    match (step, authority) {
        (Step::Create, _) | (_, None) => Ok(Authority {
            newest: issue::ca(now)?,
            previous: None,
            old: inherited,
        }),
        (Step::Begin, Some(authority)) => Ok(authority.succeeded_by(issue::ca(now)?)),
        (step, Some(authority)) => Ok(authority.after(step)),
    }
}
