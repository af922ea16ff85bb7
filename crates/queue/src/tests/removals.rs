//! Removals: what may go, what stays, and what is under way meanwhile.

use super::*;

#[test]
fn a_late_removal_does_not_delete_what_a_newer_pull_made() {
    let mut node = Node::new();
    node.pull(1, authority(1, 5), &["r.test/a:1"]);
    node.run();
    node.remove(2, authority(1, 4), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removed[&2][0].result, RemoveResult::Superseded);
    assert!(node.images.contains_key("r.test/a:1"));
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_removal_that_waits_for_containers_gives_way_to_a_newer_pull() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.answer_one(0);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.removed[&1][0].result, RemoveResult::Superseded);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn what_a_container_uses_what_is_pinned_and_what_has_another_name_stays() {
    let mut node = Node::new();
    for name in [
        "r.test/used:1",
        "r.test/pinned:1",
        "r.test/shared:1",
        "r.test/free:1",
        "r.test/pause:1",
    ] {
        node.hold(name);
    }
    node.containers.push(Container {
        image: vec!["sha256:r.test/used:1".to_owned()],
    });
    node.images.get_mut("r.test/pinned:1").unwrap().pinned = true;
    node.images
        .get_mut("r.test/shared:1")
        .unwrap()
        .tags
        .push("r.test/mine:1".to_owned());
    let names = [
        "r.test/used:1",
        "r.test/pinned:1",
        "r.test/shared:1",
        "r.test/free:1",
        "r.test/pause:1",
        "r.test/no:1",
    ];
    node.remove(1, authority(1, 1), &names);
    node.run();
    let results: Vec<String> = node.removed[&1]
        .iter()
        .map(|outcome| match &outcome.result {
            RemoveResult::Kept { reason, .. } => reason.clone(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        results,
        [
            "InUse",
            "Pinned",
            "SharedImage",
            "Removed",
            "InUse",
            "Absent"
        ]
    );
    assert_eq!(node.count("Remove"), 1);
}

#[test]
fn two_names_of_one_image_go_together_when_nobody_wants_either() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.images
        .get_mut("r.test/a:1")
        .unwrap()
        .tags
        .push("r.test/b:1".to_owned());
    node.handle(Event::Remove {
        stream: StreamId(1),
        authority: authority(1, 1),
        references: vec!["r.test/a:1".to_owned()],
        desired: Vec::new(),
        releasable: vec!["r.test/a:1".to_owned(), "r.test/b:1".to_owned()],
        only_pulled: Vec::new(),
        unpin_ours: false,
        unpin: Vec::new(),
    });
    node.run();
    assert_eq!(node.removed[&1][0].result, RemoveResult::Removed);
}

#[test]
fn a_newer_removal_ends_the_pull_and_begins_when_the_runtime_has_let_go() {
    let mut node = Node::new();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    assert_eq!(*node.result(1), PullResult::Superseded);
    assert_eq!(node.count("cancel Pull"), 1);
    assert_eq!(node.count("Inspect"), 1, "the removal waits");
    node.run();
    node.rest(10);
    assert_eq!(node.removal(2), "Absent");
}

#[test]
fn a_removal_waits_for_an_ended_pull_of_another_name_of_the_image() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    let both = ["r.test/a:1", "r.test/b:1"];
    node.cancel(authority(1, 2), 1, &["r.test/b:1"]);
    assert_eq!(node.count("cancel Pull"), 1, "{:?}", node.log);
    node.remove_with(2, authority(1, 3), &["r.test/a:1"], &[], &both);
    assert_eq!(node.count("Inspect(\"r.test/a:1\""), 0, "it waits");
    node.run();
    assert_eq!(node.removal(2), "Removed");
}

#[test]
fn a_pull_that_is_ended_while_a_removal_looks_keeps_the_image_until_the_runtime_has_let_go() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(2, authority(1, 3), &["r.test/a:1"], &[], &both);
    node.answer("Inspect(\"r.test/a:1\"");
    node.cancel(authority(1, 2), 1, &["r.test/b:1"]);
    assert_eq!(node.count("cancel Pull"), 1, "{:?}", node.log);
    node.answer("Containers");
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

/// `r.test/a:1` is being removed, and was inspected, while a cache's `r.test/b:1` is pulled.
fn removing_beside_a_pull() -> Node {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    node.remove_with(
        2,
        authority(1, 2),
        &["r.test/a:1"],
        &["r.test/b:1"],
        &["r.test/a:1"],
    );
    node.answer("Inspect(\"r.test/a:1\"");
    node
}

/// The image that `r.test/a:1` means gets the name `r.test/b:1`, too.
fn name_also_b(node: &mut Node) {
    let mut image = node.held("r.test/a:1").clone();
    image.tags.push("r.test/b:1".to_owned());
    node.images.insert("r.test/a:1".to_owned(), image.clone());
    node.images.insert("r.test/b:1".to_owned(), image);
}

