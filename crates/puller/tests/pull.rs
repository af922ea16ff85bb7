//! Pulls, over real gRPC on both sides.

mod common;

use common::{Puller, credential, image, request};
use kubefledged_proto::puller::{
    CheckedImage, ImagePull, ImageState, PullImagesRequest, PullOutcome, PullPolicy, PullResult,
    RemoveResult,
};
use kubefledged_testkit::{Call, Login, Removal, eventually};
use tonic::Code;

const A: &str = "registry.test/team/a:1";
const B: &str = "registry.test/team/b:1";

fn pulled(name: &str) -> Call {
    Call::Pull(name.to_owned())
}

#[tokio::test]
async fn each_image_of_a_request_has_an_outcome_and_only_the_absent_one_is_pulled() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.hold(B);
    let mut pulling = puller.pull(1, vec![image(A), image(B)]).await;
    assert_eq!(pulling.accepted().await, 0);
    let outcomes = pulling.outcomes().await;
    let results: Vec<PullResult> = outcomes.iter().map(PullOutcome::result).collect();
    assert_eq!(results, [PullResult::Pulled, PullResult::Present]);
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.image_id.starts_with("sha256:"))
    );
    assert_eq!((outcomes[0].attempts, outcomes[1].attempts), (1, 0));
    assert_eq!(puller.runtime.count(&pulled(A)), 1);
    assert_eq!(puller.runtime.count(&pulled(B)), 0);
}

#[tokio::test]
async fn always_pulls_what_is_present_too() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.hold(A);
    let always = ImagePull {
        policy: PullPolicy::Always.into(),
        ..image(A)
    };
    let outcomes = puller.pull(1, vec![always]).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    assert_eq!(puller.runtime.count(&pulled(A)), 1);
}

#[tokio::test]
async fn a_private_image_needs_one_of_the_credentials_and_they_are_tried_in_order() {
    let mut puller = Puller::start(Removal::Whole).await;
    let login = Login {
        username: "u".to_owned(),
        password: "right".to_owned(),
    };
    puller.runtime.demand(A, login);

    let outcomes = puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Failed);
    assert_eq!(outcomes[0].reason, "Unauthorized");
    assert!(
        outcomes[0].message.contains("401"),
        "{}",
        outcomes[0].message
    );

    let with = ImagePull {
        credentials: vec![1, 0],
        ..image(A)
    };
    let with = PullImagesRequest {
        credentials: vec![credential("u", "right"), credential("u", "wrong")],
        ..request(2, vec![with])
    };
    let outcomes = puller.pull_with(with).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    assert_eq!(outcomes[0].attempts, 2);
}

#[tokio::test]
async fn a_credential_that_was_not_sent_is_the_callers_mistake() {
    let mut puller = Puller::start(Removal::Whole).await;
    let with = ImagePull {
        credentials: vec![3],
        ..image(A)
    };
    let refused = puller.client.pull_images(request(1, vec![with])).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(puller.runtime.count(&pulled(A)), 0);
}

#[tokio::test]
async fn a_failed_image_is_data_and_the_others_go_on() {
    let mut puller = Puller::start(Removal::Whole).await;
    let gone = "failed to pull and unpack image \"a\": failed to resolve image: a: not found";
    puller.runtime.fail(A, Code::NotFound, gone);
    let images = vec![image(A), image("UPPER/case"), image(B)];
    let outcomes = puller.pull(1, images).await.outcomes().await;
    let reasons: Vec<&str> = outcomes.iter().map(|o| o.reason.as_str()).collect();
    assert_eq!(reasons, ["ImageNotFound", "InvalidImageName", ""]);
    let checked = puller.check(&[A, B]).await.images;
    assert_eq!(checked[0].state(), ImageState::Failed);
    assert_eq!(checked[1].state(), ImageState::Present);
}

#[tokio::test]
async fn a_pull_outlives_its_stream_and_the_same_request_attaches_to_it() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let mut first = puller.pull(1, vec![image(A)]).await;
    first.accepted().await;
    let runtime = &puller.runtime;
    eventually("the runtime pulls", async || {
        (runtime.count(&pulled(A)) == 1).then_some(())
    })
    .await;
    drop(first);

    puller.client = puller.another_client().await;
    let mut second = puller.pull(2, vec![image(A)]).await;
    assert_eq!(second.accepted().await, 1);
    assert_eq!(
        puller.check(&[A]).await.images[0].state(),
        ImageState::Pulling
    );
    puller.runtime.release(A);
    let outcomes = second.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    assert_eq!(puller.runtime.count(&pulled(A)), 1);
    assert_eq!(puller.runtime.count(&Call::PullCancelled(A.to_owned())), 0);
}

