//! Validation of a spec, with the messages of kube-fledged. The webhook refuses a spec that breaks a
//! rule. The engine accepts objects that were stored before the rule existed.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_image::ImageRef;

use crate::{
    CacheSpecEntry, ImageCacheSpec, NodeShare, names::refusal, node_gate::TIMEOUTS, workloads,
};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path of the field, such as `spec.cacheSpec[0].images[2]`.
    pub field: String,
    /// Description of the mistake and of its correction.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Maximum size of all image names of one object, in bytes. The status repeats the names while the
/// images are on nodes, and etcd stores at most 1.5 MiB.
pub const MOST_NAME_BYTES: usize = 400_000;

/// Returns all broken rules of a spec, in the order of its fields.
pub fn violations(spec: &ImageCacheSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let names = spec.cache_spec.iter().flat_map(|list| &list.images);
    if names.map(String::len).sum::<usize>() > MOST_NAME_BYTES {
        found.push(Violation {
            field: "spec.cacheSpec".to_owned(),
            message: format!(
                "the image names have more than {MOST_NAME_BYTES} bytes in all: split them into \
                 several ImageCaches"
            ),
        });
    }
    if spec.cache_spec.is_empty() {
        found.push(Violation {
            field: "spec.cacheSpec".to_owned(),
            message:
                "the list is empty, so that the object would desire nothing: write at least one \
                      list, or delete the object, or purge its images with the annotation \
                      kubefledged.io/purge-imagecache"
                    .to_owned(),
        });
    }
    for (at, list) in spec.cache_spec.iter().enumerate() {
        of_list(at, list, &mut found);
        workloads::of_list(at, list, &mut found);
    }
    if let Some(NodeShare::Count(0) | NodeShare::Percent(0)) = spec.max_concurrent_nodes {
        found.push(Violation {
            field: "spec.maxConcurrentNodes".to_owned(),
            message: "0 is no number of nodes to pull on: write at least 1, or suspend: true to \
                      start no pulls"
                .to_owned(),
        });
    }
    if let Some(interval) = spec.refresh.as_ref().and_then(|refresh| refresh.interval) {
        let seconds = interval.0.as_secs();
        if !interval.0.is_zero() && seconds < 60 {
            found.push(Violation {
                field: "spec.refresh.interval".to_owned(),
                message: format!("{interval} is too short: write at least 1m, or 0s for never"),
            });
        }
    }
    if let Some(timeout) = spec.node_gate_timeout
        && !TIMEOUTS.contains(&timeout.0)
    {
        let advice = "write 1s to 24h; to hold no node, write nodeGate: Ignored";
        found.push(Violation {
            field: "spec.nodeGateTimeout".to_owned(),
            message: format!("{timeout} is out of range: {advice}"),
        });
    }
    found
}

/// Adds the broken rules of one list.
fn of_list(at: usize, list: &CacheSpecEntry, found: &mut Vec<Violation>) {
    let field = format!("spec.cacheSpec[{at}].images");
    let images = &list.images;
    if images.is_empty() && list.images_from.is_empty() {
        found.push(Violation {
            field: field.clone(),
            message: refusal::NO_IMAGES.to_owned(),
        });
    }
    let mut seen = BTreeSet::new();
    for (i, image) in images.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if !seen.insert(image) {
            found.push(Violation {
                field,
                message: format!("{}: {image}", refusal::DUPLICATE_IMAGE),
            });
        } else if let Err(error) = ImageRef::parse(image) {
            found.push(Violation {
                field,
                message: format!("invalid image reference {image:?}: {error}"),
            });
        }
    }
}

/// Returns the rules that `new` breaks and `old` did not, so that a stored object with mistakes can
/// still be edited. A mistake that only moved to another place is not new.
pub fn new_violations(old: &ImageCacheSpec, new: &ImageCacheSpec) -> Vec<Violation> {
    added(violations(old), violations(new))
}

