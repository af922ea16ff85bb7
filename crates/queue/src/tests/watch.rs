//! The disk and the bytes that arrive.

use super::*;

fn guarded(percent_free: u64) -> Node {
    let mut node = Node::containerd(Settings {
        disk_watermark: Some(80),
        ..Settings::default()
    });
    node.disk = Ok(Disk::of_bytes(100 << 20, percent_free << 20));
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
        node.answer_progress();
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
    go_on(&mut node, 3, Some(bytes));
    assert!(
        !node.pulled.contains_key(&1),
        "the first observation begins the limit"
    );
    go_on(&mut node, 1, Some(bytes));
    assert_eq!(node.failure(1), "NoProgress");
}

/// Two pulls run, of which nothing is known.
fn two_pulls(percent_free: u64) -> Node {
    let mut node = guarded(percent_free);
    node.facts(RuntimeFacts::default());
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    for call in ["Inspect", "Inspect", "FsInfo"] {
        node.answer(call);
    }
    assert_eq!(node.count("Pull"), 2, "{:?}", node.log);
    node
}

fn free(node: &mut Node, percent: u64) {
    node.disk = Ok(Disk::of_bytes(100 << 20, percent << 20));
    node.wait(3);
    node.answer("FsInfo");
}

#[test]
fn while_pulls_run_the_disk_is_looked_at_and_they_stop_above_the_watermark_and_its_margin() {
    let mut node = two_pulls(30);
    free(&mut node, 18);
    assert!(node.pulled.is_empty(), "82 %: within the margin");
    free(&mut node, 17);
    assert_eq!(node.pulled[&1].len(), 2);
    assert_eq!(node.failure(1), "DiskPressure");
    let PullResult::Failed { message, .. } = &node.pulled[&1][0].result else {
        panic!("{:?}", node.pulled);
    };
    assert!(
        message.contains("83 % full") && message.contains("--disk-watermark 80"),
        "{message}"
    );
    assert_eq!(node.count("cancel Pull"), 2);
    node.run();
    assert_eq!(
        node.queue.next_wakeup().map(|at| at.0 > 60_000),
        Some(true),
        "it is not looked at for ever"
    );
}

#[test]
fn a_pull_that_cannot_fit_is_stopped_when_its_sizes_are_known_and_others_go_on() {
    let mut node = guarded(60);
    node.pull(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    for call in ["Inspect", "Inspect", "FsInfo"] {
        node.answer(call);
    }
    let bytes = |total: u64| Bytes {
        done: 1 << 20,
        total: total << 20,
        active: true,
    };
    // 43 MiB are free below 83 %: 20 MiB still to come need 40.
    node.bytes.insert("r.test/a:1".to_owned(), bytes(21));
    node.bytes.insert("r.test/b:1".to_owned(), bytes(3));
    node.wait(1);
    node.answer("Progress");
    let [
        PullOutcome {
            index: 1,
            result: PullResult::Failed { reason, message },
            ..
        },
    ] = node.pulled[&1].as_slice()
    else {
        panic!("{:?}", node.pulled);
    };
    assert_eq!(reason, "DiskPressure");
    assert!(
        message.contains("needs at least 4 MiB more, and 3 MiB are free"),
        "{message}"
    );
    assert_eq!(node.count("cancel Pull"), 1);
    node.run();
    assert!(matches!(node.pulled[&1][1].result, PullResult::Pulled));
}

#[test]
fn a_file_system_without_inodes_is_full_too() {
    let mut node = guarded(60);
    node.disk = Ok(Disk {
        inodes: 1000,
        inodes_free: 99,
        ..node.disk.unwrap()
    });
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    let PullResult::Failed { reason, message } = node.result(1) else {
        panic!("{:?}", node.result(1));
    };
    assert_eq!(reason, "DiskPressure");
    assert!(
        message.contains("90 % of its inodes in use, 99 of 1000 are free"),
        "{message}"
    );
}
