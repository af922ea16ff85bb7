//! Pulls: slots, priorities, credentials, deadlines, and who waits for what.

use super::*;

#[test]
fn an_absent_image_is_pulled_and_a_present_one_is_not() {
    let mut node = Node::new();
    node.hold("r.test/b:1");
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.run();
    let results: Vec<_> = node.pulled[&1]
        .iter()
        .map(|o| (o.index, o.result.clone()))
        .collect();
    assert!(
        results.contains(&(0, PullResult::Pulled)) && results.contains(&(1, PullResult::Present))
    );
    assert_eq!(node.count("Pull"), 1);
    assert_eq!(node.done, [1]);
}

#[test]
fn a_name_that_does_not_parse_fails_at_once_and_alone() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["UPPER/case:x", "r.test/a:1"]);
    node.run();
    assert!(
        matches!(&node.pulled[&1][0].result, PullResult::Failed { reason, .. } if reason == "InvalidImageName")
    );
    assert_eq!(node.pulled[&1].len(), 2);
}

#[test]
fn the_next_credential_is_tried_when_one_is_refused_and_none_is_burnt_when_the_registry_asks_to_wait()
 {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.broken.insert(
        "r.test/b:1".into(),
        error("Unknown", "429 Too Many Requests"),
    );
    let with = |name: &str| PullRequest {
        credentials: vec![CredentialId(1), CredentialId(7)],
        ..request(name)
    };
    node.handle(Event::Pull(
        StreamId(1),
        authority(1, 1),
        vec![with("r.test/a:1"), with("r.test/b:1")],
    ));
    node.run();
    let result = |index| node.pulled[&1].iter().find(|o| o.index == index).unwrap();
    assert_eq!(
        (&result(0).result, result(0).attempts),
        (&PullResult::Pulled, 2)
    );
    assert!(
        matches!(&result(1).result, PullResult::Failed { reason, .. } if reason == "RateLimited")
    );
    assert_eq!(result(1).attempts, 1);
}

#[test]
fn the_same_request_attaches_after_a_broken_stream_and_the_runtime_pulls_once() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.handle(Event::Closed(StreamId(1)));
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert!(!node.pulled.contains_key(&1));
    assert_eq!(node.pulled[&2][0].result, PullResult::Pulled);
    node.pull(3, authority(2, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(3), PullResult::Pulled, "also for a new leader");
    assert_eq!(node.count("Pull"), 1);
}

#[test]
fn cancelling_the_last_interest_ends_the_runtime_call() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer_one(0);
    node.cancel(authority(1, 2), 1, &["r.test/a:1"]);
    node.run();
    assert_eq!(node.pulled[&1][0].result, PullResult::Cancelled);
    assert_eq!(node.count("cancel Pull"), 1);
    assert!(node.images.is_empty());
}

#[test]
fn a_pull_that_somebody_else_wants_goes_on() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.cancel(authority(1, 3), 1, &[]);
    node.run();
    assert_eq!(node.pulled[&1][0].result, PullResult::Cancelled);
    assert_eq!(node.pulled[&2][0].result, PullResult::Pulled);
    assert_eq!(node.count("cancel"), 0);
}

#[test]
fn a_replaced_leader_is_refused_and_told_by_which_term() {
    let mut node = Node::new();
    node.pull(1, authority(3, 1), &["r.test/a:1"]);
    node.pull(2, authority(2, 9), &["r.test/b:1"]);
    node.run();
    assert_eq!(node.refused, [3]);
    assert!(!node.images.contains_key("r.test/b:1"));
}

#[test]
fn a_pull_beyond_its_deadline_ends_and_says_so() {
    let mut node = Node::new();
    let request = PullRequest {
        deadline: Some(Duration::from_secs(10)),
        ..request("r.test/a:1")
    };
    node.handle(Event::Pull(StreamId(1), authority(1, 1), vec![request]));
    node.answer_one(0);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(10_001)));
    node.now = Tick(10_001);
    node.poll();
    assert!(
        matches!(&node.pulled[&1][0].result, PullResult::Failed { reason, .. } if reason == "DeadlineExceeded")
    );
}

