//! An operation in progress: create, update, refresh, purge or delete. The part of the status that
//! kube-fledged has tells of the last operation.

use kubefledged_api_types::{
    Timestamp,
    names::{message, reason},
};

use crate::{
    ids::{IdSet, NodeIdx, Stamp},
    vocabulary::Tick,
};

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object is new.
    Create,
    /// What is desired where has changed.
    Update,
    /// A refresh was requested, or is due and has found something to pull.
    Refresh,
    /// A purge was requested.
    Purge,
    /// The object is being deleted, and our finalizer holds it.
    Delete,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Create,
        Self::Update,
        Self::Refresh,
        Self::Purge,
        Self::Delete,
    ];

    /// Its `status.reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Create => reason::CREATE,
            Self::Update => reason::UPDATE,
            Self::Refresh => reason::REFRESH,
            Self::Purge => reason::PURGE,
            Self::Delete => reason::DELETE,
        }
    }

    /// From `status.reason`; `None`: it names no operation of ours.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.reason() == text)
    }

    /// Does it bring images to nodes? A purge and a deletion remove them.
    pub fn pulls(self) -> bool {
        !matches!(self, Self::Purge | Self::Delete)
    }

    /// Its `status.message` while it runs.
    pub fn running(self) -> &'static str {
        match self {
            Self::Create => message::CREATING,
            Self::Update => message::UPDATING,
            Self::Refresh => message::REFRESHING,
            Self::Purge | Self::Delete => message::PURGING,
        }
    }
}

/// An annotation that requested an operation, and the value it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Name of the annotation.
    pub annotation: &'static str,
    /// Empty: the annotation is removed at the end. Otherwise it is a token, which is remembered.
    pub value: String,
}

/// An operation in progress.
#[derive(Debug)]
pub struct Operation {
    /// Which operation.
    pub kind: Kind,
    /// Outcomes of batches with this stamp or a later one count.
    pub stamp: Stamp,
    /// `status.startTime`. It is part of the freshness token, so that a new leader builds the same token.
    pub started: Timestamp,
    /// Nodes that must get images: the eligible nodes at its start, without those that have left.
    pub pulls: IdSet<NodeIdx>,
    /// Nodes that must remove images: those whose puller answered at its start.
    pub removes: IdSet<NodeIdx>,
    /// Nodes of either kind that are done.
    done: IdSet<NodeIdx>,
    /// It had a node to work on when it began.
    pub worked: bool,
    /// It had a node to pull to when it began.
    pulled: bool,
    /// Requests that it answers when it ends.
    pub requests: Vec<Request>,
    /// `status.handlingRefresh`
    pub refresh: Option<String>,
    /// The removal of an annotation is in flight; it is asked for again then.
    pub clearing: Option<Tick>,
}

impl Operation {
    /// An operation without nodes.
    pub fn new(kind: Kind, stamp: Stamp, started: Timestamp, requests: Vec<Request>) -> Self {
        Self {
            kind,
            stamp,
            started,
            pulls: IdSet::default(),
            removes: IdSet::default(),
            done: IdSet::default(),
            worked: false,
            pulled: false,
            requests,
            refresh: None,
            clearing: None,
        }
    }

    /// Sets its nodes. None of them is done.
    pub fn enlist(&mut self, pulls: IdSet<NodeIdx>, removes: IdSet<NodeIdx>) {
        self.pulled = !pulls.is_empty();
        self.worked = self.pulled || !removes.is_empty();
        self.done.clear();
        (self.pulls, self.removes) = (pulls, removes);
    }

    /// Have all nodes left that it was to pull to?
    pub fn is_deserted(&self) -> bool {
        self.pulled && self.pulls.is_empty()
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.pulls.len_with(&self.removes)
    }

    /// How many nodes are not done.
    pub fn open(&self) -> usize {
        let mut nodes = self.pulls.clone();
        nodes.union_with(&self.removes);
        nodes.without(&self.done).count()
    }

    /// Is a node not done?
    pub fn awaits(&self, node: NodeIdx) -> bool {
        (self.pulls.contains(node) || self.removes.contains(node)) && !self.done.contains(node)
    }

    /// Is every node done?
    pub fn is_complete(&self) -> bool {
        self.pulls.is_subset(&self.done) && self.removes.is_subset(&self.done)
    }

    /// Notes whether a node is done.
    pub fn set_done(&mut self, node: NodeIdx, done: bool) {
        if done {
            self.done.insert(node);
        } else {
            self.done.remove(node);
        }
    }

    /// A node leaves: the operation no longer waits for it.
    pub fn leave(&mut self, node: NodeIdx) {
        self.pulls.remove(node);
        self.removes.remove(node);
    }
}
