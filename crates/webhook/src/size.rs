//! How large an object becomes with the status that the controller must write. etcd refuses what is larger than
//! 1.5 MiB (`--max-request-bytes`), and then nothing of a cache could be recorded.

use std::{collections::BTreeSet, io};

use kube::core::DynamicObject;
use kubefledged_api_types::{ImageCacheSpec, validation::Violation};
use serde::Serialize;
use serde_json::Value;

/// The most that etcd stores, in bytes.
const MOST: usize = 3 << 19;
/// Conditions, counts, and the failures that a status lists: at most 100, of some 400 bytes each.
const RESERVE: usize = 64 << 10;
/// JSON around one name in `status.appliedImages`.
const AROUND_NAME: usize = r#"{"name":""},"#.len();
/// The same for a name that is to be removed.
const AROUND_OLD_NAME: usize = r#"{"name":"","since":"2026-01-01T00:00:00Z"},"#.len();

/// Returns the mistake of an object that could not be stored with its status. An object that gets no larger is
/// accepted, so that one that was stored before can be edited.
pub fn violation(
    object: &DynamicObject,
    old: Option<&DynamicObject>,
    spec: &ImageCacheSpec,
) -> Option<Violation> {
    let applied = old.map(applied).unwrap_or_default();
    let needed = needed(object, spec, &applied);
    if needed <= MOST || old.is_some_and(|old| without_status(old) >= without_status(object)) {
        return None;
    }
    Some(Violation {
        field: "spec.cacheSpec".to_owned(),
        message: format!(
            "with the names that its status must record the object would have {} KiB, and the API server stores \
             {} KiB: split the lists over several ImageCaches, or use shorter names; kubectl apply stores the \
             object a second time in an annotation, kubectl apply --server-side does not",
            needed.div_ceil(1024),
            MOST >> 10
        ),
    })
}

/// Bytes of the object with the status that will be written: all names of the spec, and those that it had.
fn needed(object: &DynamicObject, spec: &ImageCacheSpec, applied: &BTreeSet<&str>) -> usize {
    let names = spec.cache_spec.iter().flat_map(|list| &list.images);
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let new: usize = names.iter().map(|name| name.len() + AROUND_NAME).sum();
    let removed = applied.difference(&names);
    let removed: usize = removed.map(|name| name.len() + AROUND_OLD_NAME).sum();
    without_status(object) + new + removed + RESERVE
}

/// Names in the status.
fn applied(object: &DynamicObject) -> BTreeSet<&str> {
    let images = object.data["status"]["appliedImages"].as_array();
    let names = images.into_iter().flatten();
    names.filter_map(|image| image["name"].as_str()).collect()
}

fn without_status(object: &DynamicObject) -> usize {
    let status = object.data.get("status").map_or(0, bytes::<Value>);
    bytes(object) - status
}

/// Bytes of a value as JSON.
fn bytes<T: Serialize>(value: &T) -> usize {
    struct Counter(usize);

    impl io::Write for Counter {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            self.0 += part.len();
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter(0);
    // A value that was read from JSON can be written as JSON.
    let written = serde_json::to_writer(&mut counter, value);
    written.map_or(usize::MAX, |()| counter.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(first: usize, count: usize) -> Vec<String> {
        let name = |i| format!("registry.corp/team/app-{i:0>10}:1.0");
        (first..first + count).map(name).collect()
    }

    fn object(names: &[String], applied: &[String], annotation: usize) -> DynamicObject {
        let applied: Vec<_> = applied.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": "a", "namespace": "n", "annotations": {"last": "x".repeat(annotation)}},
            "spec": {"cacheSpec": [{"images": names}]},
            "status": {"appliedImages": applied},
        }))
        .unwrap()
    }

    fn refused(object: &DynamicObject, old: Option<&DynamicObject>) -> Option<String> {
        let spec = serde_json::from_value(object.data["spec"].clone()).unwrap();
        violation(object, old, &spec).map(|violation| violation.message)
    }

    #[test]
    fn an_object_whose_status_has_no_room_is_refused_and_one_that_gets_no_larger_is_not() {
        let all = names(0, 10_000);
        let small = object(&all, &[], 0);
        assert_eq!(refused(&small, None), None);
        // kubectl apply: the object once more.
        let applied = object(&all, &all, 420_000);
        assert_eq!(refused(&applied, Some(&small)), None);
        // All names replaced: the old ones stay recorded until they are removed.
        let replaced = object(&names(10_000, 10_000), &all, 420_000);
        let why = refused(&replaced, Some(&object(&all, &all, 0))).unwrap();
        assert!(why.contains("the API server stores 1536 KiB"), "{why}");
        assert_eq!(refused(&replaced, Some(&applied)), None, "no larger");
    }

    #[test]
    fn what_is_predicted_is_no_less_than_what_is_stored() {
        let (new, old) = (names(5, 1000), names(0, 1000));
        let before = object(&old, &old, 10);
        let mut stored = object(&new, &new, 10);
        let removed = old[..5].iter();
        let since = "2026-01-01T00:00:00Z";
        let removed = removed.map(|name| json!({"name": name, "since": since}));
        stored.data["status"]["appliedImages"]
            .as_array_mut()
            .unwrap()
            .extend(removed);
        let spec = serde_json::from_value(stored.data["spec"].clone()).unwrap();
        let predicted = needed(&stored, &spec, &applied(&before));
        assert!(predicted >= bytes(&stored), "{predicted}");
        assert!(predicted <= bytes(&stored) + RESERVE + 100, "{predicted}");
    }
}