#[test]
fn an_image_that_gets_another_name_while_a_removal_looks_stays() {
    let mut node = removing_beside_a_pull();
    node.answer("Pull");
    name_also_b(&mut node);
    node.answer("Inspect(\"r.test/b:1\"");
    assert_eq!(*node.result(1), PullResult::Pulled);
    node.run();
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn a_removal_looks_again_while_it_is_not_known_of_which_image_a_pull_made_a_name() {
    let mut node = removing_beside_a_pull();
    node.answer("Pull");
    name_also_b(&mut node);
    node.answer("Containers");
    assert_eq!(node.count("Remove"), 0, "{:?}", node.log);
    node.run();
    assert_eq!(node.removal(2), "SharedImage");
    assert_eq!(*node.result(1), PullResult::Pulled);
}

#[test]
fn a_pull_that_ends_while_its_image_is_removed_under_another_name_is_repeated() {
    let mut node = removing_beside_a_pull();
    node.answer("Containers");
    assert_eq!(node.count("Remove"), 1);
    node.answer("Pull");
    assert_eq!(
        node.count("Inspect(\"r.test/b:1\""),
        0,
        "seen now it would count as there"
    );
    node.images.clear();
    node.run();
    assert_eq!(node.removal(2), "Removed");
    assert_eq!(*node.result(1), PullResult::Pulled);
    assert_eq!(node.count("Pull(\"r.test/b:1\""), 2);
}

#[test]
fn a_late_pull_does_not_bring_back_what_a_newer_removal_took() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.remove(1, authority(1, 5), &["r.test/a:1"]);
    node.run();
    node.pull(2, authority(1, 4), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(2), PullResult::Superseded);
    assert_eq!(node.count("Pull"), 0);
    node.pull(3, authority(1, 6), &["r.test/a:1"]);
    node.run();
    assert_eq!(*node.result(3), PullResult::Pulled);
}

#[test]
fn a_pull_of_another_name_of_the_image_keeps_it() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[], &both);
    node.answer("Inspect");
    node.pull(2, authority(1, 2), &["r.test/b:1"]);
    node.answer("Containers");
    assert_eq!(node.removal(1), "SharedImage");
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn no_pull_of_another_name_begins_while_the_runtime_removes_the_image() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    let both = ["r.test/a:1", "r.test/b:1"];
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[], &both);
    node.answer("Inspect");
    node.answer("Containers");
    node.pull(2, authority(1, 2), &["r.test/b:1"]);
    assert_eq!(node.count("Inspect(\"r.test/b:1\""), 0);
    node.run();
    assert_eq!(node.removal(1), "Removed");
    assert_eq!(*node.result(2), PullResult::Pulled);
}

#[test]
fn a_name_that_a_cache_wants_stays_also_by_its_digest() {
    let digest = format!("r.test/a@sha256:{}", "0".repeat(64));
    for desired in ["r.test/a:1", digest.as_str()] {
        let mut node = Node::new();
        node.hold("r.test/a:1");
        node.held("r.test/a:1").digests.push(digest.clone());
        node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[desired], &[]);
        node.run();
        assert_eq!(node.removal(1), "SharedImage", "{desired}");
        assert_eq!(node.count("Remove"), 0);
    }
}

#[test]
fn a_digest_of_another_repository_is_another_name_and_one_of_its_own_is_not() {
    let digest = |repository: &str| format!("{repository}@sha256:{}", "0".repeat(64));
    for (repository, result) in [("r.test/a", "Removed"), ("other.test/a", "SharedImage")] {
        let mut node = Node::new();
        node.hold("r.test/a:1");
        node.held("r.test/a:1").digests.push(digest(repository));
        node.remove(1, authority(1, 1), &["r.test/a:1"]);
        node.run();
        assert_eq!(node.removal(1), result, "{repository}");
    }
}

#[test]
fn cri_o_loses_a_name_alone_and_the_last_one_by_the_bare_id() {
    let mut node = Node::with(Runtime::Crio);
    node.hold("r.test/a:1");
    node.held("r.test/a:1").tags.push("r.test/b:1".to_owned());
    node.remove(1, authority(1, 1), &["r.test/a:1"]);
    node.run();
    assert_eq!(node.count("Remove(\"r.test/a:1\")"), 1);
    assert_eq!(node.removal(1), "Removed");
    node.hold("r.test/c:1");
    node.held("r.test/c:1").id = "c0ffee".to_owned();
    node.remove(2, authority(1, 2), &["r.test/c:1"]);
    node.run();
    assert_eq!(node.removal(2), "Removed");
    assert_eq!(node.count("Remove(\"r.test/c:1\")"), 1);
    assert_eq!(node.count("Remove(\"c0ffee\")"), 1, "what has no name left");
    assert_eq!(node.count("Remove"), 3);
}

