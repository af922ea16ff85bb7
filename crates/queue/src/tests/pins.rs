//! Pins.

use super::*;

#[test]
fn a_pin_goes_on_the_id_and_counts_when_the_runtime_shows_it() {
    let mut node = Node::containerd(Settings::default());
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.count("Pin(\"sha256:r.test/a:1\", true)"), 1);
    assert_eq!(node.pulled[&1][0].pin, PinResult::Pinned);
    assert_eq!(node.queue.pins(), Support::Yes);
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(node.report.pinned_by_us, ["sha256:r.test/a:1"]);
    assert_eq!(node.report.pins, Support::Yes);
}

#[test]
fn a_runtime_that_does_not_look_at_the_label_is_found_out_once_and_the_label_goes() {
    let mut node = Node::containerd(Settings::default());
    node.pins_work = false;
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    node.rest(10);
    assert_eq!(*node.result(1), PullResult::Pulled);
    assert_eq!(node.pulled[&1][0].pin, PinResult::Unsupported);
    assert!(node.ours.is_empty());
    node.pull_this(2, authority(1, 2), pinned("r.test/b:1"));
    node.run();
    assert_eq!(node.pulled[&2][0].pin, PinResult::Unsupported);
    assert_eq!(node.count("Pin("), 2, "on and off, the first time only");
}

#[test]
fn a_pin_that_somebody_takes_off_before_it_is_seen_says_nothing_of_the_runtime() {
    let mut node = Node::containerd(Settings::default());
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.answer("Inspect");
    node.answer("Pin");
    node.handle(Event::Remove {
        stream: StreamId(2),
        authority: authority(1, 2),
        references: Vec::new(),
        desired: Vec::new(),
        releasable: Vec::new(),
        only_pulled: Vec::new(),
        unpin_ours: true,
        unpin: texts(&["sha256:r.test/a:1"]),
    });
    node.answer("Pins");
    node.answer("Pin(\"sha256:r.test/a:1\", false)");
    node.run();
    node.rest(10);
    let pin = &node.pulled[&1][0].pin;
    assert!(matches!(pin, PinResult::Failed(_)), "{pin:?}");
    assert_eq!(node.queue.pins(), Support::Unknown);
    node.pull_this(3, authority(1, 3), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.pulled[&3][0].pin, PinResult::Pinned);
}

#[test]
fn a_present_image_is_pinned_and_one_that_somebody_else_pinned_is_left_as_it_is() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/theirs:1", false);
    node.hold("r.test/a:1");
    for (stream, name) in [(1, "r.test/a:1"), (2, "r.test/theirs:1")] {
        node.pull_this(stream, authority(1, stream), pinned(name));
        node.run();
        assert_eq!(*node.result(stream), PullResult::Present);
        assert_eq!(node.pulled[&stream][0].pin, PinResult::Pinned);
    }
    assert_eq!(node.count("Pin("), 1);
}

#[test]
fn a_tag_that_moved_unpins_the_image_it_left_unless_that_has_another_name() {
    for (tags, left) in [(vec![], 0), (vec!["r.test/other:1".to_owned()], 1)] {
        let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
        let request = PullRequest {
            retention: Retention::Pinned,
            ..always("r.test/a:1", "refresh")
        };
        node.pull_this(1, authority(1, 1), request);
        node.answer("Inspect");
        let mut old = node.images.remove("r.test/a:1").unwrap();
        old.tags = tags;
        let id = std::mem::replace(&mut old.id, "sha256:old".to_owned());
        node.ours = [old.id.clone()].into();
        node.images.insert("old".to_owned(), old);
        // What the inspection before the pull saw.
        node.held("old").id = id.clone();
        node.ours = [id].into();
        node.answer("Pull");
        node.held("r.test/a:1").id = "sha256:new".to_owned();
        node.run();
        assert_eq!(node.pulled[&1][0].pin, PinResult::Pinned);
        assert_eq!(node.ours.len(), left + 1, "{:?}", node.ours);
        assert!(node.ours.contains("sha256:new"));
    }
}

#[test]
fn an_image_that_we_pinned_is_removed_when_our_pin_may_go_and_one_of_others_never() {
    let mut node = Node::containerd(Settings::default())
        .pinned("r.test/a:1", true)
        .pinned("r.test/theirs:1", false);
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removal(1), "Pinned");
    node.unpin(2, &["r.test/a:1", "r.test/theirs:1"], &[], &[]);
    assert_eq!(node.removal(2), "Removed");
    assert!(node.ours.is_empty() && node.images.contains_key("r.test/theirs:1"));
    assert_eq!(node.count("Remove"), 1);
}

#[test]
fn what_is_kept_loses_our_pin_too_unless_somebody_wants_it() {
    for (desired, left) in [(vec![], 0), (vec!["r.test/a:1"], 1)] {
        let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
        node.containers.push(Container {
            image: vec!["sha256:r.test/a:1".to_owned()],
        });
        node.unpin(1, &["r.test/a:1"], &desired, &[]);
        assert_eq!(node.removal(1), "InUse");
        assert_eq!(node.ours.len(), left);
    }
}

