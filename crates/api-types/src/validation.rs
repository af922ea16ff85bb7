//! The rules for a written spec, in kube-fledged's words. The webhook refuses by them; the engine
//! tolerates what was stored before they existed.

use std::collections::BTreeSet;

use kubefledged_image::ImageRef;

use crate::{ImageCacheSpec, names::refusal};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path of the field, such as `spec.cacheSpec[0].images[2]`.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All broken rules of a spec, in the order of its fields.
pub fn violations(spec: &ImageCacheSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    for (l, list) in spec.cache_spec.iter().enumerate() {
        let field = format!("spec.cacheSpec[{l}].images");
        if list.images.is_empty() {
            found.push(Violation {
                field: field.clone(),
                message: refusal::NO_IMAGES.to_owned(),
            });
        }
        let mut seen = BTreeSet::new();
        for (i, image) in list.images.iter().enumerate() {
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
    if let Some(interval) = spec.refresh.as_ref().and_then(|refresh| refresh.interval) {
        let seconds = interval.0.as_secs();
        if !interval.0.is_zero() && seconds < 60 {
            found.push(Violation {
                field: "spec.refresh.interval".to_owned(),
                message: format!("{interval} is too short: write at least 1m, or 0s for never"),
            });
        }
    }
    found
}

/// The rules that `new` breaks and `old` did not: what was stored stays updatable.
pub fn new_violations(old: &ImageCacheSpec, new: &ImageCacheSpec) -> Vec<Violation> {
    let before: BTreeSet<_> = violations(old).into_iter().map(|v| v.message).collect();
    violations(new)
        .into_iter()
        .filter(|violation| !before.contains(&violation.message))
        .collect()
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
    fn an_update_may_keep_what_was_broken_before_but_add_nothing() {
        let old = spec(&[&["a:1", "a:1"]]);
        let new = spec(&[&["a:1", "a:1"], &[]]);
        let found = new_violations(&old, &new);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, refusal::NO_IMAGES);
        assert!(new_violations(&old, &old).is_empty());
    }
}
