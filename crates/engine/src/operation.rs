//! Which operation is due, how it begins and how it ends. An operation is what the upstream part
//! of the status tells of: create, update, refresh, purge, delete.

use std::collections::BTreeSet;

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, PurgeStatus, Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION, message, reason, status},
};

use crate::{
    Tick, backoff,
    cache::{Cache, Told},
    node::{NodeIdx, Stamp},
};

/// What the last operation was, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object is new.
    Create,
    /// What is wanted where has changed.
    Update,
    /// Asked for, or the interval is over and something must be pulled.
    Refresh,
    /// Asked for.
    Purge,
    /// The object is being deleted, and our finalizer holds it.
    Delete,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Create,
        Self::Update,
        Self::Refresh,
        Self::Purge,
        Self::Delete,
    ];

    /// As it stands in the status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Create => reason::CREATE,
            Self::Update => reason::UPDATE,
            Self::Refresh => reason::REFRESH,
            Self::Purge => reason::PURGE,
            Self::Delete => reason::DELETE,
        }
    }

    /// From the status.
    pub fn from_reason(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.reason() == text)
    }

    /// Does it bring images, or take them away?
    pub fn pulls(self) -> bool {
        !matches!(self, Self::Purge | Self::Delete)
    }

    fn running(self) -> &'static str {
        match self {
            Self::Create => message::CREATING,
            Self::Update => message::UPDATING,
            Self::Refresh => message::REFRESHING,
            Self::Purge | Self::Delete => message::PURGING,
        }
    }
}

/// An operation under way.
#[derive(Debug)]
pub struct Operation {
    /// Which.
    pub kind: Kind,
    /// Outcomes of batches with this stamp or a later one count.
    pub stamp: Stamp,
    /// As in the status; part of the freshness token, so that a new leader forms the same one.
    pub started: Timestamp,
    /// Nodes that are to get images: those eligible at its start that have not left.
    pub pulls: FixedBitSet,
    /// Nodes that are to lose images: those whose puller answered at its start.
    pub removes: FixedBitSet,
    /// How many nodes are not done.
    pub open: usize,
    /// There was some node to work on.
    pub worked: bool,
    /// Annotations and their values that are handled when it ends.
    pub handles: Vec<(&'static str, String)>,
    /// An annotation is being cleared; asked for again after this.
    pub clearing: Option<Tick>,
}

impl Operation {
    /// Does it wait for this node?
    pub fn has(&self, node: NodeIdx) -> bool {
        self.pulls.contains(node) || self.removes.contains(node)
    }
}

fn hash_of(spec: &ImageCacheSpec, entry: impl Fn(&CacheSpecEntry) -> serde_json::Value) -> u64 {
    let mut lists: Vec<String> = spec
        .cache_spec
        .iter()
        .map(|e| entry(e).to_string())
        .collect();
    lists.sort();
    let parts: Vec<&[u8]> = lists.iter().map(String::as_bytes).collect();
    backoff::hash(0, &parts)
}

/// What a purge is remembered for: images and selectors, in whatever order. A version comes before
/// the hash, so that another way to compute it is another value.
pub fn spec_hash(spec: &ImageCacheSpec) -> String {
    let hash = hash_of(spec, |list| {
        let images: BTreeSet<_> = list.images.iter().collect();
        let mut fields = serde_json::json!({"images": images, "nodeSelector": list.node_selector});
        // Only fields that are set: a field that comes later changes no hash.
        if let Some(affinity) = &list.node_affinity {
            fields["nodeAffinity"] = serde_json::json!(affinity);
        }
        fields
    });
    format!("v1-{hash:016x}")
}

/// What an operation covers: what is wanted where, and how. Another one is an update.
pub fn wants_hash(spec: &ImageCacheSpec) -> u64 {
    hash_of(spec, |list| {
        let images: BTreeSet<_> = list.images.iter().collect();
        serde_json::json!([
            images,
            list.node_selector,
            list.node_affinity,
            list.image_pull_policy
        ])
    })
}

/// A token as it is remembered: whole, unless it is too long for a status.
fn remembered(token: &str) -> String {
    if token.len() <= 256 {
        return token.to_owned();
    }
    format!("hash-{:016x}", backoff::hash(0, &[token.as_bytes()]))
}

/// A request that an annotation makes: an empty value always, a token once.
fn asked(value: Option<&String>, handled: Option<&String>) -> Option<String> {
    let new = |value: &&String| value.is_empty() || Some(&remembered(value)) != handled;
    value.filter(new).cloned()
}

impl Cache {
    /// What is to begin now. A purge runs to its end; nothing else is safe from a newer wish.
    pub fn due(&self) -> Option<Kind> {
        let held = self.object.deleting || self.runs(Kind::Purge);
        if held || self.spec().suspend || self.invalid.is_some() {
            return None;
        }
        if self.asked_purge().is_some() {
            return Some(Kind::Purge);
        }
        if self.told.status.is_empty() {
            return Some(Kind::Create);
        }
        let changed = match &self.purge {
            Some(purge) if self.purged => purge.cache_spec_hash != spec_hash(self.spec()),
            _ => self.covered != self.wants_hash,
        };
        // Words that kube-fledged wrote and that are no operation of ours: it is begun anew.
        if changed || Kind::from_reason(&self.told.reason).is_none() {
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
            if kind == Kind::Purge {
                self.owe(&FixedBitSet::new(), started);
            }
            return;
        }
        if kind == Some(Kind::Purge) {
            // Upstream wrote no hash: its purge holds for the spec that is there.
            let hash = spec_hash(&self.object.spec);
            self.purge.get_or_insert_with(|| PurgeStatus {
                cache_spec_hash: hash,
                ..PurgeStatus::default()
            });
            // Another spec wakes it, by an operation.
            self.purged = true;
        }
        if self.told.status.is_empty() && self.object.status.observed_generation.is_none() {
            // A rebuilt cluster brings back objects with old tokens: nothing is there to purge,
            // and the create covers a refresh.
            let token =
                |value: &Option<String>| value.as_deref().filter(|v| !v.is_empty()).map(remembered);
            self.handled_purge = token(&self.object.purge);
            self.handled_refresh = token(&self.object.refresh);
        }
    }

