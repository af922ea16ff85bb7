//! Whatever arrives at a puller's port, and whatever the runtime says to it: bytes become messages,
//! messages become events, the queue decides, and its answers become bytes again. `make fuzz` tries a
//! million.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod node;
mod requests;
mod runtime;
mod texts;

use kubefledged_queue::{Event, RuntimeFacts, StreamId, Support};
use proptest::{prelude::*, sample::Index};

use crate::{
    node::Node,
    requests::{Asked, request},
    runtime::{Said, said},
};

#[derive(Clone, Debug)]
enum Step {
    Ask(Asked),
    /// One of the calls under way is answered.
    Answer(Index, Said),
    /// A caller goes away.
    Close(Index),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => request().prop_map(Step::Ask),
        6 => (any::<Index>(), said()).prop_map(|(at, said)| Step::Answer(at, said)),
        1 => any::<Index>().prop_map(Step::Close),
        1 => (0_u64..90_000).prop_map(Step::Wait),
    ]
}
proptest! {
    #[test]
    fn every_request_is_answered_whatever_it_holds_and_whatever_the_runtime_says(
        pins in 0..3, progress: bool, steps in proptest::collection::vec(step(), 0..12)
    ) {
        let pins = [Support::Unknown, Support::Yes, Support::No][usize::try_from(pins).unwrap()];
        let mut node = Node::new(RuntimeFacts { pins, progress, ..RuntimeFacts::default() });
        for step in steps {
            match step {
                Step::Ask(asked) => node.ask(&asked),
                Step::Answer(at, said) if !node.calls.is_empty() => node.answer(at.index(node.calls.len()), said),
                Step::Answer(..) => {}
                Step::Close(at) => {
                    let open: Vec<StreamId> = node.open.keys().copied().collect();
                    if !open.is_empty() {
                        let stream = *at.get(&open);
                        node.open.remove(&stream);
                        node.tell(Event::Closed(stream));
                    }
                }
                Step::Wait(ms) => node.wait(ms),
            }
        }
        node.come_to_rest();
        prop_assert!(node.open.is_empty(), "{:?} were not answered", node.open);
        node.wait(3_601_000);
        prop_assert_eq!(node.queue.remembers(), 0);
        prop_assert_eq!(node.queue.next_wakeup(), None);
    }
}
