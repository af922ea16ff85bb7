//! What follows from the runtime's answers.

use std::time::Duration;

use super::{Caller, Queue};
use crate::{
    Answer, Authority, Call, CallId, Command, PinResult, PullResult, RemoveOutcome, RemoveResult,
    Runtime, StreamId, Support, Tick,
    intent::Intent,
    removal::{self, Removal, RemovalContext},
    task::{AfterCall, State, Task, TaskKey},
};

/// For how long a name is looked at after its pull was ended: the runtime may be past the point where it can stop,
/// and then makes the image a little later.
const FOLLOW: Duration = Duration::from_secs(10);
/// The same for Docker, where an ended pull goes on.
const FOLLOW_DOCKER: Duration = Duration::from_secs(30);
/// Before the first of these looks; the pauses double.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// For how long the runtime may still show a pin that was taken off.
const PIN_SHOWS: Duration = Duration::from_secs(10);
/// Codes of answers that are not the runtime's own word.
const NOT_ITS_OWN: [&str; 3] = ["Cancelled", "DeadlineExceeded", "Unavailable"];
/// Most removals that were begun and not seen to their end, of which it is remembered.
const MOST_UNFINISHED: usize = 1000;
/// For how long.
const UNFINISHED: Duration = Duration::from_secs(3600);

impl Queue {
    pub(super) fn answered(&mut self, id: CallId, answer: Answer, now: Tick) {
        match self.calls.remove(&id) {
            Some(Caller::Task(key)) => self.task_answered(&key, answer, now),
            Some(Caller::Ending) => self.ended(id, &answer, now),
            Some(Caller::Removal) => self.removal_answered(answer),
            Some(Caller::Check(at, index)) => self.check_answered(at, index, answer),
            Some(Caller::CheckPins(at)) => self.check_pins_answered(at, answer),
            Some(Caller::Disk) => self.disk_answered(&answer, now),
            Some(Caller::Progress) => self.bytes_answered(answer, now),
            None => {}
        }
    }

    fn task_answered(&mut self, key: &TaskKey, answer: Answer, now: Tick) {
        if let (Answer::Inspected(Ok(Some(image))), Some(removal)) =
            (&answer, self.removals.front_mut())
        {
            removal.saw(&key.image, image);
        }
        let full = self.full();
        let around = self.around(full.as_deref());
        let answered = self.tasks.change(key, |task| {
            let next = task.answered(answer, now, around);
            match &next {
                AfterCall::Wait(at) => task.state = State::Waiting(*at),
                AfterCall::Pause(at, step) => task.state = State::Paused(*at, step.clone()),
                AfterCall::Call(..) | AfterCall::Finish(_) => {}
            }
            (next, task.learnt.take())
        });
        let Some((next, learnt)) = answered else {
            return;
        };
        if learnt == Some(Support::No) && !self.pin_stands(key) {
            // Somebody took it off before the inspection: nothing is known of this runtime.
            let why = "the pin was taken off at once by a newer request".to_owned();
            self.tasks
                .change(key, |task| task.pin = PinResult::Failed(why));
        } else if self.facts.pins != Support::Yes {
            // What worked once does not become unsupported: then something else is wrong.
            self.facts.pins = learnt.unwrap_or(self.facts.pins);
        }
        match next {
            AfterCall::Call(Call::Pin(id, true), _) if !self.note_pin(key, &id, now) => {
                let result = self.tasks.get(key).map(Task::done);
                self.finish(key, result.unwrap_or(PullResult::Present), now);
            }
            AfterCall::Call(call, phase) => self.call_for(key, call, phase),
            AfterCall::Wait(_) | AfterCall::Pause(..) => {}
            AfterCall::Finish(result) => self.finish(key, result, now),
        }
    }

    /// Notes the request to pin an id. False: whoever was in charge later has taken the pin off, and
    /// nobody may be left who would take off another.
    fn note_pin(&mut self, key: &TaskKey, id: &str, now: Tick) -> bool {
        let newest = self.newest(key);
        newest.is_none_or(|newest| self.intents.note(id, newest, Intent::Pull, now))
    }

    /// Is the request to pin its image still the newest?
    fn pin_stands(&self, key: &TaskKey) -> bool {
        let image = self.tasks.get(key).and_then(|task| task.image.as_ref());
        let newest = self.newest(key);
        newest
            .zip(image)
            .is_none_or(|(newest, image)| self.intents.stands(&image.id, newest, Intent::Pull))
    }

    /// The newest of its requests.
    fn newest(&self, key: &TaskKey) -> Option<Authority> {
        let task = self.tasks.get(key);
        let interests = task.into_iter().flat_map(|task| &task.interests);
        interests
            .map(|known| known.authority)
            .max_by_key(|known| (known.term, known.seq))
    }