    /// Begins an operation: the status says so first, work on nodes follows when that is written.
    pub fn begin(&mut self, kind: Kind, stamp: Stamp, now: Timestamp) {
        // The operation's begin is part of its freshness token: never the same twice.
        let started = match self.told.started {
            Some(last) if last >= now => Timestamp(last.0 + 1),
            _ => now,
        };
        if kind.pulls() {
            self.purged = false;
            self.purge = None;
            let ids = self.ids.clone();
            self.owe(&ids, now);
            self.apply_wanted();
            self.covered = self.wants_hash;
        } else {
            let token = self.asked_purge().filter(|_| kind == Kind::Purge);
            self.purge = Some(PurgeStatus {
                cache_spec_hash: spec_hash(self.spec()),
                token: token.as_deref().map(remembered).unwrap_or_default(),
                start_time: Some(started),
                completion_time: None,
            });
        }
        if kind == Kind::Purge {
            self.owe(&FixedBitSet::new(), now);
            self.covered = self.wants_hash;
        }
        self.operation = Some(self.operation(kind, stamp, started));
        self.refreshing = None;
        self.must_pull = false;
        self.abandoned = false;
        self.compare_names();
        self.told = Told {
            status: status::PROCESSING.to_owned(),
            reason: kind.reason().to_owned(),
            message: kind.running().to_owned(),
            started: Some(started),
            completed: None,
        };
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
            Kind::Update | Kind::Delete => Vec::new(),
        };
        Operation {
            kind,
            stamp,
            started,
            pulls: FixedBitSet::new(),
            removes: FixedBitSet::new(),
            open: 0,
            worked: false,
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
        !self.held() && self.operation.as_ref().is_some_and(|op| op.open == 0) && self.recorded()
    }