/// Returns the broken rules of an edited object that the object did not break before.
pub fn added(old: Vec<Violation>, new: Vec<Violation>) -> Vec<Violation> {
    let mut before: BTreeMap<String, usize> = BTreeMap::new();
    for violation in old {
        *before.entry(violation.message).or_default() += 1;
    }
    let is_new = |violation: &Violation| match before.get_mut(&violation.message) {
        Some(left @ 1..) => {
            *left -= 1;
            false
        }
        _ => true,
    };
    let mut found = new;
    found.retain(is_new);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheSpecEntry;

    fn spec(lists: &[&[&str]]) -> ImageCacheSpec {
        ImageCacheSpec {
            cache_spec: lists
                .iter()
                .map(|images| CacheSpecEntry {
                    images: images.iter().map(ToString::to_string).collect(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn texts(spec: &ImageCacheSpec) -> Vec<String> {
        violations(spec).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_spec_breaks_nothing_and_one_image_may_stand_in_two_lists() {
        assert!(texts(&spec(&[&["a:1", "b:1"], &["a:1"]])).is_empty());
    }

    #[test]
    fn an_empty_list_and_a_duplicate_are_named_in_kube_fledgeds_words() {
        assert_eq!(
            texts(&spec(&[&[], &["a:1", "a:1"]])),
            [
                "spec.cacheSpec[0].images: No images specified within image list",
                "spec.cacheSpec[1].images[1]: Duplicate image names within image list: a:1",
            ]
        );
    }

    #[test]
    fn a_name_that_does_not_parse_is_named_with_its_place() {
        let texts = texts(&spec(&[&["UPPER/case:x"]]));
        assert_eq!(texts.len(), 1);
        assert!(texts[0].starts_with("spec.cacheSpec[0].images[0]: invalid image reference"));
    }

    #[test]
    fn a_spec_that_asks_for_nothing_is_refused_with_what_to_write_instead() {
        let empty = texts(&spec(&[]));
        assert_eq!(empty.len(), 1);
        assert!(empty[0].contains("delete the object"), "{empty:?}");
        for none in ["0", "0%"] {
            let mut paused = spec(&[&["a:1"]]);
            paused.max_concurrent_nodes = none.parse().ok();
            let texts = texts(&paused);
            assert_eq!(texts.len(), 1, "{none}");
            assert!(texts[0].contains("suspend: true"), "{texts:?}");
        }
    }

    #[test]
    fn a_time_out_of_the_node_gate_that_holds_nobody_or_for_days_is_refused_with_what_to_write() {
        for (written, allowed) in [("0s", false), ("1s", true), ("24h", true), ("25h", false)] {
            let mut gating = spec(&[&["a:1"]]);
            gating.node_gate_timeout = written.parse().ok();
            let texts = texts(&gating);
            assert_eq!(texts.is_empty(), allowed, "{written}: {texts:?}");
            assert!(
                allowed || texts[0].contains("nodeGate: Ignored"),
                "{texts:?}"
            );
        }
    }

    #[test]
    fn an_update_may_keep_what_was_broken_before_but_add_nothing() {
        let old = spec(&[&["a:1", "a:1"]]);
        let new = spec(&[&["a:1", "a:1"], &[]]);
        let found = new_violations(&old, &new);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, refusal::NO_IMAGES);
        assert!(new_violations(&old, &old).is_empty());
    }

    #[test]
    fn one_empty_list_that_was_stored_excuses_one_empty_list() {
        let old = spec(&[&[], &["a:1"]]);
        let moved = spec(&[&["a:1"], &[]]);
        assert!(new_violations(&old, &moved).is_empty());
        let more = spec(&[&[], &["a:1"], &[]]);
        assert_eq!(new_violations(&old, &more).len(), 1);
    }

    #[test]
    fn an_object_has_room_for_so_many_names_because_each_is_stored_twice() {
        let names: Vec<String> = (0..MOST_NAME_BYTES / 100)
            .map(|i| format!("{}{i:010}", "a".repeat(90)))
            .collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let full = spec(&[&names]);
        assert!(texts(&full).is_empty());
        names.push("b");
        let more = spec(&[&names]);
        assert_eq!(
            texts(&more),
            [
                "spec.cacheSpec: the image names have more than 400000 bytes in all: split them into several ImageCaches"
            ]
        );
        // An object that was stored too full can be edited, as long as it stays so.
        assert!(new_violations(&more, &more).is_empty());
        assert_eq!(new_violations(&full, &more).len(), 1);
    }
}
