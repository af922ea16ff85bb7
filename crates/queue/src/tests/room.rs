//! What fits into memory.

use super::*;

#[test]
fn more_than_fits_in_memory_is_refused_as_a_whole() {
    let mut node = Node::new();
    let names: Vec<String> = (0..10_000).map(|i| format!("r.test/i{i}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for caller in 1..=100 {
        node.pull(caller, authority(1, caller), &names);
    }
    assert_eq!(node.overloaded.len(), 99);
    assert_eq!(node.attached.len(), 1);
    let kept = node.queue.remembers();
    assert!(kept < 30_000, "{kept}");
}

#[test]
fn what_has_ended_makes_room_for_new_requests() {
    let mut node = Node::set(Settings {
        most_open: 100,
        ..Settings::default()
    });
    for round in 1..=5 {
        let names: Vec<String> = (0..90).map(|i| format!("r.test/i{i}:{round}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        node.pull(round, authority(1, round), &names);
        node.run();
        assert_eq!(node.pulled[&round].len(), 90);
    }
    assert!(node.overloaded.is_empty());
}

/// What is only named takes no task: a busy node has many intents, and its removals go on.
#[test]
fn a_removal_beside_fifty_thousand_desired_names_has_room() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    let names: Vec<String> = (0..50_000).map(|i| format!("r.test/w{i}:1")).collect();
    let desired: Vec<&str> = names.iter().map(String::as_str).collect();
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &desired, &[]);
    node.run();
    assert!(node.overloaded.is_empty());
    assert_eq!(node.removed[&1][0].result, RemoveResult::Removed);
}

#[test]
fn a_node_whose_queue_is_full_is_looked_at() {
    let mut node = Node::set(Settings {
        most_open: 100,
        ..Settings::default()
    });
    let names: Vec<String> = (0..100).map(|i| format!("r.test/i{i}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    node.pull(1, authority(1, 1), &names);
    node.pull(2, authority(1, 2), &["r.test/more:1"]);
    assert_eq!(node.overloaded, [2]);
    node.handle(Event::Check(StreamId(3), texts(&["r.test/a:1"])));
    node.answer("Pins");
    while node.checked.is_empty() {
        node.answer("Inspect");
    }
    assert_eq!(node.checked.len(), 1);
    assert_eq!(node.overloaded, [2]);
}
