//! Checks.

use super::*;

#[test]
fn a_check_answers_by_index_what_is_there_what_is_on_its_way_and_what_failed() {
    let mut node = Node::new();
    node.hold("r.test/b:1");
    node.broken
        .insert("r.test/d:1".into(), error("NotFound", "d: not found"));
    node.pull(1, authority(1, 1), &["r.test/d:1"]);
    node.run();
    node.pull(
        2,
        authority(1, 2),
        &["r.test/a:1", "r.test/x:1", "r.test/y:1"],
    );
    for _ in 0..3 {
        node.answer("Inspect");
    }
    let names = [
        "r.test/a:1",
        "r.test/b:1",
        "r.test/c:1",
        "r.test/d:1",
        "r.test/y:1",
    ];
    let checked = node.check(&names);
    assert_eq!(checked[0], Checked::Pulling);
    assert!(matches!(checked[1], Checked::Present(_)));
    assert_eq!(checked[2], Checked::Absent);
    assert!(matches!(&checked[3], Checked::Failed { reason, .. } if reason == "ImageNotFound"));
    assert_eq!(checked[4], Checked::Queued);
}

#[test]
fn a_check_of_many_images_does_not_flood_the_runtime() {
    let mut node = Node::new();
    let names: Vec<String> = (0..100).map(|i| format!("r.test/i{i}:1")).collect();
    node.handle(Event::Check(StreamId(1), names));
    assert_eq!(node.calls.len(), 16);
    node.run();
    assert_eq!(node.checked.len(), 100);
    assert_eq!(node.count("Inspect"), 100);
}

#[test]
fn a_check_says_when_the_runtime_does_not_say_which_pins_are_ours() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/a:1", true);
    node.pins_answer = Err(error("Unavailable", "connection refused"));
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(
        (node.report.pins_unknown, node.report.pinned_by_us.len()),
        (true, 0)
    );
    node.pins_answer = Ok(());
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(
        (node.report.pins_unknown, node.report.pinned_by_us.len()),
        (false, 1)
    );
}
