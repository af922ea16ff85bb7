//! Which operation is due, how it begins and how it ends.

use kubefledged_api_types::{
    PurgeStatus, Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION, message},
};

use crate::{
    ids::Stamp,
    model::{
        backoff,
        cache::Cache,
        desired::Desired,
        last_operation::{LastOperation, Phase},
        node_status::Flags,
        operation::{Kind, Operation, Request},
    },
    vocabulary::{PullState, Tick},
};

/// Longest token that the status remembers whole, in bytes.
const MAX_TOKEN: usize = 256;

/// A token as the status remembers it: whole, or as a hash if it is too long.
fn remembered(token: &str) -> String {
    if token.len() <= MAX_TOKEN {
        return token.to_owned();
    }
    format!("hash-{:016x}", backoff::hash(0, &[token.as_bytes()]))
}

/// The request that an annotation makes. An empty value always requests; a token requests once.
fn requested(value: Option<&String>, handled: Option<&String>) -> Option<String> {
    let new = |value: &&String| value.is_empty() || Some(&remembered(value)) != handled;
    value.filter(new).cloned()
}

impl Cache {
    /// The rule for what begins an operation, and which: a requested purge, a new object, a change of what is
    /// desired, a requested refresh, in this order. A purge runs to its end; a newer request supersedes every other
    /// operation. Automatic refreshes begin in [`super::refresh`].
    pub fn due(&self) -> Option<Kind> {
        let busy = self.object.deleting || self.runs(Kind::Purge);
        if busy || self.spec().suspend || self.invalid.is_some() {
            return None;
        }
        if self.requested_purge().is_some() {
            return Some(Kind::Purge);
        }
        if self.last.phase == Phase::None {
            return Some(Kind::Create);
        }
        // An operation that kube-fledged wrote and that is none of ours begins anew.
        if self.desired_changed() || (self.last.subject.kind().is_none() && !self.history.purged) {
            return Some(Kind::Update);
        }
        let free = self.operation.is_none();
        (free && self.requested_refresh().is_some()).then_some(Kind::Refresh)
    }

    /// Is something else desired than what the last operation covered? A purged cache compares images and selectors
    /// alone.
    fn desired_changed(&self) -> bool {
        match &self.history.purge {
            Some(purge) if self.history.purged => purge.cache_spec_hash != self.desired.purge_hash,
            _ => self.history.covered != Some(self.desired.hash),
        }
    }

    fn requested_purge(&self) -> Option<String> {
        let handled = self.history.handled_purge.as_ref();
        requested(self.object.purge.as_ref(), handled)
    }

    fn requested_refresh(&self) -> Option<String> {
        let handled = self.history.handled_refresh.as_ref();
        requested(self.object.refresh.as_ref(), handled)
    }

    /// Continues the operation that the status says was running, after a restart.
    pub fn resume(&mut self, stamp: Stamp) {
        let kind = self.last.subject.kind();
        if self.last.phase == Phase::Processing
            && let (Some(kind), Some(started)) = (kind, self.last.started)
        {
            let mut operation = self.new_operation(kind, stamp, started);
            operation
                .refresh
                .clone_from(&self.object.status.handling_refresh);
            operation
                .requests
                .retain(|request| self.began_with(request));
            self.operation = Some(operation);
            if kind == Kind::Purge {
                self.applied.remove_others(|_| false, started);
            }
            return;
        }
        if self.last.phase == Phase::Failed && kind.is_some_and(Kind::pulls) {
            self.refresh.owed = true;
        }
        if kind == Some(Kind::Purge) {
            // kube-fledged wrote no hash: its purge holds for the spec that is there.
            let hash = self.desired.purge_hash.clone();
            self.history.purge.get_or_insert_with(|| PurgeStatus {
                cache_spec_hash: hash,
                ..PurgeStatus::default()
            });
            self.history.purged = true;
            if self.last.phase == Phase::Failed {
                let since = self.last.started.unwrap_or_default();
                self.applied.remove_others(|_| false, since);
            }
        }
        let purge = self.history.purge.as_ref();
        // It stays purged while its spec cannot be used.
        self.history.purged |= kind.is_none() && purge.is_some_and(|p| p.completion_time.is_some());
        let observed = self.object.status.observed_generation;
        if self.last.phase == Phase::None && observed.is_none() {
            // A rebuilt cluster brings back objects with old tokens. There is nothing to purge, and the create
            // covers a refresh.
            let token =
                |value: &Option<String>| value.as_deref().filter(|v| !v.is_empty()).map(remembered);
            self.history.handled_refresh = token(&self.object.refresh);
            if !self.object.purge_came_later {
                self.history.handled_purge = token(&self.object.purge);
            }
        }
    }

