//! What a controller writes to the API server, which may or may not do it, and may or may not say so.

use std::sync::Arc;

use kubefledged_api_types::{
    ImageCacheStatus, Timestamp,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION},
};
use kubefledged_engine::{
    CacheKey, ConditionWrite, Event as EngineEvent, NodeName, PlacedTaint, WriteError,
};

use crate::{
    api::{Object, Resource},
    script::{SourceKey, Trouble},
    world::{Event, World},
};

/// A write on its way to the API server.
#[derive(Clone, Debug)]
pub enum Write {
    /// The whole status, over this version.
    Status(CacheKey, String, Box<ImageCacheStatus>),
    /// An annotation, if it has this value.
    Clear(CacheKey, &'static str, String),
    /// The finalizer on an object with this UID, or none.
    Finalizer(CacheKey, String, bool),
    /// Taints of a Node with this UID, which go.
    Untaint(NodeName, Arc<str>, Vec<PlacedTaint>),
    /// The condition of a Node with this UID.
    Condition(NodeName, Arc<str>, ConditionWrite),
}

/// A rule.
const LATE: &str = "an operation answers only what was asked before it began";

impl World {
    /// Sends a write.
    pub fn write(&mut self, who: usize, write: Write) {
        self.note(|| format!("c{who} -> {}", told(&write)));
        let most = if self.is(Trouble::ApiSlow) {
            20_000
        } else {
            30
        };
        let latency = self.rng.between(1, most);
        let life = self.controllers[who].life;
        self.after(latency, Event::Write(who, life, Box::new(write)));
    }

    /// A write reaches the API server, which may or may not do it, and may or may not say so.
    pub fn write_arrives(&mut self, who: usize, life: u32, write: &Write) {
        let (Write::Status(key, ..) | Write::Clear(key, ..) | Write::Finalizer(key, ..)) = write
        else {
            return self.node_write_arrives(who, life, write);
        };
        let (key, name) = (key.clone(), key.to_string());
        if self.hits(Trouble::Conflicts, 40)
            && let Some(object) = self.api.cache(&name).cloned()
        {
            self.put(
                (SourceKey::Caches, name.clone()),
                Resource::Cache(Box::new(object)),
            );
        }
        let (result, wait) = self.answered(who, |world| world.stored(&name, write));
        self.note(|| format!("write of c{who} to {name}: {result:?}"));
        let answer = match write {
            Write::Status(..) => {
                EngineEvent::StatusWritten(key, result.map(Option::unwrap_or_default))
            }
            Write::Clear(..) => EngineEvent::AnnotationCleared(key, result),
            Write::Finalizer(..) => EngineEvent::FinalizerWritten(key, result),
            Write::Untaint(..) | Write::Condition(..) => return,
        };
        self.after(wait, Event::Tell(who, life, Box::new(answer)));
    }

    /// What the API server says of a write, and when: it may refuse to carry it out, and its answer may be lost.
    pub fn answered<T>(
        &mut self,
        who: usize,
        store: impl FnOnce(&mut Self) -> Result<T, WriteError>,
    ) -> (Result<T, WriteError>, u64) {
        let failed = || WriteError::Failed("the server is currently unable".to_owned());
        let refused = self.is(Trouble::ApiUnreachable(who)) || self.hits(Trouble::WritesFail, 60);
        let result = if refused { Err(failed()) } else { store(self) };
        let wait = self.rng.between(1, 20);
        if self.hits(Trouble::AnswersLost, 50) {
            return (Err(failed()), wait + 5_000);
        }
        (result, wait)
    }

