use std::sync::Arc;

use super::*;

/// A node that shares layers.
fn sharing() -> Node {
    let mut node = Node::set(Settings::default());
    node.facts(RuntimeFacts {
        progress: true,
        peers: Support::Yes,
        ..RuntimeFacts::default()
    });
    node
}

fn bytes(done: u64) -> Bytes {
    Bytes {
        done,
        total: 100,
        active: true,
    }
}

/// Lets milliseconds pass and answers each look at the bytes.
fn pass(node: &mut Node, milliseconds: u64) {
    for _ in 0..milliseconds / 50 {
        node.now = node.now.after(Duration::from_millis(50));
        node.poll();
        node.answer_progress();
    }
}

#[test]
fn the_size_of_a_pull_is_told_within_a_quarter_of_a_second_and_its_bytes_every_two() {
    let mut node = sharing();
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    pass(&mut node, 1000);
    assert_eq!(node.count("Progress"), 4);
    assert!(node.transfers.is_empty());
    node.bytes.insert("r.test/a:1".to_owned(), bytes(0));
    pass(&mut node, 300);
    let told = Transfer {
        index: 0,
        progress: bytes(0).into(),
    };
    assert_eq!(node.transfers, [(1, told)]);
    for done in 1..10 {
        node.bytes.insert("r.test/a:1".to_owned(), bytes(done));
        pass(&mut node, 1000);
    }
    assert_eq!(node.transfers.len(), 1 + 4);
    pass(&mut node, 10_000);
    assert_eq!(
        node.transfers.len(),
        1 + 5,
        "bytes that stand still are told once"
    );
}

#[test]
fn nothing_is_told_of_bytes_where_the_runtime_shares_no_layers() {
    let mut node = Node::containerd(Settings::default());
    node.pull(1, authority(1, 1), &["r.test/a:1"]);
    node.answer("Inspect");
    node.bytes.insert("r.test/a:1".to_owned(), bytes(1));
    pass(&mut node, 10_000);
    assert!(node.transfers.is_empty());
}

#[test]
fn everybody_who_asked_for_a_pull_is_told_and_where_its_layers_came_from_is_part_of_the_outcome() {
    let mut node = sharing();
    node.pull(1, authority(1, 1), &["r.test/b:1", "r.test/a:1"]);
    node.pull(2, authority(1, 2), &["r.test/a:1"]);
    node.bytes.insert("r.test/a:1".to_owned(), bytes(7));
    node.answer("Inspect");
    node.answer("Inspect");
    pass(&mut node, 300);
    let told: Vec<_> = node
        .transfers
        .iter()
        .map(|(stream, told)| (*stream, told.index))
        .collect();
    assert_eq!(told, [(1, 1), (2, 0)]);
    node.sources = Sources {
        peers: 90,
        registry: 10,
        wasted: 3,
    };
    node.run();
    assert_eq!(node.pulled[&2][0].sources, node.sources);
}

#[test]
fn a_pull_is_told_where_to_take_layers_from_by_the_latest_who_asked_for_it() {
    let peers = |node: &str| {
        Some(Arc::new(Peers {
            nodes: vec![Peer {
                node: node.to_owned(),
                address: "10.0.0.1:7443".to_owned(),
            }],
            claims: vec![1],
            signature: vec![2],
            signer: Arc::new([]),
        }))
    };
    let asking = |peers, hold| PullRequest {
        sharing: Sharing { peers, hold },
        ..request("r.test/a:1")
    };
    let mut node = sharing();
    let hold = Some(Duration::from_secs(9));
    node.pull_this(1, authority(1, 1), asking(peers("n1"), hold));
    node.pull_this(2, authority(1, 2), asking(peers("n2"), None));
    node.pull_this(3, authority(1, 3), asking(None, None));
    node.answer("Inspect");
    let Some((_, Call::Pull(_, _, sharing))) = node.calls.first() else {
        panic!("{:?}", node.calls);
    };
    assert_eq!(*sharing, asking(peers("n2"), hold).sharing);
}