#[tokio::test]
async fn cancelling_the_last_interest_ends_the_pull_in_the_runtime() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;
    let runtime = &puller.runtime;
    eventually("the runtime pulls", async || {
        (runtime.count(&pulled(A)) == 1).then_some(())
    })
    .await;
    assert_eq!(puller.cancel(2, 1).await, 1);
    assert_eq!(pulling.outcomes().await[0].result(), PullResult::Cancelled);
    let runtime = &puller.runtime;
    eventually("the runtime's call ends", async || {
        (runtime.count(&Call::PullCancelled(A.to_owned())) == 1).then_some(())
    })
    .await;
    assert!(!puller.runtime.holds(A));
}

#[tokio::test]
async fn two_pulls_run_at_a_time_and_a_third_waits() {
    let mut puller = Puller::start(Removal::Whole).await;
    let names = [A, B, "registry.test/team/c:1"];
    for name in names {
        puller.runtime.block(name);
    }
    let pulling = puller.pull(1, names.map(image).to_vec()).await;
    let runtime = &puller.runtime;
    eventually("two pulls run", async || {
        (runtime.count(&pulled(A)) + runtime.count(&pulled(B)) == 2).then_some(())
    })
    .await;
    let checked = puller.check(&names).await.images;
    let states: Vec<ImageState> = checked.iter().map(CheckedImage::state).collect();
    assert_eq!(
        states,
        [ImageState::Pulling, ImageState::Pulling, ImageState::Queued]
    );
    assert_eq!(puller.runtime.count(&pulled(names[2])), 0);
    for name in names {
        puller.runtime.release(name);
    }
    assert_eq!(pulling.outcomes().await.len(), 3);
}

#[tokio::test]
async fn a_pull_beyond_its_deadline_is_ended_in_the_runtime() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let hasty = ImagePull {
        deadline_ms: 50,
        ..image(A)
    };
    let outcomes = puller.pull(1, vec![hasty]).await.outcomes().await;
    assert_eq!(outcomes[0].reason, "DeadlineExceeded");
    let runtime = &puller.runtime;
    eventually("the runtime's call ends", async || {
        (runtime.count(&Call::PullCancelled(A.to_owned())) == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_of_the_runtime_is_waited_out() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let pulling = puller.pull(1, vec![image(A)]).await;
    let runtime = &puller.runtime;
    eventually("the runtime pulls", async || {
        (runtime.count(&pulled(A)) == 1).then_some(())
    })
    .await;
    puller.runtime.stop();
    puller.runtime.release(A);
    puller.runtime.serve().unwrap();
    let outcomes = pulling.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled, "{outcomes:?}");
    assert_eq!(outcomes[0].attempts, 2);
}

/// cri-dockerd does not end Docker's pull with its caller's request.
#[tokio::test]
async fn what_docker_goes_on_pulling_after_a_cancel_is_seen_and_can_be_removed() {
    let mut puller = Puller::start(Removal::Id).await;
    puller.runtime.block(A);
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;
    let runtime = &puller.runtime;
    eventually("the runtime pulls", async || {
        (runtime.count(&pulled(A)) == 1).then_some(())
    })
    .await;
    assert_eq!(puller.cancel(2, 1).await, 1);
    assert_eq!(pulling.outcomes().await[0].result(), PullResult::Cancelled);
    let runtime = &puller.runtime;
    eventually("the runtime's caller has gone", async || {
        (runtime.count(&Call::PullCancelled(A.to_owned())) == 1).then_some(())
    })
    .await;
    puller.runtime.release(A);
    let checked = puller.check(&[A]).await.images;
    assert_eq!(checked[0].state(), ImageState::Present);
    let removed = puller.remove(3, &[A]).await;
    assert_eq!(removed[0].result(), RemoveResult::Removed);
    assert!(!puller.runtime.holds(A));
}
