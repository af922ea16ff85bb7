//! What was decided about the deletion of an object, and the pins that go with it.

use kubefledged_api_types::DeletionPolicy;

use crate::{ids::Stamp, vocabulary::Tick};

/// Deletion of the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deletion {
    /// Nothing was decided about it.
    #[default]
    None,
    /// Our finalizer holds the object. When the nodes are done, it is removed, and `Released` follows.
    Running(DeletionPolicy),
    /// Our finalizer is removed, or the object is gone: nothing is written any more.
    Released(Option<DeletionPolicy>),
}

impl Deletion {
    /// The policy that was decided.
    pub fn policy(self) -> Option<DeletionPolicy> {
        match self {
            Self::None => None,
            Self::Running(policy) => Some(policy),
            Self::Released(policy) => policy,
        }
    }

    /// Is nothing written any more?
    pub fn is_released(self) -> bool {
        matches!(self, Self::Released(_))
    }

    /// The policy, decided anew.
    pub fn decide(self, policy: DeletionPolicy) -> Self {
        if self.is_released() {
            Self::Released(Some(policy))
        } else {
            Self::Running(policy)
        }
    }

    /// Nothing is written any more.
    pub fn release(self) -> Self {
        Self::Released(self.policy())
    }
}

/// Pins of ours that must be removed, because no object needs them.
#[derive(Clone, Copy, Debug)]
pub struct Unpin {
    /// A node with an older report has not confirmed.
    pub since: Stamp,
    /// Nodes are not awaited after this.
    pub until: Tick,
}
