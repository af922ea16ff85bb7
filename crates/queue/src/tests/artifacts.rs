//! Artifacts: containerd gives all of them one id, and CRI-O shows all of them as pinned.

use super::*;

/// Two artifacts on containerd: one image with both names and digests.
fn two(node: &mut Node) {
    let image = Image {
        id: "sha256:44136fa3".to_owned(),
        tags: texts(&["r.test/a:1", "r.test/b:1"]),
        digests: texts(&["r.test/a@sha256:aa", "r.test/b@sha256:bb"]),
        ..Image::default()
    };
    for name in ["r.test/a:1", "r.test/b:1"] {
        node.images.insert(name.to_owned(), image.clone());
    }
}

#[test]
fn an_artifact_stays_while_another_one_with_its_id_is_wanted_or_is_not_ours() {
    for desired in [&["r.test/b:1"][..], &[]] {
        let mut node = Node::new();
        two(&mut node);
        node.remove_with(1, authority(1, 1), &["r.test/a:1"], desired, &[]);
        node.run();
        assert_eq!(node.removal(1), "SharedArtifact");
        assert_eq!(node.count("Remove"), 0);
    }
}

#[test]
fn an_artifact_goes_alone_where_the_runtime_has_an_interface_for_that() {
    for desired in [&["r.test/b:1"][..], &[]] {
        let mut node = Node::containerd(Settings::default());
        node.facts(RuntimeFacts {
            untags: true,
            ..RuntimeFacts::default()
        });
        two(&mut node);
        // The pin is on the id, which stays.
        let held = node.images.values_mut();
        held.for_each(|image| image.pinned = true);
        node.remove_with(1, authority(1, 1), &["r.test/a:1"], desired, &[]);
        node.run();
        assert_eq!(node.removal(1), "Removed");
        assert_eq!(node.count("Remove"), 0);
        assert!(node.images.contains_key("r.test/b:1"));
        assert!(!node.images.contains_key("r.test/a:1"));
    }
}

#[test]
fn the_digest_of_an_artifact_that_a_cache_wants_as_such_stays() {
    let digest = |name: &str, byte: &str| format!("{name}@sha256:{}", byte.repeat(32));
    let mut node = Node::containerd(Settings::default());
    node.facts(RuntimeFacts {
        untags: true,
        ..RuntimeFacts::default()
    });
    two(&mut node);
    let (a, b) = (digest("r.test/a", "aa"), digest("r.test/b", "bb"));
    for image in node.images.values_mut() {
        image.digests = vec![a.clone(), b.clone()];
    }
    node.remove_with(1, authority(1, 1), &["r.test/a:1"], &[&a], &[]);
    node.run();
    let wanted = format!("name: \"r.test/a:1\", wanted: [{a:?}]");
    assert!(
        node.log.iter().any(|call| call.contains(&wanted)),
        "{:?}",
        node.log
    );
}

#[test]
fn artifacts_of_one_id_go_together_when_nobody_wants_any_of_them() {
    let mut node = Node::new();
    two(&mut node);
    node.remove(1, authority(1, 1), &["r.test/a:1", "r.test/b:1"]);
    node.run();
    assert!(node.images.is_empty());
}

#[test]
fn the_pin_of_an_artifact_goes_when_no_cache_wants_any_artifact_of_its_id() {
    for (desired, left) in [(&["r.test/b:1"][..], 1), (&[], 0)] {
        let mut node = Node::containerd(Settings::default());
        two(&mut node);
        node.images
            .values_mut()
            .for_each(|image| image.pinned = true);
        node.ours.insert("sha256:44136fa3".to_owned());
        node.unpin(1, &["r.test/a:1"], desired, &[]);
        assert_eq!(node.ours.len(), left, "{desired:?}");
    }
}

#[test]
fn an_artifact_on_cri_o_goes_by_its_name_although_all_of_them_are_pinned() {
    let mut node = Node::with(Runtime::Crio);
    for (name, id) in [("r.test/a:1", "aa"), ("r.test/image:1", "cc")] {
        node.hold(name);
        let image = node.held(name);
        image.id = id.to_owned();
        image.digests = texts(&["r.test/a@sha256:aa"]);
        image.pinned = true;
    }
    node.remove(1, authority(1, 1), &["r.test/a:1", "r.test/image:1"]);
    node.run();
    assert_eq!(node.removal(1), "Removed");
    assert_eq!(node.count("Remove(\"r.test/a:1\")"), 1);
    let kept = &node.removed[&1][1].result;
    assert!(
        matches!(kept, RemoveResult::Kept { reason, .. } if reason == "Pinned"),
        "{kept:?}"
    );
}

#[test]
fn a_newer_artifact_of_a_name_is_noted_as_pulled_by_us_although_its_id_is_the_same() {
    let mut node = Node::containerd(Settings::default());
    two(&mut node);
    let request = PullRequest {
        mark: Mark::Yes,
        ..pinned("r.test/a:1")
    };
    let request = PullRequest {
        policy: Policy::Always,
        ..request
    };
    node.pull_this(1, authority(1, 1), request);
    node.answer("Inspect");
    node.answer("Pull");
    let image = node.held("r.test/a:1");
    image.id = "sha256:44136fa3".to_owned();
    image.digests = texts(&["r.test/a@sha256:new"]);
    node.run();
    assert!(node.marked.contains("r.test/a:1"), "{:?}", node.log);
}
