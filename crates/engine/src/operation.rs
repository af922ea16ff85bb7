//! Which operation is due, how it begins and how it ends. An operation is what the upstream part
//! of the status tells of: create, update, refresh, purge.

use std::collections::BTreeSet;

use kubefledged_api_types::{
    ImageCacheSpec, PurgeStatus, Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION, message, status},
};

use crate::{
    Settings, Tick, backoff,
    cache::{Cache, Kind, Operation, Told},
    images::Images,
    node::Stamp,
};

/// A version before the hash, so that another way to compute it is another value.
pub fn spec_hash(spec: &ImageCacheSpec) -> String {
    let mut lists: Vec<String> = spec
        .cache_spec
        .iter()
        .map(|list| {
            let images: BTreeSet<_> = list.images.iter().collect();
            serde_json::json!({"images": images, "nodeSelector": list.node_selector}).to_string()
        })
        .collect();
    lists.sort();
    let parts: Vec<&[u8]> = lists.iter().map(String::as_bytes).collect();
    format!("v1-{:016x}", backoff::hash(0, &parts))
}

/// A request that an annotation makes: an empty value always, a token once.
fn asked(value: Option<&String>, handled: Option<&String>) -> Option<String> {
    value
        .filter(|value| value.is_empty() || Some(*value) != handled)
        .cloned()
}

impl Cache {
    /// What is to begin now. A purge runs to its end; nothing else is safe from a newer wish.
    pub fn due(&self) -> Option<Kind> {
        if self.object.deleting || self.runs(Kind::Purge) {
            return None;
        }
        if self.asked_purge().is_some() {
            return Some(Kind::Purge);
        }
        if self.told.status.is_empty() {
            return Some(Kind::Create);
        }
        if !self.spec.wants_the_same_as(&self.object.spec) {
            return Some(Kind::Update);
        }
        let free = self.operation.is_none();
        (free && self.asked_refresh().is_some()).then_some(Kind::Refresh)
    }

    fn asked_purge(&self) -> Option<String> {
        asked(self.object.purge.as_ref(), self.handled_purge.as_ref())
    }

    fn asked_refresh(&self) -> Option<String> {
        asked(self.object.refresh.as_ref(), self.handled_refresh.as_ref())
    }

    /// Continues what the status says was under way, after a restart.
    pub fn resume(&mut self, stamp: Stamp) {
        let known = &self.object.status;
        let kind = Kind::from_reason(&known.reason);
        if known.status == status::PROCESSING
            && let (Some(kind), Some(started)) = (kind, known.start_time)
        {
            self.operation = Some(self.operation(kind, stamp, started));
            self.first_round = false;
            if kind == Kind::Purge {
                self.owe_everything(started);
            }
            return;
        }
        if kind == Some(Kind::Purge) {
            // Upstream wrote no hash: its purge holds for the spec that is there.
            let hash = spec_hash(&self.object.spec);
            let purge = self.purge.get_or_insert_with(|| PurgeStatus {
                cache_spec_hash: hash.clone(),
                ..PurgeStatus::default()
            });
            self.purged = purge.cache_spec_hash == hash;
        }
        if self.told.status.is_empty() {
            // A rebuilt cluster brings back objects with old tokens: nothing is there to purge,
            // and the create covers a refresh.
            let token = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
            self.handled_purge = token(&self.object.purge);
            self.handled_refresh = token(&self.object.refresh);
        } else if known
            .observed_generation
            .is_some_and(|seen| seen != self.object.generation)
        {
            // Edited while nobody looked. What changed is not known any more: `due` says Update.
            self.spec = ImageCacheSpec::default();
        }
    }

    /// Begins an operation: the status says so first, work on nodes follows when that is written.
    pub fn begin(
        &mut self,
        kind: Kind,
        stamp: Stamp,
        now: Timestamp,
        images: &mut Images,
        settings: &Settings,
    ) {
        // The operation's begin is part of its freshness token: never the same twice.
        let started = match self.told.started {
            Some(last) if last >= now => Timestamp(last.0 + 1),
            _ => now,
        };
        if kind != Kind::Purge {
            let spec = self.object.spec.clone();
            self.compile(spec, images, settings);
            self.purged = false;
            self.purge = None;
            let ids = self.ids.clone();
            self.owe(&ids, now);
            self.apply_wanted();
        }
        self.operation = Some(self.operation(kind, stamp, started));
        self.refreshing = None;
        self.first_round = false;
        self.missing_secrets.clear();
        if kind == Kind::Purge {
            self.apply_wanted();
            self.owe_everything(now);
            self.purge = Some(PurgeStatus {
                cache_spec_hash: spec_hash(&self.spec),
                token: self.asked_purge().unwrap_or_default(),
                start_time: Some(started),
                completion_time: None,
            });
        }
        self.compare_names();
        self.told = Told {
            status: status::PROCESSING.to_owned(),
            reason: kind.reason().to_owned(),
            message: match kind {
                Kind::Create => message::CREATING,
                Kind::Update => message::UPDATING,
                Kind::Refresh => message::REFRESHING,
                Kind::Purge => message::PURGING,
            }
            .to_owned(),
            started: Some(started),
            completed: None,
        };
    }