    /// What the API server does with a write. The new version; none where nothing was to do.
    fn stored(&mut self, name: &str, write: &Write) -> Result<Option<String>, WriteError> {
        let Some(mut object) = self.api.cache(name).cloned() else {
            return Err(WriteError::Gone);
        };
        match write {
            Write::Status(_, version, status) => {
                if object.version.to_string() != *version {
                    return Err(WriteError::Conflict);
                }
                self.store_status(&mut object, status);
            }
            Write::Clear(_, annotation, value) => {
                let (known, asked_during) = match *annotation {
                    PURGE_ANNOTATION => (&mut object.purge, object.purge_during),
                    REFRESH_ANNOTATION => (&mut object.refresh, object.refresh_during),
                    _ => return Ok(None),
                };
                if known.as_ref() != Some(value) {
                    return Ok(None);
                }
                *known = None;
                if asked_too_late(&object.status, asked_during) {
                    self.broken(LATE, format!("{annotation}={value:?}"));
                }
            }
            Write::Finalizer(_, uid, present) => {
                if object.uid.to_string() != *uid {
                    return Err(WriteError::Gone);
                }
                if object.finalizer == *present {
                    return Ok(None);
                }
                object.finalizer = *present;
                if object.deleting && !present {
                    self.remove_resource(&(SourceKey::Caches, name.to_owned()));
                    return Ok(Some(object.version.to_string()));
                }
            }
            Write::Untaint(..) | Write::Condition(..) => return Ok(None),
        }
        self.put(
            (SourceKey::Caches, name.to_owned()),
            Resource::Cache(Box::new(object)),
        );
        let version = self
            .api
            .cache(name)
            .map(|object| object.version.to_string());
        Ok(version)
    }

    fn store_status(&mut self, object: &mut Object, status: &ImageCacheStatus) {
        let json = serde_json::to_vec(status).unwrap_or_default();
        self.absorb_bytes(&json);
        if let Some((rule, detail)) = wrongly_answered(object, status) {
            self.broken(rule, detail);
        }
        // As the API server gives it back.
        object.status = serde_json::from_slice(&json).unwrap_or_default();
        if object.status != *status {
            let told = "a status reads otherwise than it was written".to_owned();
            self.broken("status survives storage", told);
        }
        let names = status
            .applied_images
            .iter()
            .map(|applied| applied.name.clone());
        object.ever_applied.extend(names);
    }
}

/// Is this the operation during which it was asked for something? It began without that.
fn asked_too_late(status: &ImageCacheStatus, asked_during: Option<Timestamp>) -> bool {
    asked_during.is_some() && status.start_time == asked_during
}

/// Does a token that stands in its annotation count as handled from this status on, and should not?
fn wrongly_answered(object: &Object, status: &ImageCacheStatus) -> Option<(&'static str, String)> {
    let known = &object.status;
    let new = |token: &Option<String>, before: &Option<String>, stands: &Option<String>| {
        token.clone().filter(|_| token != before && token == stands)
    };
    let refresh = new(
        &status.last_handled_refresh,
        &known.last_handled_refresh,
        &object.refresh,
    );
    let purge = new(
        &status.last_handled_purge,
        &known.last_handled_purge,
        &object.purge,
    );
    let late_refresh = refresh.filter(|_| asked_too_late(status, object.refresh_during));
    let late_purge = purge
        .clone()
        .filter(|_| asked_too_late(status, object.purge_during));
    if let Some(late) = late_refresh.or(late_purge) {
        return Some((LATE, late));
    }
    let began = |token: &String| known.purge.iter().any(|purge| purge.token == *token);
    let came_along = known.observed_generation.is_none() && !object.purge_came_later;
    let skipped = purge.filter(|token| !began(token) && !came_along)?;
    Some(("a purge that counts as handled was run", skipped))
}

fn told(write: &Write) -> String {
    match write {
        Write::Status(key, version, status) => format!(
            "status of {key} over {version}: {}",
            serde_json::to_string(status).unwrap_or_default()
        ),
        Write::Clear(key, annotation, value) => format!("clear {annotation}={value:?} of {key}"),
        Write::Finalizer(key, _, on) => format!("finalizer of {key}: {on}"),
        Write::Untaint(node, _, taints) => format!("untaint {node}: {taints:?}"),
        Write::Condition(node, _, condition) => format!("condition of {node}: {condition:?}"),
    }
}
