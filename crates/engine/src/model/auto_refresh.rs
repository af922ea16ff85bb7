//! Automatic refreshes.

use kubefledged_api_types::Timestamp;

use crate::{ids::Stamp, vocabulary::Tick};

/// An automatic refresh in progress. It is quiet until it finds something to pull; then it becomes an
/// operation.
#[derive(Clone, Copy, Debug)]
pub struct QuietRefresh {
    /// Observations must be at least this new.
    pub since: Stamp,
    /// It has found something to pull.
    pub must_pull: bool,
}

/// Automatic refreshes.
#[derive(Debug, Default)]
pub struct AutoRefresh {
    /// When the next one is due; `None`: it is not scheduled.
    pub next: Option<Tick>,
    /// The one in progress.
    pub quiet: Option<QuietRefresh>,
    /// An operation failed: when every node answers, all are asked again, and before that nothing has healed.
    pub owed: bool,
    /// `status.lastRefreshTime`
    pub last: Option<Timestamp>,
}

impl AutoRefresh {
    /// Stamp of the refresh in progress.
    pub fn since(&self) -> Option<Stamp> {
        self.quiet.map(|quiet| quiet.since)
    }

    /// The refresh in progress has found something to pull.
    pub fn found(&mut self) {
        if let Some(quiet) = &mut self.quiet {
            quiet.must_pull = true;
        }
    }
}
