//! Checks: what is there, whose pins there are, how full the disk is.

use std::collections::BTreeMap;

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use super::{Caller, Queue};
use crate::{
    Answer, Call, Checked, Command, PullResult, Report, StreamId, Support, Tick, classify,
    removal::normalized,
    task::{State, Task},
};

/// The runtime does not say.
#[derive(Debug)]
struct PinsUnknown;

/// One request.
#[derive(Debug)]
pub(super) struct Check {
    pub stream: StreamId,
    names: Vec<String>,
    /// Of the names that the runtime was asked about.
    asked: usize,
    answers: BTreeMap<usize, Checked>,
    /// `None`: not answered yet. Inside: the ids, or that they are not to be had.
    pins: Option<Result<Vec<String>, PinsUnknown>>,
}

impl Check {
    /// Names that it keeps in memory.
    pub fn size(&self) -> usize {
        self.names.len()
    }
}

impl Queue {
    pub(super) fn take_check(&mut self, stream: StreamId, names: Vec<String>, now: Tick) {
        self.counter += 1;
        let id = self.counter;
        let pins = self.facts.pins != Support::No;
        let check = Check {
            stream,
            names,
            asked: 0,
            answers: BTreeMap::new(),
            pins: (!pins).then(|| Ok(Vec::new())),
        };
        self.checks.insert(id, check);
        if pins {
            self.call(Caller::CheckPins(id), Call::Pins);
        }
        self.want_disk(now);
        self.finish_check(id);
    }

    pub(super) fn next_in_check(&mut self, id: u64) -> Option<(usize, String)> {
        let check = self.checks.get_mut(&id)?;
        let name = check.names.get(check.asked)?;
        let name = ImageRef::parse(name).map_or_else(|_| name.clone(), |i| i.runtime_name());
        check.asked += 1;
        Some((check.asked - 1, name))
    }

    pub(super) fn check_answered(&mut self, at: u64, index: usize, answer: Answer) {
        let Some(check) = self.checks.get(&at) else {
            return;
        };
        let unknown = |message: &str| Checked::Unknown {
            reason: failure::IMAGE_INSPECT_ERROR.to_owned(),
            message: classify::tidy(message),
        };
        let saw = match answer {
            Answer::Inspected(Ok(Some(image))) => Checked::Present(image),
            Answer::Inspected(Ok(None)) => self.absent(&normalized(&check.names[index])),
            Answer::Inspected(Err(error)) => unknown(&error.message),
            _ => unknown("the runtime answered another question"),
        };
        if let Some(check) = self.checks.get_mut(&at) {
            check.answers.insert(index, saw);
        }
        self.finish_check(at);
    }

    pub(super) fn check_pins_answered(&mut self, at: u64, answer: Answer) {
        let ours = match answer {
            Answer::Pins(Ok(ours)) => Ok(ours),
            _ => Err(PinsUnknown),
        };
        if let Some(check) = self.checks.get_mut(&at) {
            check.pins = Some(ours);
        }
        self.finish_check(at);
    }

    /// What is known of an image that is not there.
    fn absent(&self, image: &str) -> Checked {
        let tasks = || self.tasks.of(image).map(|(_, task)| task);
        if tasks().any(Task::holds_name) {
            return Checked::Pulling;
        }
        if tasks().any(|task| !task.finished()) {
            return Checked::Queued;
        }
        tasks()
            .find_map(|task| match &task.state {
                State::Finished(PullResult::Failed { reason, message }, _) => {
                    let (reason, message) = (reason.clone(), message.clone());
                    Some(Checked::Failed { reason, message })
                }
                _ => None,
            })
            .unwrap_or(Checked::Absent)
    }

    /// Answers a check of which everything is known.
    pub(super) fn finish_check(&mut self, at: u64) {
        let known = self
            .checks
            .get(&at)
            .is_some_and(|check| check.answers.len() == check.names.len() && check.pins.is_some());
        if !known || self.disk.awaited_by_checks(self.polled) {
            return;
        }
        if let Some(check) = self.checks.remove(&at) {
            let pins_unknown = matches!(check.pins, Some(Err(PinsUnknown)));
            let report = Report {
                images: check.answers.into_values().collect(),
                pinned_by_us: check.pins.and_then(Result::ok).unwrap_or_default(),
                pins_unknown,
                highest_term: self.term,
                disk: self.disk.known(),
                watermark: self.settings.disk_watermark.unwrap_or(100),
                pins: self.facts.pins,
                peers: self.facts.peers,
            };
            self.replies.push(Command::Checked(check.stream, report));
            self.replies.push(Command::Done(check.stream));
        }
    }

    /// The disk was observed: some checks waited for that alone.
    pub(super) fn finish_checks(&mut self) {
        let ids: Vec<u64> = self.checks.keys().copied().collect();
        for id in ids {
            self.finish_check(id);
        }
    }
}
