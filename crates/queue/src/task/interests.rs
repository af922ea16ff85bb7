//! The requests that wait for a task.

use std::{collections::BTreeSet, time::Duration};

use super::Task;
use crate::{Authority, PullRequest, StreamId, Tick};

/// A request that waits for a task.
#[derive(Clone, Debug)]
pub struct Interest {
    /// Term and batch.
    pub authority: Authority,
    /// As that request wrote it.
    pub reference: String,
    /// Where its outcome goes, while somebody listens.
    pub stream: Option<StreamId>,
    /// Its index there.
    pub index: usize,
    /// It ends then: a higher term came without asking for it again.
    pub until: Option<Tick>,
}

impl Task {
    /// Another request: shared pulls take the highest priority, the strongest retention and the
    /// longest limits. It takes over from requests whose streams are gone, so that it alone can
    /// cancel what they began.
    pub fn share(&mut self, request: &PullRequest, interest: Interest) {
        let longest = |a: Option<Duration>, b: Option<Duration>| Some(a?.max(b?));
        self.priority = self.priority.max(request.priority);
        self.retention = self.retention.max(request.retention);
        self.mark = self.mark.max(request.mark);
        self.sharing.share(&request.sharing);
        self.deadline = longest(self.deadline, request.deadline);
        self.fallback = longest(self.fallback, request.fallback_deadline);
        self.interests.retain(|known| known.stream.is_some());
        self.interests.push(interest);
    }

    /// Ends the interests of a batch in these names, as its request wrote them; none: in all.
    #[must_use = "those who lost their interest need a reply"]
    pub fn cancel(&mut self, term: u64, batch: u64, names: &BTreeSet<String>) -> Vec<Interest> {
        self.take(|interest| {
            interest.authority.term == term
                && interest.authority.batch == batch
                && (names.is_empty() || names.contains(&interest.reference))
        })
    }

    /// Ends the interests that a newer removal beats.
    #[must_use = "those who lost their interest need a reply"]
    pub fn supersede(&mut self, removal: Authority) -> Vec<Interest> {
        let newest = (removal.term, removal.seq);
        self.take(|interest| (interest.authority.term, interest.authority.seq) < newest)
    }

    /// Ends the interests of older terms that nobody took up again.
    #[must_use = "those who lost their interest need a reply"]
    pub fn expire(&mut self, now: Tick) -> Vec<Interest> {
        self.take(|interest| interest.until.is_some_and(|until| until <= now))
    }

    fn take(&mut self, gone: impl Fn(&Interest) -> bool) -> Vec<Interest> {
        let all = std::mem::take(&mut self.interests);
        let (gone, kept) = all.into_iter().partition(gone);
        self.interests = kept;
        gone
    }
}
