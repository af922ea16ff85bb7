//! Bytes that arrive, as containerd's content store shows them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use common::{Puller, image, request};
use kubefledged_testkit::{Call, Native, eventually};

const A: &str = "registry.test/team/a:1";

#[tokio::test]
async fn where_no_byte_arrives_for_too_long_the_pull_is_ended_and_says_how_far_it_came() {
    let flags = ["--no-progress-limit", "1s"];
    let mut puller = Puller::containerd(Native::WithoutPins, &flags).await;
    puller.runtime.block(A);
    puller.runtime.fetch(A, 10, 50);
    let request = request(1, vec![image(A)]);
    let outcomes = puller.pull_with(request).await.outcomes().await;
    assert_eq!(outcomes[0].reason, "NoProgress");
    assert!(
        outcomes[0].message.contains("10 of 50 bytes"),
        "{}",
        outcomes[0].message
    );
    let runtime = &puller.runtime;
    eventually("the runtime's call ends", async || {
        (runtime.count(&Call::PullCancelled(A.to_owned())) == 1).then_some(())
    })
    .await;
}