    /// Does the status say that the operation in progress began because of this request? What was requested after it
    /// began is done after it.
    fn began_with(&self, request: &Request) -> bool {
        let status = &self.object.status;
        let value = remembered(&request.value);
        if status.observed_generation.is_none() {
            // kube-fledged wrote it, and does not say.
            return true;
        }
        match request.annotation {
            PURGE_ANNOTATION => status
                .purge
                .as_ref()
                .is_some_and(|purge| purge.token == value),
            _ => status.handling_refresh.as_ref() == Some(&value),
        }
    }

    /// `status.handlingRefresh`
    pub fn handling_refresh(&self) -> Option<String> {
        self.operation.as_ref()?.refresh.clone()
    }

    /// Begins an operation. The status says so first; work on nodes begins when that is written.
    pub fn begin(&mut self, kind: Kind, stamp: Stamp, now: Timestamp) {
        // The start time is part of the freshness token: it is never the same twice.
        let started = match self.last.started {
            Some(last) if last >= now => Timestamp(last.0 + 1),
            _ => now,
        };
        if kind.pulls() {
            self.history.purged = false;
            self.history.purge = None;
            if self.writer.oversize.is_some() {
                let written = &self.object.status;
                self.applied.drop_unrecorded(&self.desired, written);
            }
            self.applied.remove_undesired(&self.desired, now);
            self.applied.apply(&self.desired);
            self.history.covered = Some(self.desired.hash);
        } else {
            let token = self.requested_purge().filter(|_| kind == Kind::Purge);
            self.history.purge = Some(PurgeStatus {
                cache_spec_hash: self.desired.purge_hash.clone(),
                token: token.as_deref().map(remembered).unwrap_or_default(),
                start_time: Some(started),
                completion_time: None,
            });
        }
        if kind == Kind::Purge {
            if self.last.phase == Phase::None {
                // What the create would have listed goes too.
                self.applied.apply(&self.desired);
            }
            if self.writer.oversize.is_some() {
                let written = &self.object.status;
                self.applied.drop_unrecorded(&Desired::default(), written);
            }
            self.applied.remove_others(|_| false, now);
            if let Some(sources) = &mut self.sources {
                sources.retention.forget_unnamed();
                sources.stale = true;
            }
            self.history.covered = Some(self.desired.hash);
        }
        let mut operation = self.new_operation(kind, stamp, started);
        let mut requests = operation.requests.iter();
        let refresh = requests.find(|request| request.annotation == REFRESH_ANNOTATION);
        operation.refresh = refresh.map(|request| remembered(&request.value));
        self.operation = Some(operation);
        self.refresh.quiet = None;
        self.refresh.owed = false;
        self.applied.abandoned = false;
        self.compare_names();
        self.last = LastOperation::begin(kind, started);
    }

    fn new_operation(&self, kind: Kind, stamp: Stamp, started: Timestamp) -> Operation {
        let request = |annotation| move |value| Request { annotation, value };
        let purge = self.requested_purge().map(request(PURGE_ANNOTATION));
        let refresh = self.requested_refresh().map(request(REFRESH_ANNOTATION));
        let requests = match kind {
            // A purge answers a refresh that was requested at the same time.
            Kind::Purge => purge.into_iter().chain(refresh).collect(),
            Kind::Refresh => refresh.into_iter().collect(),
            // A create has pulled everything; an update has not asked the registry.
            Kind::Create => refresh
                .into_iter()
                .filter(|request| !request.value.is_empty())
                .collect(),
            Kind::Update | Kind::Delete => Vec::new(),
        };
        Operation::new(kind, stamp, started, requests)
    }