/// Between a name and its image CRI-O's removal asks again who uses it.
#[test]
fn a_removal_that_has_taken_a_name_goes_on_after_a_pull_is_verified() {
    let mut node = Node::with(Runtime::Crio);
    node.hold("r.test/a:1");
    node.held("r.test/a:1").id = "c0ffee".to_owned();
    node.pull_this(1, authority(1, 1), always("r.test/b:1", "t"));
    node.remove(2, authority(1, 2), &["r.test/a:1"]);
    for call in ["Inspect", "Containers", "Remove", "Inspect(\"c0ffee\")"] {
        node.answer(call);
    }
    node.answer("Pull");
    node.answer("Containers");
    node.run();
    assert_eq!(node.removal(2), "Removed");
    assert_eq!(node.count("Remove(\"c0ffee\")"), 1);
    assert_eq!(*node.result(1), PullResult::Pulled);
}

#[test]
fn what_is_left_of_a_removal_ends_with_its_stream() {
    let mut node = Node::new();
    node.hold("r.test/a:1");
    node.hold("r.test/b:1");
    node.remove(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.handle(Event::Closed(StreamId(1)));
    node.run();
    assert_eq!(node.images.len(), 2);
    assert_eq!(node.count("Remove"), 0);
}

#[test]
fn the_sandbox_image_and_our_own_always_stay() {
    let mut node = Node::set(Settings {
        own_images: vec!["r.test/puller:1".to_owned()],
        ..Settings::default()
    });
    node.facts(RuntimeFacts {
        sandbox_image: Some("r.test/sandbox:1".to_owned()),
        ..RuntimeFacts::default()
    });
    node.hold("r.test/puller:1");
    node.hold("r.test/sandbox:1");
    node.remove(1, authority(1, 1), &["r.test/puller:1", "r.test/sandbox:1"]);
    node.run();
    assert!(node.removed[&1].iter().all(|outcome| matches!(
        &outcome.result,
        RemoveResult::Kept { reason, .. } if reason == "InUse"
    )));
    assert_eq!(node.count("Remove"), 0);
}

fn remove_only_pulled(node: &mut Node, stream: u64, names: &[&str], unpin_ours: bool) {
    node.handle(Event::Remove {
        stream: StreamId(stream),
        authority: authority(1, stream),
        references: texts(names),
        desired: Vec::new(),
        releasable: Vec::new(),
        only_pulled: texts(names),
        unpin_ours,
        unpin: Vec::new(),
    });
    node.run();
}

#[test]
fn an_image_that_we_did_not_pull_stays_where_only_pulled_ones_go() {
    let mut node = Node::new();
    node.hold("r.test/here:1");
    for (stream, name) in (1..).zip(["r.test/here:1", "r.test/new:1"]) {
        let marked = PullRequest {
            mark: Mark::Yes,
            ..request(name)
        };
        node.pull_this(stream, authority(1, stream), marked);
        node.run();
    }
    // Without a mark nothing is remembered.
    node.pull(3, authority(1, 3), &["r.test/unmarked:1"]);
    node.run();
    assert_eq!(
        node.count("Mark"),
        1,
        "only what was pulled: {:?}",
        node.log
    );
    for (stream, name) in (11..).zip(["r.test/here:1", "r.test/new:1", "r.test/unmarked:1"]) {
        remove_only_pulled(&mut node, stream, &[name], true);
    }
    assert_eq!(node.removal(11), "NotPulled");
    assert_eq!(node.removal(12), "Removed");
    assert_eq!(node.removal(13), "NotPulled");
    // And where everything may go, it goes.
    node.remove(21, authority(1, 21), &["r.test/here:1"]);
    node.run();
    assert_eq!(node.removal(21), "Removed");
}

#[test]
fn our_pin_is_taken_off_an_image_that_stays_because_we_did_not_pull_it() {
    let mut node = Node::containerd(Settings::default()).pinned("r.test/here:1", true);
    remove_only_pulled(&mut node, 1, &["r.test/here:1"], true);
    assert_eq!(node.removal(1), "NotPulled");
    assert!(node.ours.is_empty());
}

#[test]
fn a_preloaded_name_of_an_image_that_we_pulled_under_another_name_stays() {
    let mut node = Node::new();
    node.hold("r.test/loaded:1");
    node.held("r.test/loaded:1").tags = texts(&["r.test/loaded:1", "r.test/alias:1"]);
    node.marked.insert("r.test/alias:1".to_owned());
    let image = node.held("r.test/loaded:1").clone();
    node.images.insert("r.test/alias:1".to_owned(), image);
    remove_only_pulled(&mut node, 1, &["r.test/loaded:1", "r.test/alias:1"], false);
    let reasons: Vec<_> = node.removed[&1].iter().map(|o| &o.result).collect();
    assert!(
        reasons
            .iter()
            .all(|result| matches!(result, RemoveResult::Kept { .. })),
        "{reasons:?}"
    );
    assert!(node.images.contains_key("r.test/loaded:1"));

    node.marked.insert("r.test/loaded:1".to_owned());
    remove_only_pulled(&mut node, 2, &["r.test/loaded:1", "r.test/alias:1"], false);
    assert!(node.images.is_empty(), "both are ours now");
}