    /// Ends the operation. Call it when it is complete and its annotations are cleared. `failed`:
    /// some node of it misses an image, or could not refresh one.
    pub fn finish(&mut self, failed: bool, now: Timestamp) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        for (annotation, value) in operation.handles.iter().filter(|(_, v)| !v.is_empty()) {
            let handled = match *annotation {
                PURGE_ANNOTATION => &mut self.handled_purge,
                _ => &mut self.handled_refresh,
            };
            *handled = Some(remembered(value));
        }
        if operation.kind == Kind::Purge {
            self.purged = true;
            if let Some(purge) = &mut self.purge {
                purge.completion_time = Some(now);
            }
        } else {
            self.refreshed = Some(now);
        }
        let (status, message) = if failed {
            (status::FAILED, message::PULL_FAILED)
        } else if self.removals_failed() {
            (status::FAILED, message::DELETE_FAILED)
        } else if !operation.worked {
            (status::NOTHING_DONE, message::NOTHING_DONE)
        } else if operation.kind.pulls() {
            (status::SUCCEEDED, message::PULLED)
        } else {
            (status::SUCCEEDED, message::DELETED)
        };
        status.clone_into(&mut self.told.status);
        message.clone_into(&mut self.told.message);
        self.told.completed = Some(now.max(operation.started));
    }

    /// A failure healed, or a node came after nothing could be done: the status follows. Reason and
    /// begin stay.
    pub fn heal(&mut self, now: Timestamp) {
        let unwell = [
            status::FAILED,
            status::NOTHING_DONE,
            status::ABORTED,
            status::UNKNOWN,
        ];
        let idle = self.operation.is_none() && !self.object.deleting && !self.first_round;
        if !idle || !unwell.contains(&&*self.told.status) || self.removals_failed() {
            return;
        }
        let counts = &self.counts;
        let whole = counts.nodes.desired > 0 && counts.nodes.ready == counts.nodes.desired;
        let message = match Kind::from_reason(&self.told.reason) {
            Some(kind) if kind.pulls() && whole && counts.failing == 0 => message::PULLED,
            Some(Kind::Purge) if self.told.status == status::FAILED => message::DELETED,
            _ => return,
        };
        status::SUCCEEDED.clone_into(&mut self.told.status);
        message.clone_into(&mut self.told.message);
        self.told.completed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> ImageCacheSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn order_changes_no_hash_and_every_wish_does() {
        let one = spec(r#"{"cacheSpec": [{"images": ["a", "b"]}, {"images": ["c"]}]}"#);
        let same = spec(r#"{"cacheSpec": [{"images": ["c"]}, {"images": ["b", "a"]}]}"#);
        assert_eq!(spec_hash(&one), spec_hash(&same));
        assert_eq!(wants_hash(&one), wants_hash(&same));
        for other in [
            r#"{"cacheSpec": [{"images": ["a", "b", "c"]}]}"#,
            r#"{"cacheSpec": [{"images": ["a", "b"], "nodeSelector": {"k": "v"}}, {"images": ["c"]}]}"#,
            r#"{"cacheSpec": [{"images": ["a", "b"], "nodeAffinity": {}}, {"images": ["c"]}]}"#,
        ] {
            assert_ne!(spec_hash(&one), spec_hash(&spec(other)), "{other}");
            assert_ne!(wants_hash(&one), wants_hash(&spec(other)), "{other}");
        }
    }

    #[test]
    fn a_pull_policy_makes_an_update_but_wakes_no_purged_cache() {
        let one = spec(r#"{"cacheSpec": [{"images": ["a"]}]}"#);
        let policy = spec(r#"{"cacheSpec": [{"images": ["a"], "imagePullPolicy": "Always"}]}"#);
        assert_ne!(wants_hash(&one), wants_hash(&policy));
        assert_eq!(spec_hash(&one), spec_hash(&policy));
    }

    #[test]
    fn priorities_deadlines_and_secrets_make_no_update() {
        let one = spec(r#"{"cacheSpec": [{"images": ["a"]}]}"#);
        let other = spec(
            r#"{"cacheSpec": [{"images": ["a"], "priority": 3, "pullDeadline": "1h"}], "suspend": true,
            "imagePullSecrets": [{"name": "s"}], "retention": "Pinned", "maxConcurrentNodes": "1%"}"#,
        );
        assert_eq!(wants_hash(&one), wants_hash(&other));
    }

    #[test]
    fn a_long_token_is_remembered_as_its_hash() {
        let long = "x".repeat(10_000);
        assert!(remembered(&long).len() < 30);
        assert_eq!(asked(Some(&long), Some(&remembered(&long))), None);
        assert_eq!(
            asked(Some(&"t".to_owned()), Some(&remembered(&long))),
            Some("t".into())
        );
    }
}
