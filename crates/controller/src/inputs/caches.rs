//! `ImageCaches`, each parsed on its own: one that cannot be read does not stall the watch.

use kube::{ResourceExt as _, core::DeserializeGuard};
use kubefledged_api_types::{
    ImageCache,
    names::{PURGE_ANNOTATION, REFRESH_ANNOTATION},
};
use kubefledged_engine::{CacheKey, CacheObject, Event};

use super::Input;

/// See the module.
#[derive(Debug, Default)]
pub struct Caches;

impl Input for Caches {
    type Object = DeserializeGuard<ImageCache>;
    type Key = CacheKey;

    fn key(&self, object: &Self::Object) -> Option<CacheKey> {
        let (namespace, name) = match &object.0 {
            Ok(cache) => (cache.namespace()?, cache.name_any()),
            Err(invalid) => (
                invalid.metadata.namespace.clone()?,
                invalid.metadata.name.clone()?,
            ),
        };
        Some(CacheKey {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    fn applied(&mut self, object: Self::Object, tell: &mut Vec<Event>) {
        let Some(key) = self.key(&object) else { return };
        match object.0 {
            Ok(cache) => tell.push(Event::CacheApplied(Box::new(convert(key, cache)))),
            Err(invalid) => {
                tracing::warn!(imagecache = %key, error = %invalid.error, "cannot read this ImageCache");
                tell.push(Event::CacheInvalid {
                    key,
                    message: invalid.error,
                });
            }
        }
    }

    fn deleted(&mut self, key: &CacheKey, tell: &mut Vec<Event>) {
        tell.push(Event::CacheDeleted(key.clone()));
    }
}

fn convert(key: CacheKey, mut cache: ImageCache) -> CacheObject {
    let mut annotations = cache.metadata.annotations.take().unwrap_or_default();
    CacheObject {
        key,
        uid: cache.metadata.uid.unwrap_or_default(),
        resource_version: cache.metadata.resource_version.unwrap_or_default(),
        generation: cache.metadata.generation.unwrap_or_default(),
        spec: cache.spec,
        status: cache.status.unwrap_or_default(),
        refresh: annotations.remove(REFRESH_ANNOTATION),
        purge: annotations.remove(PURGE_ANNOTATION),
        deleting: cache.metadata.deletion_timestamp.is_some(),
    }
}
