//! Removals after pulls that were ended, and removals that were not seen to their end.

use super::*;

/// A pull of `r.test/a:1` was ended by a newer removal, and the runtime has let go of it.
fn ended(runtime: Runtime) -> Node {
    let mut node = Node::with(runtime);
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    node
}

#[test]
fn an_image_that_an_ended_pull_makes_a_little_later_is_removed() {
    for (runtime, late) in [
        (Runtime::Containerd, 1),
        (Runtime::Crio, 5),
        (Runtime::Docker, 25),
    ] {
        let mut node = ended(runtime);
        node.rest(late);
        assert!(node.removed.is_empty(), "{runtime:?}: it may still come");
        node.hold("r.test/a:1");
        node.rest(60);
        assert_eq!(node.removal(2), "Removed", "{runtime:?}");
        assert!(node.images.is_empty(), "{runtime:?}");
        assert_eq!(node.done, [1, 2]);
    }
}

#[test]
fn a_removal_after_an_ended_pull_looks_a_few_times_and_then_says_that_nothing_was_there() {
    let mut node = ended(Runtime::Crio);
    node.rest(9);
    assert!(node.removed.is_empty());
    node.rest(2);
    assert_eq!(node.removal(2), "Absent");
    let looks = node.count("Inspect");
    assert!((4..=10).contains(&looks), "{looks}");
}

#[test]
fn a_newer_pull_does_not_wait_for_a_removal_that_looks_again() {
    let mut node = ended(Runtime::Crio);
    node.pull(3, authority(1, 3), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removed[&2][0].result, RemoveResult::Superseded);
    assert_eq!(*node.result(3), PullResult::Pulled);
    node.rest(60);
    assert!(node.images.contains_key("r.test/a:1"));
}

#[test]
fn a_pull_that_ended_by_itself_is_not_followed() {
    let mut node = Node::new();
    node.broken.insert(
        "r.test/a:1".to_owned(),
        error("Unknown", "401 Unauthorized"),
    );
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removal(2), "Absent");
}

/// containerd takes the names off first: a removal that is broken off leaves the id.
#[test]
fn a_removal_that_was_broken_off_and_left_only_the_id_is_finished_by_the_next_one() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.removals = Err(error("DeadlineExceeded", "no answer in time"));
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert!(node.removal(1).starts_with("Failed"), "{}", node.removal(1));
    node.removals = Ok(());
    let mut left = node.images.remove("r.test/a:1").unwrap();
    left.tags.clear();
    node.images.insert("left".to_owned(), left);
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert!(node.images.is_empty(), "{:?}", node.images);
    assert_eq!(node.removal(2), "Absent", "its name was not there");
    let removals = node.count("Remove");
    node.remove(3, authority(1, 3), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removal(3), "Absent");
    assert_eq!(node.count("Remove"), removals);
}

#[test]
fn what_a_broken_off_removal_left_stays_if_it_has_another_name_by_now_or_is_in_use() {
    for used in [false, true] {
        let mut node = Node::new();
        node.hold("r.test/a:1");
        node.removals = Err(error("DeadlineExceeded", "no answer in time"));
        node.remove(1, authority(1, 1), &["r.test/a:1"]);
        node.run();
        node.removals = Ok(());
        let mut left = node.images.remove("r.test/a:1").unwrap();
        let id = left.id.clone();
        left.tags = texts(if used { &[] } else { &["r.test/other:1"] });
        node.images.insert("left".to_owned(), left);
        if used {
            node.containers.push(Container { image: vec![id] });
        }
        node.remove(2, authority(1, 2), &["r.test/a:1"]);
        node.run();
        assert_eq!(node.removal(2), "Absent");
        assert_eq!(node.images.len(), 1);
    }
}