    fn owe_everything(&mut self, now: Timestamp) {
        self.owe(&BTreeSet::new(), now);
    }

    fn operation(&self, kind: Kind, stamp: Stamp, started: Timestamp) -> Operation {
        let purge = self.asked_purge().map(|value| (PURGE_ANNOTATION, value));
        let refresh = self
            .asked_refresh()
            .map(|value| (REFRESH_ANNOTATION, value));
        let handles = match kind {
            // A purge swallows a refresh that was asked for at the same time.
            Kind::Purge => purge.into_iter().chain(refresh).collect(),
            Kind::Refresh => refresh.into_iter().collect(),
            // A create has pulled everything anyway; an update has not asked the registry.
            Kind::Create => refresh.into_iter().filter(|(_, v)| !v.is_empty()).collect(),
            Kind::Update => Vec::new(),
        };
        Operation {
            kind,
            stamp,
            started,
            nodes: fixedbitset::FixedBitSet::new(),
            open: 0,
            handles,
            clearing: None,
        }
    }

    /// The next annotation that must be cleared before the end may be written.
    pub fn to_clear(&self, now: Tick) -> Option<(&'static str, String)> {
        let operation = self.operation.as_ref()?;
        if operation.clearing.is_some_and(|again| again > now) {
            return None;
        }
        operation
            .handles
            .iter()
            .find(|(_, value)| value.is_empty())
            .cloned()
    }

    /// Is nothing left to do on any node, and the beginning written?
    pub fn complete(&self) -> bool {
        self.operation.as_ref().is_some_and(|op| op.open == 0) && self.recorded()
    }

    /// Ends the operation. Call it when it is complete and its annotations are cleared.
    pub fn finish(&mut self, now: Timestamp) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        for (annotation, value) in operation.handles.into_iter().filter(|(_, v)| !v.is_empty()) {
            if annotation == PURGE_ANNOTATION {
                self.handled_purge = Some(value);
            } else {
                self.handled_refresh = Some(value);
            }
        }
        let nobody = operation.nodes.is_clear();
        let (status, message) = if operation.kind == Kind::Purge {
            self.purged = true;
            if let Some(purge) = &mut self.purge {
                purge.completion_time = Some(now);
            }
            self.removal_verdict(nobody, message::DELETED)
        } else {
            self.refreshed = Some(now);
            if self.counts.failing > 0 || self.counts.nodes.unreachable > 0 {
                (status::FAILED, message::PULL_FAILED)
            } else {
                self.removal_verdict(nobody, message::PULLED)
            }
        };
        self.told.status = status.to_owned();
        self.told.message = message.to_owned();
        self.told.completed = Some(now.max(operation.started));
    }

    fn removal_verdict(&self, nobody: bool, done: &'static str) -> (&'static str, &'static str) {
        if self.owed.values().any(|owed| !owed.failed.is_empty()) {
            (status::FAILED, message::DELETE_FAILED)
        } else if nobody {
            (status::NOTHING_DONE, message::NOTHING_DONE)
        } else {
            (status::SUCCEEDED, done)
        }
    }

    /// A failure healed, or a node came after nothing could be done: the status follows.
    pub fn heal(&mut self, now: Timestamp) {
        let counts = &self.counts;
        let whole = counts.nodes.desired > 0 && counts.nodes.ready == counts.nodes.desired;
        let pulled = Kind::from_reason(&self.told.reason).is_some_and(|kind| kind != Kind::Purge);
        let unwell = self.told.status == status::FAILED || self.told.status == status::NOTHING_DONE;
        let removals_well = self.owed.values().all(|owed| owed.failed.is_empty());
        if self.operation.is_none()
            && unwell
            && pulled
            && whole
            && counts.failing == 0
            && removals_well
        {
            status::SUCCEEDED.clone_into(&mut self.told.status);
            message::PULLED.clone_into(&mut self.told.message);
            self.told.completed = Some(now);
        }
    }
}
