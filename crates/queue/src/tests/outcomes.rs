//! A property: every request ends with one outcome per image, whatever happens.

use proptest::prelude::*;

use super::*;

/// The requests of a run whose stream is open, and how many images each has.
type Asked = BTreeMap<u64, usize>;

fn failure(pick: usize) -> CallError {
    match pick {
        0..=2 => error("Unavailable", "gone"),
        3..=4 => error("Cancelled", "context canceled"),
        _ => error("Unknown", "401 Unauthorized"),
    }
}

fn disk_and_bytes(node: &mut Node, image: usize, pick: usize) {
    let available = if pick == 0 { 1 } else { 90 };
    node.disk = Ok(Disk {
        capacity: 100,
        available,
        ..Disk::default()
    });
    node.pins_work = pick != 1;
    node.removals = match pick {
        2 => Err(error("DeadlineExceeded", "late")),
        _ => Ok(()),
    };
    let bytes = Bytes {
        done: pick as u64,
        total: 9,
        active: pick > 3,
    };
    node.bytes.insert(format!("r.test/i{image}:1"), bytes);
}

/// One random step: what happens, how many images it is about, and a number that decides the details.
fn step(node: &mut Node, asked: &mut Asked, seq: u64, (kind, image, pick): (u8, usize, usize)) {
    let names: Vec<String> = (0..=image).map(|i| format!("r.test/i{i}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let stream = (pick as u64).min(seq);
    match kind {
        0 | 1 => {
            node.pull(seq, authority(1, seq), &names);
            asked.insert(seq, names.len());
        }
        2 => {
            node.remove(seq, authority(1, seq), &names);
            asked.insert(seq, names.len());
        }
        3 => {
            let cancel = vec![(stream, Vec::new())];
            node.handle(Event::Cancel(
                StreamId(1000 + seq),
                authority(1, seq),
                cancel,
            ));
        }
        4 => {
            node.handle(Event::Closed(StreamId(stream)));
            asked.remove(&stream);
        }
        5 => node.wait(pick as u64 * 4),
        6 => {
            node.broken
                .insert(format!("r.test/i{image}:1"), failure(pick));
        }
        7 => {
            let retention = [Retention::Leave, Retention::Pinned][pick % 2];
            let images = names.iter().map(|name| PullRequest {
                retention,
                ..always(name, &pick.to_string())
            });
            node.handle(Event::Pull(
                StreamId(seq),
                authority(1, seq),
                images.collect(),
            ));
            asked.insert(seq, names.len());
        }
        8 => disk_and_bytes(node, image, pick),
        _ => {
            if !node.calls.is_empty() {
                let at = pick % node.calls.len();
                node.answer_one(at);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is asked, in whatever order the runtime answers and whatever it says: every request
    /// whose stream is open ends with one outcome per image, the invariants hold after each step,
    /// and an hour later nothing is left over.
    #[test]
    fn every_image_of_every_request_has_one_outcome(
        steps in proptest::collection::vec((0_u8..11, 0_usize..5, 0_usize..8), 1..80)
    ) {
        let mut node = Node::containerd(Settings {
            disk_watermark: Some(80),
            credential_providers: true,
            ..Settings::default()
        });
        node.provided = (vec![CredentialId(8)], None);
        let mut asked = Asked::new();
        for (seq, drawn) in (1_u64..).zip(steps) {
            step(&mut node, &mut asked, seq, drawn);
        }
        node.run();
        while !node.queue.idle() {
            node.wait(1);
            node.run();
        }
        for (stream, count) in asked {
            let pulled = node.pulled.get(&stream).map_or(0, Vec::len);
            let removed = node.removed.get(&stream).map_or(0, Vec::len);
            prop_assert_eq!(pulled + removed, count);
            prop_assert_eq!(node.done.iter().filter(|done| **done == stream).count(), 1);
        }
        node.wait(3601);
        prop_assert_eq!(node.queue.remembers(), 0);
        prop_assert_eq!(node.queue.next_wakeup(), None);
    }
}