    fn removal_answered(&mut self, answer: Answer) {
        // Also if nobody waits for this removal any more: the next one may still see the pin.
        if let Some(id) = self.removals.front().and_then(Removal::unpinning)
            && matches!(answer, Answer::Pinned(_))
        {
            let until = self.now.after(PIN_SHOWS);
            self.unpinned.insert(id.to_owned(), until);
        }
        if !self.removal_stands() {
            self.removed(RemoveResult::Superseded);
            return;
        }
        let unverified = self.unverified();
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        let inspected = removal.inspected.unwrap_or(self.now);
        let (tasks, intents, authority) = (&self.tasks, &self.intents, removal.authority);
        let (ending, unfinished, unpinned) = (&self.ending, &self.unfinished, &self.unpinned);
        let claimed = |name: &str| {
            let mut open = tasks.of(name).filter(|(_, task)| !task.finished());
            open.next().is_some()
                || ending.values().any(|ending| ending.image == *name)
                || !intents.stands(name, authority, Intent::Remove)
        };
        let around = RemovalContext {
            unverified,
            facts: &self.facts,
            protected: &self.settings.protected_images,
            own: &self.settings.own_images,
            claimed: &claimed,
            unfinished: &|name| unfinished.get(name).map(|(id, _)| id.clone()),
            unpinned: &|id| unpinned.get(id).is_some_and(|until| *until > inspected),
        };
        let next = removal.answered(answer, &around);
        if let Some(id) = removal.removing() {
            let normal = removal.items[removal.at].normal().to_owned();
            let id = id.to_owned();
            if self.unfinished.len() >= MOST_UNFINISHED {
                self.unfinished.pop_first();
            }
            let until = self.now.after(UNFINISHED);
            self.unfinished.insert(normal, (id, until));
        } else if !removal.acting() {
            // What waited for the removal does not wait for what it asks next.
            self.replies.append(&mut self.after_removal);
        }
        if let removal::AfterRemoval::Later(pause) = next {
            removal.paused = Some(self.now.after(pause));
        }
        match next {
            removal::AfterRemoval::Finish(result) => self.removed(result),
            removal::AfterRemoval::Call(call) => self.call_for_removal(call),
            removal::AfterRemoval::Again | removal::AfterRemoval::Later(_) => {}
        }
    }

    /// A pull that was ended has its answer. If that is not the runtime's own word, the runtime may still be about
    /// to make the image.
    fn ended(&mut self, id: CallId, answer: &Answer, now: Tick) {
        let Some(name) = self.ending.remove(&id) else {
            return;
        };
        if let Answer::Pulled(Err(error)) = answer
            && NOT_ITS_OWN.contains(&error.code.as_str())
        {
            let follow = match self.facts.runtime {
                Runtime::Docker => FOLLOW_DOCKER,
                Runtime::Containerd | Runtime::Crio => FOLLOW,
            };
            self.followed.insert(name.image, now.after(follow));
        }
    }

    /// When the name at hand is to be looked at again although it is gone: the runtime may still be about to make
    /// its image.
    fn look_again_at(&self) -> Option<Tick> {
        let removal = self.removals.front()?;
        let until = self.followed.get(removal.items[removal.at].normal())?;
        let pause = FIRST_LOOK * 2_u32.pow(removal.looks.min(4));
        (*until > self.now).then(|| self.now.after(pause).min(*until))
    }

    /// Asked again before each step, so also right before the runtime removes. What it has
    /// removed is removed.
    fn removal_stands(&self) -> bool {
        self.removals.front().is_some_and(|removal| {
            let normal = removal.items[removal.at].normal();
            let stands = self
                .intents
                .stands(normal, removal.authority, Intent::Remove);
            removal.acting() || (stands && removal.stream.is_some())
        })
    }

    pub(super) fn removed(&mut self, result: RemoveResult) {
        let again = self.look_again_at();
        let Some(removal) = self.removals.front_mut() else {
            return;
        };
        let gone = matches!(result, RemoveResult::Removed | RemoveResult::Absent);
        if let Some(at) = again.filter(|_| gone && removal.stream.is_some()) {
            removal.look_again(at, result);
            self.replies.append(&mut self.after_removal);
            return;
        }
        if !matches!(result, RemoveResult::Failed { .. }) {
            self.unfinished.remove(removal.items[removal.at].normal());
        }
        let (index, result) = (removal.at, removal.overall(result));
        removal.next();
        let stream = removal.stream;
        self.replies.append(&mut self.after_removal);
        self.reply_removed(stream, RemoveOutcome { index, result });
    }

    fn reply_removed(&mut self, stream: Option<StreamId>, outcome: RemoveOutcome) {
        let Some(stream) = stream else { return };
        if let Some(open) = self.open.get_mut(&stream) {
            *open = open.saturating_sub(1);
            self.replies.push(Command::Removed(stream, vec![outcome]));
            self.done_if_empty(stream);
        }
    }
}