#[test]
fn a_pin_that_nobody_wants_goes_by_its_id_and_the_image_stays() {
    let mut node = Node::containerd(Settings::default())
        .pinned("r.test/a:1", true)
        .pinned("r.test/b:1", false);
    node.unpin(1, &[], &[], &["sha256:r.test/a:1", "sha256:r.test/b:1"]);
    let results: Vec<_> = node.removed[&1]
        .iter()
        .map(|o| (o.index, &o.result))
        .collect();
    assert_eq!(
        results,
        [(0, &RemoveResult::Removed), (1, &RemoveResult::Absent)]
    );
    assert_eq!(node.done, [1]);
    assert!(node.ours.is_empty() && node.images["r.test/b:1"].pinned);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_late_pull_does_not_bring_back_a_pin_that_was_taken_off_since() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
    node.unpin(5, &[], &[], &["sha256:r.test/a:1"]);
    assert_eq!(node.removal(5), "Removed");
    node.pull_this(4, authority(1, 4), pinned("r.test/a:1"));
    node.run();
    assert_eq!(*node.result(4), PullResult::Present);
    assert_eq!(node.pulled[&4][0].pin, PinResult::NotAsked);
    assert!(node.ours.is_empty());
    node.pull_this(6, authority(1, 6), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.pulled[&6][0].pin, PinResult::Pinned);
    assert!(node.ours.contains("sha256:r.test/a:1"));
}

/// containerd's CRI takes in labels asynchronously: the more images change, the later.
#[test]
fn pins_that_the_runtime_shows_some_seconds_late_are_pins() {
    let mut node = Node::containerd(Settings::default());
    node.pins_late = true;
    let names: Vec<String> = (0..24).map(|i| format!("r.test/i{i}:1")).collect();
    let images = names.iter().map(|name| pinned(name)).collect();
    node.handle(Event::Pull(StreamId(1), authority(1, 1), images));
    node.run();
    node.rest(3);
    assert!(!node.pulled.contains_key(&1), "nothing is concluded yet");
    node.show_pins();
    node.rest(5);
    assert_eq!(node.pulled[&1].len(), 24);
    let pinned = node.pulled[&1].iter();
    assert_eq!(pinned.filter(|o| o.pin == PinResult::Pinned).count(), 24);
    assert_eq!(node.queue.pins(), Support::Yes);
    assert_eq!(node.ours.len(), 24);
}

#[test]
fn a_pin_that_does_not_show_does_not_say_that_a_runtime_that_pinned_before_cannot() {
    let mut node = Node::containerd(Settings::default());
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    assert_eq!(node.queue.pins(), Support::Yes);
    node.pins_late = true;
    node.pull_this(2, authority(1, 2), pinned("r.test/b:1"));
    node.run();
    node.rest(20);
    let pin = &node.pulled[&2][0].pin;
    assert!(
        matches!(pin, PinResult::Failed(why) if why.contains("not show")),
        "{pin:?}"
    );
    assert_eq!(node.queue.pins(), Support::Yes);
    assert!(node.ours.contains("sha256:r.test/b:1"), "the label stays");
}

/// Our pin is on the image, and from now on the runtime shows late what becomes of it.
fn pinned_where_the_runtime_is_late() -> Node {
    let mut node = Node::containerd(Settings::default());
    node.pull_this(1, authority(1, 1), pinned("r.test/a:1"));
    node.run();
    node.pins_late = true;
    node
}

fn is_removed_when_the_pin_shows_no_more(node: &mut Node, stream: u64) {
    node.rest(3);
    assert!(
        !node.removed.contains_key(&stream),
        "nothing is concluded yet"
    );
    node.held("r.test/a:1").pinned = false;
    node.rest(5);
    assert_eq!(node.removal(stream), "Removed");
}

#[test]
fn a_pin_of_ours_that_the_runtime_still_shows_after_it_was_taken_off_does_not_keep_the_image() {
    let mut node = pinned_where_the_runtime_is_late();
    node.unpin(2, &["r.test/a:1"], &[], &[]);
    node.run();
    is_removed_when_the_pin_shows_no_more(&mut node, 2);
}

#[test]
fn a_pin_of_ours_that_an_earlier_request_took_off_and_that_still_shows_does_not_keep_the_image() {
    let mut node = pinned_where_the_runtime_is_late();
    node.unpin(2, &[], &[], &["sha256:r.test/a:1"]);
    node.remove(3, authority(1, 30), &["r.test/a:1"]);
    node.run();
    is_removed_when_the_pin_shows_no_more(&mut node, 3);
}

#[test]
fn a_pin_of_ours_that_a_broken_off_request_took_off_and_that_still_shows_does_not_keep_the_image() {
    let mut node = pinned_where_the_runtime_is_late();
    node.ask_to_unpin(2, &["r.test/a:1"], &[], &[]);
    for call in ["Inspect", "Containers", "Pins"] {
        node.answer(call);
    }
    node.remove(3, authority(1, 30), &["r.test/a:1"]);
    node.handle(Event::Closed(StreamId(2)));
    node.run();
    is_removed_when_the_pin_shows_no_more(&mut node, 3);
}

#[test]
fn a_pin_that_showed_a_moment_after_it_was_taken_off_does_not_keep_the_image_although_the_runtime_is_slow()
 {
    let mut node = pinned_where_the_runtime_is_late();
    node.unpin(2, &[], &[], &["sha256:r.test/a:1"]);
    node.run();
    node.remove(3, authority(1, 30), &["r.test/a:1"]);
    node.answer("Inspect");
    node.held("r.test/a:1").pinned = false;
    // The inspection was as old as the pin when the runtime told of its containers.
    node.wait(15);
    node.run();
    node.rest(5);
    assert_eq!(node.removal(3), "Removed");
}

#[test]
fn a_pin_that_stays_after_ours_was_taken_off_is_somebody_elses() {
    let mut node = pinned_where_the_runtime_is_late();
    node.unpin(2, &["r.test/a:1"], &[], &[]);
    node.run();
    node.rest(15);
    assert_eq!(node.removal(2), "Pinned");
    assert_eq!(node.count("Remove"), 0);
}
