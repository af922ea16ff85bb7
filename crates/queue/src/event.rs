//! What goes into the queue and what comes out.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    facts::{Container, Disk, Image, RuntimeFacts, Support},
    sharing::{Progress, Sharing, Sources, Transfer},
};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// A present image will do.
    #[default]
    IfNotPresent,
    /// The registry is asked.
    Always,
}

/// What a pull does about protection from the kubelet's garbage collection. Of several requests for the
/// same pull the strongest retention wins: the last of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Leaves the pin as it is.
    #[default]
    Leave,
    /// Pins the image.
    Pinned,
}

/// Whether it is remembered that we pulled an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// It is not.
    #[default]
    No,
    /// It is, if the pull brings the image.
    Yes,
}

/// One image of a pull request.
#[derive(Clone, Debug, Default)]
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
    /// Used without a deadline, while the bytes of the pull cannot be seen arriving.
    pub fallback_deadline: Option<Duration>,
    /// Protection from garbage collection.
    pub retention: Retention,
    /// Tried in this order; empty: those of the node, and without any anonymously.
    pub credentials: Vec<CredentialId>,
    /// The same for the same credentials.
    pub credential_hash: u64,
    /// Whether it is remembered that we pulled the image.
    pub mark: Mark,
    /// Which cache asks: caches take turns. Empty: it is not known, and each batch counts as one.
    pub cache: String,
    /// Layers from other nodes and for them.
    pub sharing: Sharing,
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
        /// Names that some cache desires on this node.
        desired: Vec<String>,
        /// What may go together with `references`.
        releasable: Vec<String>,
        /// Those of `references` that go only if we pulled them.
        only_pulled: Vec<String>,
        /// Take our pins off images that nothing in `desired` names, also where they are kept.
        unpin_ours: bool,
        /// Ids from which our pin is taken; their outcomes follow those of `references`.
        unpin: Vec<String>,
    },
    /// Check which images are there.
    Check(StreamId, Vec<String>),
    /// End the interest of batches in names; no names: in all of theirs.
    Cancel(StreamId, Authority, Vec<(u64, Vec<String>)>),
    /// Nobody listens there any more. Pulls go on.
    Closed(StreamId),
    /// A runtime call was answered.
    Answered(CallId, Answer),
    /// The runtime is known now, or is another.
    Runtime(RuntimeFacts),
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
    /// To [`Call::Pull`]: where the layers came from. What the runtime says of the image is not used.
    Pulled(Result<Sources, CallError>),
    /// To [`Call::Containers`].
    Containers(Result<Vec<Container>, CallError>),
    /// To [`Call::Remove`] and [`Call::Untag`].
    Removed(Result<(), CallError>),
    /// To [`Call::Credentials`]: what the node's credential providers gave, and what went wrong.
    Credentials(Vec<CredentialId>, Option<String>),
    /// To [`Call::FsInfo`].
    Disk(Result<Disk, CallError>),
    /// To [`Call::Pins`]: ids.
    Pins(Result<Vec<String>, CallError>),
    /// To [`Call::Trace`].
    Traced(Result<bool, CallError>),
    /// To [`Call::Mark`].
    Marked(Result<(), CallError>),
    /// To [`Call::Pin`]. Success says nothing of its effect.
    Pinned(Result<(), CallError>),
    /// To [`Call::Progress`]: by name, for the pulls that could be seen.
    Progress(Result<BTreeMap<String, Progress>, CallError>),
}

/// A name of an id that stands for several images, of which the others stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untag {
    /// The id.
    pub id: String,
    /// The name, with a tag or a digest.
    pub name: String,
    /// Names with digests that somebody wants as such. Any other one goes with the last tag of its repository.
    pub wanted: Vec<String>,
}

/// One runtime call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Is this image there?
    Inspect(String),
    /// Pull it.
    Pull(String, Option<CredentialId>, Sharing),
    /// All containers.
    Containers,
    /// Remove this name or id.
    Remove(String),
    /// Remove a name alone.
    Untag(Untag),
    /// Credentials that this node has for an image. Asked for when those of the request are used up.
    Credentials(String),
    /// How full is the file system of the images?
    FsInfo,
    /// Which ids carry a pin of ours?
    Pins,
    /// Put our pin on an id, or take it off.
    Pin(String, bool),
    /// Did we pull what lies under this name, as far as that was to be remembered?
    Trace(String),
    /// Remember that we pulled this name.
    Mark(String),
    /// How far are the pulls of these names?
    Progress(Vec<String>),
}

