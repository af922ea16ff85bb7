//! What a request does to the queue: it is admitted, and its images become tasks, removals and
//! interests.

use std::{collections::BTreeSet, time::Duration};

use kubefledged_api_types::names::failure;
use kubefledged_image::ImageRef;

use super::{Queue, outcome};
use crate::{
    Authority, Command, PinResult, PullOutcome, PullRequest, PullResult, Sources, StreamId, Tick,
    intent::Intent,
    removal::{Item, Removal},
    task::{self, Interest, State, Task, TaskKey},
};

/// How long an interest of an older term lives on without being asked for again.
const TERM_GRACE: Duration = Duration::from_secs(60);

/// What became of one image of a pull request.
enum Taken {
    /// It has a task of its own now.
    New,
    /// Its pull existed already; with the outcome, if it ended unheard.
    Attached(Option<PullOutcome>),
    /// It ends at once and has no task.
    Ended(PullResult),
}

impl Queue {
    /// Refuses what would take too much memory.
    pub(super) fn has_room(&mut self, stream: StreamId, more: usize) -> bool {
        let most = self.settings.most_open;
        let mut load = self.load() + more;
        // What is only remembered makes room.
        while load > most && self.tasks.forget_oldest() {
            load -= 1;
        }
        let refused = load > most;
        if refused {
            self.replies.push(Command::Overloaded(stream));
        }
        !refused
    }

    /// Images of requests that are kept in memory. Checks have as much room of their own.
    fn load(&self) -> usize {
        let tasks = self
            .tasks
            .iter()
            .map(|(_, task)| task.interests.len().max(1));
        let removals = self.removals.iter().map(Removal::size);
        tasks.chain(removals).sum()
    }

    /// Refuses leaders that have been replaced.
    pub(super) fn admit(&mut self, stream: StreamId, authority: Authority, now: Tick) -> bool {
        if authority.term < self.term {
            self.replies.push(Command::Refused(stream, self.term));
            return false;
        }
        if authority.term > self.term {
            self.term = authority.term;
            let end = now.after(TERM_GRACE);
            self.tasks.change_interests(|task| {
                for interest in &mut task.interests {
                    interest.until.get_or_insert(end);
                    self.interests_end.get_or_insert(end);
                }
            });
        }
        true
    }

    pub(super) fn take_pulls(
        &mut self,
        stream: StreamId,
        authority: Authority,
        images: Vec<PullRequest>,
        now: Tick,
    ) {
        self.open.insert(stream, images.len());
        let mut attached = 0;
        let mut outcomes = Vec::new();
        for (index, request) in images.into_iter().enumerate() {
            let interest = Interest {
                authority,
                reference: request.reference.clone(),
                stream: Some(stream),
                index,
                until: None,
            };
            match self.take_pull(interest, request, now) {
                Taken::New => {}
                Taken::Attached(outcome) => {
                    attached += 1;
                    outcomes.extend(outcome);
                }
                Taken::Ended(result) => outcomes.push(PullOutcome {
                    index,
                    result,
                    image: None,
                    pin: PinResult::NotAsked,
                    attempts: 0,
                    took: Duration::ZERO,
                    sources: Sources::default(),
                }),
            }
        }
        self.replies.push(Command::Accepted(stream, attached));
        self.reply_pulled(stream, outcomes);
        self.done_if_empty(stream);
    }

