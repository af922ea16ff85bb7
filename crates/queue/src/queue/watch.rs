//! What is observed while pulls run: the disk, and the bytes that arrive.

use std::{collections::BTreeMap, time::Duration};

use kubefledged_api_types::names::failure;

use super::{Caller, Queue};
use crate::{
    Answer, Bytes, Call, CallId, Command, Disk, Progress, StreamId, Tick, Transfer, disk, pins,
    task::{self, Interest, Task, TaskKey},
};

/// How long an observation of the disk holds. A pull fills it, and the kubelet frees it.
const DISK_AGE: Duration = Duration::from_secs(5);
/// The same for the answer to a check, while a younger one is awaited.
const CHECKS_AGE: Duration = Duration::from_secs(60);
/// Time between two observations of the disk while pulls run.
const DISK_WATCH: Duration = Duration::from_secs(3);

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct DiskObservation {
    call: Option<CallId>,
    /// The last answer, and when it came. An answer without figures: it cannot be seen.
    seen: Option<(Option<Disk>, Tick)>,
}

impl DiskObservation {
    /// The answer is awaited, and the last one holds no longer.
    pub fn awaited(&self, now: Tick) -> bool {
        self.call.is_some() && !self.fresh(now, DISK_AGE)
    }

    /// A check waits for the answer. A file system that answers slowly does not make a node look unreachable.
    pub fn awaited_by_checks(&self, now: Tick) -> bool {
        self.call.is_some() && !self.fresh(now, CHECKS_AGE)
    }

    /// As it was last seen.
    pub fn known(&self) -> Option<Disk> {
        self.seen.and_then(|(disk, _)| disk)
    }

    /// Nothing so young is known or awaited.
    fn outdated(&self, now: Tick, age: Duration) -> bool {
        self.call.is_none() && !self.fresh(now, age)
    }

    fn fresh(&self, now: Tick, age: Duration) -> bool {
        self.seen.is_some_and(|(_, at)| at.after(age) > now)
    }
}

impl Queue {
    // === disk

    /// Before a pull begins, and every few seconds while one runs.
    pub(super) fn look_at_disk(&mut self, now: Tick) {
        if self.settings.disk_watermark.is_none() {
            return;
        }
        if self.disk.outdated(now, DISK_AGE) && self.disk_matters(now) {
            self.want_disk(now);
        }
        if self.pull_runs() {
            self.want_younger_disk(now, DISK_WATCH);
        }
    }

    pub(super) fn want_disk(&mut self, now: Tick) {
        self.want_younger_disk(now, DISK_AGE);
    }

    fn want_younger_disk(&mut self, now: Tick, age: Duration) {
        if self.settings.disk_watermark.is_some() && self.disk.outdated(now, age) {
            self.disk.call = Some(self.call(Caller::Disk, Call::FsInfo));
        }
    }

    fn pull_runs(&self) -> bool {
        let mut tasks = self.tasks.active();
        tasks.any(|(_, task)| task.pulling().is_some())
    }

    /// When the disk is due to be observed because a pull runs.
    pub(super) fn disk_due(&self) -> Option<Tick> {
        let (_, at) = self.disk.seen?;
        let watched = self.settings.disk_watermark.is_some() && self.disk.call.is_none();
        (watched && self.pull_runs()).then(|| at.after(DISK_WATCH))
    }

    /// Why nothing is pulled or pinned now.
    pub(super) fn full(&self) -> Option<String> {
        disk::full(self.disk.known()?, self.settings.disk_watermark?)
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
        let crossed = disk.zip(self.settings.disk_watermark);
        if let Some(why) = crossed.and_then(|(disk, watermark)| disk::crossed(disk, watermark)) {
            for key in self.pulls_running() {
                self.stop(&key, failure::DISK_PRESSURE, &why, now);
            }
        }
    }

    /// The pulls that run, the oldest first.
    fn pulls_running(&self) -> Vec<TaskKey> {
        let running = self.tasks.active();
        let running = running.filter(|(_, task)| task.pulling().is_some());
        let mut running: Vec<(&TaskKey, &Task)> = running.collect();
        running.sort_by_key(|(_, task)| task.age);
        running.into_iter().map(|(key, _)| key.clone()).collect()
    }

    fn stop(&mut self, key: &TaskKey, reason: &str, why: &str, now: Tick) {
        self.abandon_call(key);
        self.finish(key, task::failed(reason, why), now);
    }

    /// Pulls of which so much is still to come that it cannot fit.
    fn stop_what_does_not_fit(&mut self, now: Tick) {
        let Some((disk, watermark)) = self.disk.known().zip(self.settings.disk_watermark) else {
            return;
        };
        let mut others = 0;
        for key in self.pulls_running() {
            let Some(bytes) = self.tasks.get(&key).and_then(Task::bytes) else {
                continue;
            };
            match disk::lacks_room(disk, watermark, bytes, others) {
                Some(why) => self.stop(&key, failure::DISK_PRESSURE, &why, now),
                None => others += disk::needs(bytes),
            }
        }
    }

    // === bytes

    /// One observation for all pulls, when the first of them is due.
    pub(super) fn look_at_bytes(&mut self, now: Tick) {
        if !self.facts.progress || self.bytes_awaited {
            return;
        }
        let pulls = || {
            let tasks = self.tasks.active();
            tasks.filter_map(|(_, task)| Some((task, task.watch_at()?)))
        };
        if pulls().any(|(_, at)| at <= now) {
            let names = pulls().map(|(task, _)| task.name.clone()).collect();
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
        let mut news: BTreeMap<StreamId, Vec<Transfer>> = BTreeMap::new();
        let limit = self.settings.no_progress;
        let pulls = self
            .tasks
            .active()
            .filter(|(_, task)| task.watch_at().is_some());
        let pulls: Vec<TaskKey> = pulls.map(|(key, _)| key.clone()).collect();
        for key in pulls {
            let ended = self.tasks.change(&key, |task| {
                let progress = seen.get(&task.name);
                if let Some(progress) = task.news(progress) {
                    tell(&mut news, &task.interests, &progress);
                }
                let bytes = progress.map(|progress| progress.bytes);
                let still = task.saw(bytes, now);
                bytes.filter(|_| still >= limit)
            });
            if let Some(bytes) = ended.flatten() {
                stalled.push((key, bytes));
            }
        }
        let news = news.into_iter();
        let news = news.map(|(stream, transfers)| Command::Transfers(stream, transfers));
        self.replies.extend(news);
        for (key, bytes) in stalled {
            let why = pins::stalled(bytes, limit);
            self.stop(&key, failure::NO_PROGRESS, &why, now);
        }
        self.stop_what_does_not_fit(now);
    }
}

/// Tells those who asked for a pull how far it is.
fn tell(news: &mut BTreeMap<StreamId, Vec<Transfer>>, interests: &[Interest], progress: &Progress) {
    for interest in interests {
        if let Some(stream) = interest.stream {
            let progress = progress.clone();
            let index = interest.index;
            let transfers = news.entry(stream).or_default();
            transfers.push(Transfer { index, progress });
        }
    }
}