impl Call {
    /// The answer to a call that failed.
    pub fn failed(&self, error: CallError) -> Answer {
        match self {
            Self::Inspect(_) => Answer::Inspected(Err(error)),
            Self::Pull(..) => Answer::Pulled(Err(error)),
            Self::Containers => Answer::Containers(Err(error)),
            Self::Remove(_) | Self::Untag(_) => Answer::Removed(Err(error)),
            Self::Credentials(_) => Answer::Credentials(Vec::new(), Some(error.message)),
            Self::FsInfo => Answer::Disk(Err(error)),
            Self::Pins => Answer::Pins(Err(error)),
            Self::Mark(_) => Answer::Marked(Err(error)),
            Self::Trace(_) => Answer::Traced(Err(error)),
            Self::Pin(..) => Answer::Pinned(Err(error)),
            Self::Progress(_) => Answer::Progress(Err(error)),
        }
    }
}

/// What became of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullResult {
    /// It was there.
    Present,
    /// It was pulled.
    Pulled,
    /// Reason and sentence.
    Failed {
        /// A reason of `names::failure`.
        reason: String,
        /// What the runtime said, at most 1 KiB.
        message: String,
    },
    /// No request asks for it any more.
    Cancelled,
    /// A newer intent removes it.
    Superseded,
}

/// What became of the request to pin an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PinResult {
    /// There was none, or the image is not there.
    #[default]
    NotAsked,
    /// It is protected, by us or by somebody else.
    Pinned,
    /// This runtime does not let us.
    Unsupported,
    /// The disk is above the watermark: nothing new is pinned.
    DiskPressure(String),
    /// What the runtime said.
    Failed(String),
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
    /// What became of the request to pin it.
    pub pin: PinResult,
    /// Runtime pull calls made.
    pub attempts: u32,
    /// From the task's slot; zero where it needed none.
    pub took: Duration,
    /// Where the layers came from.
    pub sources: Sources,
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
        /// `InUse`, `Pinned`, `SharedImage` or `NotPulled`.
        reason: String,
        /// Why.
        message: String,
    },
    /// Reason and sentence.
    Failed {
        /// A reason of `names::failure`.
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
        /// A reason of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
    /// The runtime could not say.
    Unknown {
        /// A reason of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
}

/// The whole answer to a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of its names.
    pub images: Vec<Checked>,
    /// Ids that carry our pin.
    pub pinned_by_us: Vec<String>,
    /// The runtime did not say which do.
    pub pins_unknown: bool,
    /// The highest term seen.
    pub highest_term: u64,
    /// How full the file system of the images is, if that can be seen.
    pub disk: Option<Disk>,
    /// Percentage in use from which on nothing is pulled or pinned.
    pub watermark: u8,
    /// Whether images can be pinned here.
    pub pins: Support,
    /// Whether layers can be taken from other nodes and handed on.
    pub peers: Support,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Call the runtime; answered by [`Event::Answered`].
    Call(CallId, Call),
    /// End a pull; its answer still comes, and until then its slot and its name are taken. Or a
    /// question for credentials, whose answer interests nobody.
    CancelCall(CallId),
    /// A pull request was taken; so many images attached to tasks that were there.
    Accepted(StreamId, u32),
    /// Outcomes of a pull request.
    Pulled(StreamId, Vec<PullOutcome>),
    /// How far pulls of a request are.
    Transfers(StreamId, Vec<Transfer>),
    /// Outcomes of a removal.
    Removed(StreamId, Vec<RemoveOutcome>),
    /// The whole answer to a check.
    Checked(StreamId, Report),
    /// The whole answer to a cancel: so many interests ended.
    Cancelled(StreamId, u32),
    /// The request comes from a leader that has been replaced in this term.
    Refused(StreamId, u64),
    /// The request is more than is kept in memory; nothing of it was taken.
    Overloaded(StreamId),
    /// Nothing more comes.
    Done(StreamId),
}
