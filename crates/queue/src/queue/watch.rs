//! What is observed while pulls run: the disk, and the bytes that arrive.

use std::{collections::BTreeMap, time::Duration};

use kubefledged_api_types::names::failure;

use super::{Caller, Queue};
use crate::{
    Answer, Bytes, Call, CallId, Disk, Tick, pins,
    task::{self, TaskKey},
};

/// How long an observation of the disk holds. A pull fills it, and the kubelet frees it.
const DISK_AGE: Duration = Duration::from_secs(5);

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct DiskObservation {
    call: Option<CallId>,
    /// The last answer, and when it came. An answer without figures: it cannot be seen.
    seen: Option<(Option<Disk>, Tick)>,
}

impl DiskObservation {
    /// The answer is awaited.
    pub fn awaited(&self) -> bool {
        self.call.is_some()
    }

    /// As it was last seen.
    pub fn known(&self) -> Option<Disk> {
        self.seen.and_then(|(disk, _)| disk)
    }

    fn fresh(&self, now: Tick) -> bool {
        self.seen.is_some_and(|(_, at)| at.after(DISK_AGE) > now)
    }
}

impl Queue {
    // === disk

    /// Before a pull begins.
    pub(super) fn look_at_disk(&mut self, now: Tick) {
        if self.settings.disk_watermark.is_some() && self.disk_matters(now) {
            self.want_disk(now);
        }
    }

    pub(super) fn want_disk(&mut self, now: Tick) {
        let off = self.settings.disk_watermark.is_none();
        if !off && !self.disk.awaited() && !self.disk.fresh(now) {
            self.disk.call = Some(self.call(Caller::Disk, Call::FsInfo));
        }
    }

    /// Why nothing is pulled or pinned now.
    pub(super) fn full(&self) -> Option<String> {
        pins::full(self.disk.known()?, self.settings.disk_watermark?)
    }

    pub(super) fn disk_answered(&mut self, answer: &Answer, now: Tick) {
        let disk = match answer {
            Answer::Disk(Ok(disk)) => Some(*disk),
            _ => None,
        };
        self.disk = DiskObservation {
            call: None,
            seen: Some((disk, now)),
        };
        self.finish_checks();
    }

    // === bytes

    /// One observation for all pulls, when the first of them is due.
    pub(super) fn look_at_bytes(&mut self, now: Tick) {
        if !self.facts.progress || self.bytes_awaited {
            return;
        }
        let pulls = || {
            self.tasks
                .iter()
                .filter_map(|(k, t)| Some((k, t, t.watch_at()?)))
        };
        if pulls().any(|(.., at)| at <= now) {
            let names = pulls().map(|(_, task, _)| task.name.clone()).collect();
            self.bytes_awaited = true;
            self.call(Caller::Progress, Call::Progress(names));
        }
    }

    pub(super) fn bytes_answered(&mut self, answer: Answer, now: Tick) {
        self.bytes_awaited = false;
        let seen = match answer {
            Answer::Progress(Ok(seen)) => seen,
            _ => BTreeMap::new(),
        };
        let mut stalled: Vec<(TaskKey, Bytes)> = Vec::new();
        let limit = self.settings.no_progress;
        let pulls = self
            .tasks
            .active()
            .filter(|(_, task)| task.watch_at().is_some());
        let pulls: Vec<TaskKey> = pulls.map(|(key, _)| key.clone()).collect();
        for key in pulls {
            let ended = self.tasks.change(&key, |task| {
                let bytes = seen.get(&task.name).copied();
                let still = task.saw(bytes, now);
                bytes.filter(|_| still >= limit)
            });
            if let Some(bytes) = ended.flatten() {
                stalled.push((key, bytes));
            }
        }
        for (key, bytes) in stalled {
            self.abandon_call(&key);
            let why = pins::stalled(bytes, limit);
            self.finish(&key, task::failed(failure::NO_PROGRESS, &why), now);
        }
    }
}