#[test]
fn a_long_pull_does_not_hold_up_small_ones() {
    let mut node = Node::new();
    let names = ["r.test/big:1", "r.test/big:2", "r.test/a:1", "r.test/b:1"];
    node.pull(1, authority(1, 1), &names);
    for _ in names {
        node.answer("Inspect");
    }
    assert_eq!(node.count("Pull"), 2);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(20_001)));
    node.wait(20);
    node.answer("Inspect");
    assert_eq!(node.count("Pull"), 3, "one more, and no further one");
    node.answer("Pull(\"r.test/a:1\"");
    node.answer("Inspect(\"r.test/a:1\"");
    node.answer("Inspect(\"r.test/b:1\"");
    assert_eq!(node.count("Pull(\"r.test/b:1\""), 1);
}

#[test]
fn what_is_present_is_told_however_long_pulls_take() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/big:1", "r.test/big:2"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.hold("r.test/here:1");
    node.pull(2, authority(1, 2), &["r.test/here:1"]);
    node.answer("Inspect");
    assert_eq!(*node.result(2), PullResult::Present);
}

#[test]
fn nothing_that_waits_for_a_slot_wakes_the_queue() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/b:1".into(), error("Unavailable", "gone"));
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.answer("Pull(\"r.test/b:1\"");
    node.pull(2, authority(1, 2), &["r.test/c:1"]);
    node.answer("Inspect(\"r.test/c:1\"");
    node.wait(60);
    // check_invariants has seen that the next wake-up lies ahead.
    assert!(node.queue.next_wakeup() > Some(node.now));
}

#[test]
fn a_higher_priority_goes_first_and_then_the_older() {
    let mut node = Node::new();
    let names = ["r.test/a:1", "r.test/b:1", "r.test/c:1", "r.test/d:1"];
    node.pull(1, authority(1, 1), &names);
    let urgent = PullRequest {
        priority: 5,
        ..request("r.test/e:1")
    };
    for _ in names {
        node.answer("Inspect");
    }
    node.pull_this(2, authority(1, 2), urgent);
    node.answer("Inspect(\"r.test/e:1\"");
    node.run();
    let pulls: Vec<&str> = node
        .log
        .iter()
        .filter_map(|line| line.strip_prefix("Pull(\"r.test/")?.get(..1))
        .collect();
    assert_eq!(pulls, ["a", "b", "e", "c", "d"]);
}

#[test]
fn an_unasked_cancel_is_repeated_at_once() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Cancelled", "context canceled"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 4);
    assert_eq!(node.failure(1), "NoProgress");
}

#[test]
fn a_runtime_that_is_away_is_asked_again_at_most_three_times() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("Unavailable", "no such file"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 1, "not without a pause");
    for _ in 0..10 {
        node.wait(5);
        node.run();
    }
    assert_eq!(node.count("Pull"), 4);
    assert_eq!(node.failure(1), "RuntimeUnavailable");
}

