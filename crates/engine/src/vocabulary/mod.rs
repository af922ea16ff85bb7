//! The words that the engine and the world around it share: events in, commands out, and the reasons
//! behind decisions. Plain data without behaviour.

mod command;
mod event;
mod name;
mod object;
mod outcome;
mod reason;
mod settings;
mod workload;

pub use command::{
    Batch, CancelPulls, Command, ConditionWrite, CredentialScope, MissingImage, NameList,
    NodeTransition, PeerNode, PeerPull, Pin, PullItem, Severity, Work,
};
pub use event::{BatchEnd, Event, KnownBudget, SecretProblems, Source, WriteError};
pub use kubefledged_api_types::{GateReason, Tick};
pub use name::{BatchId, CacheKey, NodeName, Now};
pub use object::{
    CacheObject, InvalidCache, NodeCondition, NodeFacts, PlacedTaint, Placement, Puller, Taint,
    Toleration,
};
pub use outcome::{
    CheckReport, Disk, ImageOutcome, ImageResult, MovedBytes, ObservedImage, PinResult, Transfer,
};
pub use reason::{
    FailureClass, Ineligible, KeptReason, PullBlock, PullReason, PullState, RemovalBlock,
};
pub use settings::{GateSettings, PeerSettings, Settings};
pub use workload::{Labels, WatchFailure, WatchId, Watched, Workload, WorkloadImage, WorkloadKey};
