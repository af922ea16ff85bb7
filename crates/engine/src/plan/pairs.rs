//! State of one image on one node: a pair. The node's status, `status.failures` and the debug service all
//! read it here.

use kubefledged_api_types::names::failure;

use super::context::{NodeContext, NodeView};
use crate::{
    ids::Stamp,
    model::{cache::Cache, desired::DesiredImage, node::Attempt, scopes::Outage},
    vocabulary::{FailureClass, PullState, Tick},
};

/// Message of every pair of a node whose puller is silent.
pub const SILENT: &str =
    "the puller of this node does not answer: see the DaemonSet kubefledged-puller";

/// So many times in a row a registry must refuse the credentials before somebody has to act.
const REFUSALS: u32 = 3;

/// What is wrong with a pair.
#[derive(Clone, Copy, Debug)]
pub enum Fault<'m> {
    /// The name cannot be parsed.
    InvalidName(&'m str),
    /// The node's puller is silent. Since then.
    Silent(Option<Tick>),
    /// The last attempt failed.
    Pull(&'m Attempt),
    /// The pull secrets cannot be read.
    Credentials(&'m Outage),
}

impl<'m> Fault<'m> {
    /// Its reason in `names::failure`.
    pub fn reason(self) -> &'m str {
        match self {
            Self::InvalidName(_) => failure::INVALID_IMAGE_NAME,
            Self::Silent(_) => failure::PULLER_UNAVAILABLE,
            Self::Pull(attempt) => &attempt.reason,
            Self::Credentials(_) => failure::CREDENTIALS_UNAVAILABLE,
        }
    }

    /// Does it stay unless somebody acts? `since`: stamp of the operation that pulls, if one does; what failed before
    /// it is tried again. Refused credentials are tried a few times, because their Secret may still come.
    pub fn stays(self, since: Option<Stamp>) -> bool {
        let Self::Pull(attempt) = self else {
            return matches!(self, Self::InvalidName(_));
        };
        let refused = attempt.class == FailureClass::Unauthorized && attempt.tries >= REFUSALS;
        let lacking = attempt.class == FailureClass::NotFound;
        Some(attempt.stamp) >= since && (attempt.not_before.is_none() || refused || lacking)
    }

    /// Its message.
    pub fn message(self) -> &'m str {
        match self {
            Self::InvalidName(why) => why,
            Self::Silent(_) => SILENT,
            Self::Pull(attempt) => &attempt.message,
            Self::Credentials(outage) => &outage.message,
        }
    }
}

/// A pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'m> {
    /// What is wrong with it, if anything.
    pub fault: Option<Fault<'m>>,
    /// The image was present at the last check.
    pub present: bool,
}

impl Pair<'_> {
    /// Is the image absent because of the fault?
    pub fn is_missing(&self) -> bool {
        self.fault.is_some() && !self.present
    }

    /// Its state. An image that is present stays ready, even if it could not be refreshed.
    pub fn state(&self, pulling: bool) -> PullState {
        match self.fault {
            Some(Fault::Silent(_)) => PullState::Unreachable,
            Some(Fault::Pull(_)) | None if self.present => PullState::Ready,
            Some(_) => PullState::Failed,
            None if pulling => PullState::Pulling,
            None => PullState::Pending,
        }
    }
}

impl<'m> NodeView<'m> {
    /// The pair of this node and an image. `silent`: the node's puller is unreachable, and that is what is wrong.
    pub fn pair(&self, desired: &DesiredImage, silent: bool) -> Pair<'m> {
        let image = self.model.names.images.get(desired.image);
        let present = self.node.observed.holds(desired.image);
        let fault = if let Some(why) = &image.invalid {
            Some(Fault::InvalidName(why))
        } else if silent {
            Some(Fault::Silent(self.node.contact.silent_since))
        } else if let Some(attempt) = self.failure(desired) {
            Some(Fault::Pull(attempt))
        } else if present {
            None
        } else {
            self.blamed_outage(desired).map(Fault::Credentials)
        };
        Pair { fault, present }
    }

    /// State of a pair, or of any pair of a node that is not eligible and that no operation awaits.
    pub fn pair_state(
        &self,
        cache: &Cache,
        desired: &DesiredImage,
        context: &NodeContext,
    ) -> (PullState, Pair<'m>) {
        let pair = self.pair(desired, self.unreachable());
        let awaited = cache.pulls_since(self.idx).is_some();
        let state = if self.node.eligibility().is_err() && !awaited {
            PullState::NotDesired
        } else {
            pair.state(context.pulling.contains(desired.image))
        };
        (state, pair)
    }

    /// The outage that is to blame for an absent image. It is not blamed within the grace time.
    pub fn blamed_outage(&self, desired: &DesiredImage) -> Option<&'m Outage> {
        let grace = self.model.settings.puller_grace;
        let outage = self.model.names.scopes.outage(desired.credentials)?;
        (outage.blamed_from(grace) <= self.now).then_some(outage)
    }

    /// The outage of any of a cache's credentials.
    pub fn outage(&self, cache: &Cache) -> Option<&'m Outage> {
        let mut scopes = cache.desired.scopes.iter();
        scopes.find_map(|scope| self.model.names.scopes.outage(*scope))
    }
}