#[test]
fn a_look_that_failed_before_its_pull_had_a_slot_is_repeated() {
    let mut node = Node::new();
    node.inspections = Err(error("Unavailable", "no such file"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!((node.count("Inspect"), node.count("Pull")), (1, 0));
    assert!(node.queue.next_wakeup().is_some(), "nobody else wakes it");
    node.inspections = Ok(());
    node.wait(5);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
}

#[test]
fn a_failure_is_tried_again_when_asked_again() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("NotFound", "a: not found"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.failure(1), "ImageNotFound");
    node.broken.clear();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn a_failure_that_nobody_heard_of_is_told_once() {
    let mut node = Node::new();
    node.broken
        .insert("r.test/a:1".into(), error("NotFound", "a: not found"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.handle(Event::Closed(StreamId(1)));
    node.run();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(node.failure(2), "ImageNotFound");
    assert_eq!(node.count("Pull"), 1);
    node.pull(3, authority(1, 3), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull"), 2);
}

#[test]
fn what_was_pulled_and_is_gone_since_is_pulled_again() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    node.images.clear();
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Pulled);
    assert_eq!(node.count("Pull"), 2);
}

#[test]
fn always_asks_the_registry_once_per_token() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/a:1", "refresh-1"));
    node.run();
    node.pull_this(2, authority(1, 2), always("r.test/a:1", "refresh-1"));
    node.run();
    assert_eq!(node.count("Pull"), 1);
    assert_eq!(*node.result(2), PullResult::Pulled);
    node.pull_this(3, authority(1, 3), always("r.test/a:1", "refresh-2"));
    node.run();
    assert_eq!(node.count("Pull"), 2);
    node.wait(601);
    node.pull_this(4, authority(1, 4), always("r.test/a:1", "refresh-2"));
    node.run();
    assert_eq!(node.count("Pull"), 3, "remembered for ten minutes");
}

#[test]
fn another_credential_for_the_same_image_waits_and_then_needs_no_pull() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    let other = PullRequest {
        credential_hash: 9,
        credentials: vec![CredentialId(9)],
        ..request("r.test/a:1")
    };
    node.pull_this(2, authority(1, 2), other);
    assert!(node.queue.needs(CredentialId(9)));
    node.run();
    assert_eq!(*node.result(2), PullResult::Present);
    assert_eq!(node.count("Pull"), 1);
    assert!(!node.queue.needs(CredentialId(9)));
}

#[test]
fn whoever_asks_again_after_a_broken_stream_can_cancel() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.handle(Event::Closed(StreamId(1)));
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(node.attached[&2], 1);
    node.cancel(authority(1, 3), 2, &[]);
    assert_eq!(node.count("cancel Pull"), 1);
}

#[test]
fn a_pull_asked_for_right_after_its_cancel_is_done_anew_and_waits_for_the_old_one() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.cancel(authority(1, 2), 1, &[]);
    node.pull(2, authority(1, 3), &["r.test/a:1"]);
    assert_eq!(node.count("Pull"), 1, "the runtime has not let go yet");
    node.run();
    assert_eq!(*node.result(1), PullResult::Cancelled);
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn interests_of_an_older_term_end_after_a_minute_unless_they_are_taken_up() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.answer("Inspect");
    node.answer("Inspect");
    node.pull(2, authority(2, 1), &["r.test/a:1"]);
    assert_eq!(node.queue.next_wakeup(), Some(Tick(20_001)));
    node.wait(59);
    assert_eq!(node.count("cancel"), 0);
    node.wait(1);
    assert_eq!(node.count("cancel Pull(\"r.test/b:1\""), 1);
    node.run();
    assert_eq!(node.done, [1, 2]);
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn the_nodes_own_credentials_are_asked_for_when_those_of_the_request_are_used_up() {
    let settings = Settings {
        credential_providers: true,
        ..Settings::default()
    };
    let mut node = Node::set(settings.clone());
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.provided = (vec![CredentialId(7)], None);
    let with = PullRequest {
        credentials: vec![CredentialId(1)],
        ..request("r.test/a:1")
    };
    node.pull_this(1, authority(1, 1), with);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
    let calls: Vec<&str> = node
        .log
        .iter()
        .map(|line| line.split('(').next().unwrap())
        .collect();
    assert_eq!(calls, ["Inspect", "Pull", "Credentials", "Pull", "Inspect"]);

    // Anonymously only when there are none at all, and then why there are none is in the message.
    let mut node = Node::set(settings);
    node.broken
        .insert("r.test/a:1".into(), error("Unknown", "401 Unauthorized"));
    node.provided = (
        Vec::new(),
        Some("credential provider x: no such file".to_owned()),
    );
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Pull(\"r.test/a:1\", None"), 1);
    let PullResult::Failed { reason, message } = node.result(1) else {
        panic!("{:?}", node.result(1));
    };
    assert_eq!(reason, "Unauthorized");
    assert!(
        message.ends_with("; credential provider x: no such file"),
        "{message}"
    );
}
