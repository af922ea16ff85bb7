//! Names without a registry: CRI-O searches its registries for them, and lists what it found.

use super::*;

const SHORT: &str = "demo/web:1.0";
const FULL: &str = "r.test/demo/web:1.0";

fn crio() -> Node {
    let mut node = Node::with(Runtime::Crio);
    node.hold(FULL);
    node.aliases.insert(SHORT.to_owned(), FULL.to_owned());
    node
}

#[test]
fn a_short_name_does_not_take_away_the_full_name_that_another_cache_wants() {
    let mut node = crio();
    node.remove_with(1, authority(1, 1), &[SHORT], &[FULL], &[]);
    node.run();
    assert_eq!(node.removal(1), "SharedImage");
    assert_eq!(node.held(FULL).tags, [FULL]);
}

#[test]
fn a_full_name_stays_while_another_cache_wants_it_by_a_short_one() {
    let mut node = crio();
    node.remove_with(1, authority(1, 1), &[FULL], &[SHORT], &[]);
    node.run();
    assert_eq!(node.removal(1), "SharedImage");
    assert_eq!(node.held(FULL).tags, [FULL]);
}

#[test]
fn a_short_name_that_nobody_else_wants_goes_with_its_image() {
    let mut node = crio();
    node.remove(1, authority(1, 1), &[SHORT]);
    node.run();
    assert_eq!(node.removal(1), "Removed");
    assert!(node.images.is_empty(), "{:?}", node.images);
}

#[test]
fn a_short_name_that_was_pulled_while_a_removal_waited_counts_with_what_it_means_now() {
    let mut node = Node::with(Runtime::Crio);
    node.hold(FULL);
    node.hold("r.test/first:1");
    node.remove_with(1, authority(1, 1), &["r.test/first:1", FULL], &[SHORT], &[]);
    node.answer(&format!("Inspect({SHORT:?}"));
    node.aliases.insert(SHORT.to_owned(), FULL.to_owned());
    node.pull(2, authority(1, 2), &[SHORT]);
    node.run();
    let last = node.removed[&1].last().unwrap();
    assert!(
        matches!(&last.result, RemoveResult::Kept { reason, .. } if reason == "SharedImage"),
        "{last:?}"
    );
    assert_eq!(node.held(FULL).tags, [FULL]);
}

/// On containerd the same two names are two images: a short one always means Docker Hub.
#[test]
fn where_short_names_are_not_searched_for_they_are_not_asked_about() {
    let mut node = Node::new();
    node.hold(FULL);
    node.remove_with(1, authority(1, 1), &[FULL], &[SHORT, "web:1.0"], &[]);
    node.run();
    assert_eq!(node.removal(1), "Removed");
    assert_eq!(node.count("Inspect(\"demo"), 0);
}

#[test]
fn a_mounted_image_that_cri_o_does_not_let_go_is_in_use() {
    let mut node = Node::with(Runtime::Crio);
    node.hold(FULL);
    node.removals = Err(error("Unknown", "the image is in use by 0123abc"));
    node.remove(1, authority(1, 1), &[FULL]);
    node.run();
    assert_eq!(node.removal(1), "InUse");
    assert_eq!(node.count(&format!("Remove({FULL:?})")), 1, "by its name");
}