    fn take_pull(&mut self, interest: Interest, mut request: PullRequest, now: Tick) -> Taken {
        let authority = interest.authority;
        if request.cache.is_empty() {
            request.cache = format!("batch {}", authority.batch);
        }
        let image = match ImageRef::parse(&request.reference) {
            Ok(image) => image,
            Err(error) => {
                let message = error.to_string();
                return Taken::Ended(task::failed(failure::INVALID_IMAGE_NAME, &message));
            }
        };
        let key = TaskKey {
            image: image.normalized(),
            policy: request.policy,
            freshness: request.freshness.clone(),
            credentials: request.credential_hash,
        };
        if !self.intents.note(&key.image, authority, Intent::Pull, now) {
            return Taken::Ended(PullResult::Superseded);
        }
        self.counter += 1;
        let name = image.runtime_name();
        let mut task = Task::new(name, &request, self.settings.no_progress, self.counter);
        let mut attached = false;
        if let Some(known) = self.tasks.get(&key) {
            match &known.state {
                // A failure that nobody heard of is reported once. After a failure that was reported, the
                // controller waited before it tried again.
                State::Finished(result @ PullResult::Failed { .. }, _) if !known.heard => {
                    let outcome = outcome(known, &interest, result.clone(), now);
                    self.tasks.hear(&key);
                    return Taken::Attached(Some(outcome));
                }
                // The image was pulled already. It may have been garbage collected since.
                State::Finished(PullResult::Pulled, _) => {
                    attached = true;
                    task = task.remembering(!key.freshness.is_empty());
                }
                State::Finished(..) => {}
                State::Waiting(_) | State::Calling(..) | State::Paused(..) => {
                    self.tasks
                        .change(&key, |known| known.share(&request, interest));
                    return Taken::Attached(None);
                }
            }
        }
        task.interests.push(interest);
        self.tasks.insert(&key, task);
        if attached {
            Taken::Attached(None)
        } else {
            Taken::New
        }
    }

    pub(super) fn take_removal(&mut self, stream: StreamId, removal: Removal, now: Tick) {
        self.open.insert(stream, removal.items.len());
        for item in &removal.items {
            // Where a newer pull stands, the removal finds out when its turn comes.
            let stands = self
                .intents
                .note(item.normal(), removal.authority, Intent::Remove, now);
            if let Item::Name(_, normal) = item
                && stands
            {
                self.supersede(normal, removal.authority, now);
            }
        }
        self.removals.push_back(removal);
        self.done_if_empty(stream);
    }

    /// A newer removal ends pulls of its name at once, also those that run.
    fn supersede(&mut self, image: &str, removal: Authority, now: Tick) {
        let keys: Vec<TaskKey> = self.tasks.of(image).map(|(key, _)| key.clone()).collect();
        let mut replies = Vec::new();
        for key in keys {
            self.tasks.change(&key, |task| {
                for interest in task.supersede(removal) {
                    let outcome = outcome(task, &interest, PullResult::Superseded, now);
                    replies.push((interest.stream, outcome));
                }
            });
            if self.tasks.get(&key).is_some_and(Task::finished) {
                self.tasks.remove(&key);
            }
        }
        self.interests_left = true;
        self.reply(replies);
    }

    pub(super) fn cancel(
        &mut self,
        stream: StreamId,
        authority: Authority,
        cancels: Vec<(u64, Vec<String>)>,
        now: Tick,
    ) {
        let mut replies = Vec::new();
        for (batch, names) in cancels {
            let names: BTreeSet<String> = names.into_iter().collect();
            self.tasks.change_interests(|task| {
                for interest in task.cancel(authority.term, batch, &names) {
                    let outcome = outcome(task, &interest, PullResult::Cancelled, now);
                    replies.push((interest.stream, outcome));
                }
            });
        }
        self.interests_left = true;
        let count = u32::try_from(replies.len()).unwrap_or(u32::MAX);
        self.reply(replies);
        self.replies.push(Command::Cancelled(stream, count));
    }

    pub(super) fn closed(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        self.tasks.change_interests(|task| {
            for interest in &mut task.interests {
                interest.stream = interest.stream.filter(|known| *known != stream);
            }
        });
        // Nobody waits for what is left of a removal; the controller asks again for what it owes.
        for removal in &mut self.removals {
            if removal.stream == Some(stream) {
                removal.stream = None;
            }
        }
        self.checks.retain(|_, check| check.stream != stream);
    }
}