    /// The next annotation that must be removed before the end of the operation may be written.
    pub fn to_clear(&self, now: Tick) -> Option<&Request> {
        let operation = self.operation.as_ref()?;
        if operation.clearing.is_some_and(|again| again > now) {
            return None;
        }
        let mut requests = operation.requests.iter();
        requests.find(|request| request.value.is_empty())
    }

    /// Is every node done, the beginning written, and are the workloads read that name images?
    pub fn is_complete(&self) -> bool {
        let operation = self.operation.as_ref();
        let opening = self.reads_workloads();
        let complete = operation.is_some_and(Operation::is_complete);
        complete && !self.held() && self.recorded() && !(opening && self.runs_pulls())
    }

    fn runs_pulls(&self) -> bool {
        self.operation.as_ref().is_some_and(|op| op.kind.pulls())
    }

    /// Ends an operation that is complete and whose annotations are removed. `failed`: some node of it lacks an
    /// image, or could not refresh one.
    pub fn finish(&mut self, failed: bool, now: Timestamp) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        for request in &operation.requests {
            if request.value.is_empty() {
                continue;
            }
            let handled = match request.annotation {
                PURGE_ANNOTATION => &mut self.history.handled_purge,
                _ => &mut self.history.handled_refresh,
            };
            *handled = Some(remembered(&request.value));
        }
        if operation.kind == Kind::Purge {
            self.history.purged = true;
            if let Some(purge) = &mut self.history.purge {
                purge.completion_time = Some(now);
            }
        } else {
            self.refresh.last = Some(now);
        }
        let silent = |node| self.row(node).state == PullState::Unreachable;
        self.refresh.owed = operation.pulls.iter().any(silent);
        let (phase, message) = if failed {
            (Phase::Failed, message::PULL_FAILED)
        } else if self.applied.removals_failed() {
            (Phase::Failed, message::DELETE_FAILED)
        } else if !operation.worked || operation.is_deserted() {
            (Phase::NothingDone, message::NOTHING_DONE)
        } else if operation.kind.pulls() {
            (Phase::Succeeded, message::PULLED)
        } else {
            (Phase::Succeeded, message::DELETED)
        };
        self.last.end(phase, message, now.max(operation.started));
    }

    /// A failure healed, or a node joined after there was nothing to do: status and message follow; reason and
    /// start time stay.
    pub fn heal(&mut self, now: Timestamp) {
        let unwell = matches!(
            self.last.phase,
            Phase::Failed | Phase::NothingDone | Phase::Aborted | Phase::Unknown
        );
        let idle = self.operation.is_none() && !self.object.deleting && !self.nodes.first_round;
        let counts = &self.nodes.counts;
        let removes = counts.flagged(Flags::REMOVALS_OPEN) > 0 || self.applied.removals_failed();
        if !unwell || !idle || removes {
            return;
        }
        let asked = !self.refresh.owed && self.refresh.quiet.is_none();
        let whole = counts.nodes.desired > 0 && counts.nodes.ready == counts.nodes.desired;
        let message = match self.last.subject.kind() {
            Some(kind) if kind.pulls() && whole && counts.failing == 0 && asked => message::PULLED,
            Some(Kind::Purge) if self.last.phase == Phase::Failed && !self.applied.abandoned => {
                message::DELETED
            }
            _ => return,
        };
        self.last.end(Phase::Succeeded, message, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_token_is_remembered_as_its_hash() {
        let long = "x".repeat(10_000);
        assert!(remembered(&long).len() < 30);
        assert_eq!(requested(Some(&long), Some(&remembered(&long))), None);
        assert_eq!(
            requested(Some(&"t".to_owned()), Some(&remembered(&long))),
            Some("t".into())
        );
    }
}
