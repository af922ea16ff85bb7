//! What goes into the queue and what comes out.

use std::time::Duration;

/// One request and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One runtime call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A credential that the plumbing keeps: no secret comes in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId(pub u64);

/// Whose request it is, and its place in the order of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Authority {
    /// The leader's.
    pub term: u64,
    /// Rises within a term.
    pub seq: u64,
    /// Unique within a term.
    pub batch: u64,
}

/// Whether a present image will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// It will.
    IfNotPresent,
    /// The registry is asked.
    Always,
}

/// One image of a pull request.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// As the user wrote it.
    pub reference: String,
    /// Whether a present image will do.
    pub policy: Policy,
    /// Pulls with the same token are one.
    pub freshness: String,
    /// Higher first.
    pub priority: i32,
    /// For one attempt, counted from its slot; `None`: only a last limit of six hours.
    pub deadline: Option<Duration>,
    /// Tried in this order; empty: anonymous.
    pub credentials: Vec<CredentialId>,
    /// The same for the same credentials.
    pub credential_hash: u64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Pull images.
    Pull(StreamId, Authority, Vec<PullRequest>),
    /// Remove names.
    Remove {
        /// Where outcomes go.
        stream: StreamId,
        /// Whose request.
        authority: Authority,
        /// What is to go.
        references: Vec<String>,
        /// What some cache wants on this node.
        wanted: Vec<String>,
        /// What may go together with `references`.
        releasable: Vec<String>,
    },
    /// Tell which images are there.
    Check(StreamId, Vec<String>),
    /// End the interest of batches in names; no names: in all of theirs.
    Cancel(StreamId, Authority, Vec<(u64, Vec<String>)>),
    /// Nobody listens there any more. Pulls go on.
    Closed(StreamId),
    /// A runtime call was answered.
    Answered(CallId, Answer),
}

/// An image as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id; with or without `sha256:`, as the runtime writes it.
    pub id: String,
    /// Its names with tags.
    pub tags: Vec<String>,
    /// Its names with digests.
    pub digests: Vec<String>,
    /// In bytes, as the runtime counts them.
    pub size: u64,
    /// Protected from garbage collection.
    pub pinned: bool,
}

/// A container in any state, as far as it keeps an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Whatever the runtime says of its image: id, reference, name.
    pub image: Vec<String>,
}

/// A runtime call that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallError {
    /// The gRPC code's name: `NotFound`, `Unknown`, `Unavailable`, `Cancelled`, ...
    pub code: String,
    /// What the runtime said.
    pub message: String,
}

/// What the runtime answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Call::Inspect`].
    Inspected(Result<Option<Image>, CallError>),
    /// To [`Call::Pull`]; what it says of the image is not looked at.
    Pulled(Result<(), CallError>),
    /// To [`Call::Containers`].
    Containers(Result<Vec<Container>, CallError>),
    /// To [`Call::Remove`].
    Removed(Result<(), CallError>),
}

/// One runtime call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Is this image there?
    Inspect(String),
    /// Pull it.
    Pull(String, Option<CredentialId>),
    /// All containers.
    Containers,
    /// Remove this name or id.
    Remove(String),
}

/// What became of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullResult {
    /// It was there.
    Present,
    /// It was pulled.
    Pulled,
    /// Word and sentence.
    Failed {
        /// One word of `names::failure`.
        reason: String,
        /// What the runtime said, at most 1 KiB.
        message: String,
    },
    /// Nobody wanted it any more.
    Cancelled,
    /// A newer intent removes it.
    Superseded,
}

/// What became of one image of a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullOutcome {
    /// Of the image in the request.
    pub index: usize,
    /// What became of it.
    pub result: PullResult,
    /// As the runtime has it now.
    pub image: Option<Image>,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// From the task's slot; zero where it needed none.
    pub took: Duration,
}

/// What became of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoveResult {
    /// It is gone.
    Removed,
    /// It was not there.
    Absent,
    /// It stays on purpose: reason and sentence.
    Kept {
        /// `InUse`, `Pinned` or `SharedImage`.
        reason: String,
        /// Why.
        message: String,
    },
    /// Word and sentence.
    Failed {
        /// One word of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
    /// A newer intent pulls it.
    Superseded,
}

/// What became of one name of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveOutcome {
    /// Of the name in the request.
    pub index: usize,
    /// What became of it.
    pub result: RemoveResult,
}

/// What a check saw of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Not there.
    Absent,
    /// There.
    Present(Image),
    /// A pull waits.
    Queued,
    /// A pull runs.
    Pulling,
    /// Not there, and the last remembered pull failed.
    Failed {
        /// One word of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
    /// The runtime could not say.
    Unknown {
        /// One word of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Call the runtime; answered by [`Event::Answered`].
    Call(CallId, Call),
    /// End a pull; its answer still comes, and until then its slot and its name are taken.
    CancelCall(CallId),
    /// A pull request was taken; so many images attached to tasks that were there.
    Accepted(StreamId, u32),
    /// Outcomes of a pull request.
    Pulled(StreamId, Vec<PullOutcome>),
    /// Outcomes of a removal.
    Removed(StreamId, Vec<RemoveOutcome>),
    /// The whole answer to a check, in the order of its names, and the highest term seen.
    Checked(StreamId, Vec<Checked>, u64),
    /// The whole answer to a cancel: so many interests ended.
    Cancelled(StreamId, u32),
    /// The request comes from a leader that has been replaced in this term.
    Refused(StreamId, u64),
    /// Nothing more comes.
    Done(StreamId),
}

/// How a runtime removes images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Removes an image with all its names, in use or pinned, without a word.
    #[default]
    Containerd,
    /// Removes a name; the data goes with the bare id.
    Crio,
    /// Wants ids.
    Docker,
}
