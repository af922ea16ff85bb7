//! The disk and the bytes that arrive.

use super::*;

fn guarded(percent_free: u64) -> Node {
    let mut node = Node::containerd(Settings {
        disk_watermark: Some(80),
        ..Settings::default()
    });
    node.disk = Ok(Disk {
        capacity: 100 << 20,
        available: percent_free << 20,
    });
    node
}

#[test]
fn above_the_watermark_nothing_is_pulled_or_pinned_and_the_figures_are_told() {
    let mut node = guarded(20);
    node.hold("r.test/here:1");
    node.pull_this(1, authority(1, 1), request("r.test/a:1"));
    node.pull_this(2, authority(1, 2), pinned("r.test/here:1"));
    node.run();
    let PullResult::Failed { reason, message } = node.result(1) else {
        panic!("{:?}", node.result(1));
    };
    assert_eq!(reason, "DiskPressure");
    assert!(
        message.contains("80 % full, 20 of 100 MiB are free"),
        "{message}"
    );
    assert_eq!(*node.result(2), PullResult::Present);
    assert!(
        matches!(&node.pulled[&2][0].pin, PinResult::DiskPressure(why) if why.contains("80 %"))
    );
    assert_eq!(node.count("Pull") + node.count("Pin("), 0);
}

#[test]
fn below_the_watermark_the_disk_is_looked_at_now_and_then() {
    let mut node = guarded(21);
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.run();
    assert_eq!((node.count("Pull"), node.count("FsInfo")), (2, 1));
    node.wait(5);
    node.pull(2, authority(1, 2), &["r.test/c:1"]);
    node.run();
    assert_eq!(node.count("FsInfo"), 2);
    assert_eq!(node.pulled[&2].len(), 1);
}

#[test]
fn a_disk_that_cannot_be_seen_stops_nothing_and_a_check_says_so() {
    let mut node = guarded(0);
    node.disk = Err(error("Unimplemented", "no"));
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(1), PullResult::Pulled);
    node.check(&["r.test/a:1"]);
    node.run();
    assert_eq!(node.report.disk, None);

    let mut node = guarded(50);
    node.check(&[]);
    node.run();
    assert_eq!(node.report.disk.unwrap().available, 50 << 20);
    assert_eq!(node.report.watermark, 80);
}

/// Lets a pull go on for so long, with so many bytes there, and answers observations of them.
fn go_on(node: &mut Node, seconds: u64, bytes: Option<Bytes>) {
    node.bytes.clear();
    if let Some(bytes) = bytes {
        node.bytes.insert("r.test/a:1".to_owned(), bytes);
    }
    for _ in 0..seconds {
        node.wait(1);
        if node
            .calls
            .iter()
            .any(|(_, call)| matches!(call, Call::Progress(_)))
        {
            node.answer("Progress");
        }
    }
}

#[test]
fn the_no_progress_limit_runs_only_while_something_is_being_fetched() {
    let bytes = |done, active| {
        Some(Bytes {
            done,
            total: 9,
            active,
        })
    };
    let mut node = Node::containerd(Settings::default());
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    go_on(&mut node, 110, bytes(1, true));
    go_on(&mut node, 110, bytes(2, true));
    go_on(&mut node, 1000, bytes(9, false));
    go_on(&mut node, 1000, None);
    assert!(!node.pulled.contains_key(&1), "{:?}", node.pulled);
    go_on(&mut node, 140, bytes(3, true));
    assert_eq!(node.failure(1), "NoProgress");
    assert_eq!(node.count("cancel Pull"), 1);
}

#[test]
fn the_fallback_deadline_holds_where_no_byte_is_seen() {
    for (seen, ended) in [(false, true), (true, false)] {
        let mut node = Node::containerd(Settings::default());
        let request = PullRequest {
            fallback_deadline: Some(Duration::from_secs(300)),
            ..request("r.test/a:1")
        };
        node.pull_this(1, authority(1, 1), request);
        node.answer("Inspect");
        for done in 0..31 {
            let bytes = Bytes {
                done,
                total: 99,
                active: true,
            };
            go_on(&mut node, 10, seen.then_some(bytes));
        }
        assert_eq!(node.pulled.contains_key(&1), ended, "seen: {seen}");
    }
}

#[test]
fn a_registry_that_drips_makes_no_progress_and_a_slow_one_does() {
    let bytes = |done, total| {
        Some(Bytes {
            done,
            total,
            active: true,
        })
    };
    // A byte a minute of a large and of a small image; 1 KiB a second.
    for (step, total, ended) in [
        (1, 1 << 30, true),
        (1, 1000, true),
        (60 << 10, 1 << 30, false),
    ] {
        let mut node = Node::containerd(Settings::default());
        node.pull(1, authority(1, 1), &["r.test/a:1"]);
        node.answer("Inspect");
        for minute in 0..30 {
            go_on(&mut node, 60, bytes(minute * step, total));
        }
        assert_eq!(node.pulled.contains_key(&1), ended, "{step} of {total}");
        if ended {
            assert_eq!(node.failure(1), "NoProgress");
        }
    }
}

#[test]
fn a_limit_shorter_than_ten_seconds_holds_to_the_second() {
    let mut node = Node::containerd(Settings {
        no_progress: Duration::from_secs(3),
        ..Settings::default()
    });
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    let bytes = Bytes {
        done: 1,
        total: 9,
        active: true,
    };
    go_on(&mut node, 5, Some(bytes));
    assert!(
        !node.pulled.contains_key(&1),
        "the first observation begins the limit"
    );
    go_on(&mut node, 1, Some(bytes));
    assert_eq!(node.failure(1), "NoProgress");
}
