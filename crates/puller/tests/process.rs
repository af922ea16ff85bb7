//! The process: who may ask, probes, shutdown.

mod common;

use std::time::Duration;

use common::{NODE, Puller, authority, image, request};
use kubefledged_proto::puller::{
    Authority, CheckImagesRequest, GetInfoRequest, ListImagesRequest, RemoveImagesRequest, Support,
};
use kubefledged_testkit::{Call, Removal, eventually};
use tonic::Code;

const A: &str = "registry.test/team/a:1";

#[tokio::test]
async fn requests_for_another_node_are_refused() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.hold(A);
    let other = || {
        Some(Authority {
            node_name: "n2".to_owned(),
            ..authority(1)
        })
    };
    let mut pull = request(1, vec![image(A)]);
    pull.authority = other();
    let remove = RemoveImagesRequest {
        authority: other(),
        references: vec![A.to_owned()],
        ..RemoveImagesRequest::default()
    };
    let check = CheckImagesRequest {
        node_name: "n2".to_owned(),
        references: vec![A.to_owned()],
        with_info: false,
    };
    let info = GetInfoRequest {
        node_name: String::new(),
    };
    let client = &mut puller.client;
    for refused in [
        client.pull_images(pull).await.unwrap_err(),
        client.remove_images(remove).await.unwrap_err(),
        client.check_images(check).await.unwrap_err(),
        client.get_info(info).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(NODE), "{}", refused.message());
    }
    assert!(puller.runtime.holds(A));
    assert!(puller.runtime.calls().is_empty());
}

#[tokio::test]
async fn a_leader_that_was_replaced_is_refused_and_told_the_later_term() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(puller.check(&[A]).await.highest_term, 7);
    let mut stale = request(99, vec![image("registry.test/team/b:1")]);
    stale.authority = Some(Authority {
        term: 6,
        ..authority(99)
    });
    let mut stream = puller.client.pull_images(stale).await.unwrap().into_inner();
    let refused = stream.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.metadata().get("kubefledged-seen-term").unwrap(),
        "7"
    );
    assert_eq!(
        puller
            .runtime
            .count(&Call::Pull("registry.test/team/b:1".to_owned())),
        0
    );
}

#[tokio::test]
async fn the_puller_tells_who_it_is_and_promises_nothing_it_cannot_do() {
    let mut puller = Puller::start(Removal::Name).await;
    puller.runtime.hold(A);
    let node_name = NODE.to_owned();
    let info = puller
        .client
        .get_info(GetInfoRequest { node_name })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.puller_instance, "uid-1");
    assert_eq!(
        (info.runtime_name.as_str(), info.max_parallel_pulls),
        ("cri-o", 2)
    );
    assert_ne!(info.pin_support(), Support::Yes);
    assert_ne!(info.progress_support(), Support::Yes);
    let node_name = NODE.to_owned();
    let listed = puller
        .client
        .list_images(ListImagesRequest { node_name })
        .await
        .unwrap();
    let page = listed.into_inner().message().await.unwrap().unwrap();
    assert_eq!(page.images[0].repo_tags, [A]);
}

#[tokio::test]
async fn readiness_follows_the_runtime_and_liveness_does_not() {
    let mut puller = Puller::start(Removal::Whole).await;
    let ready = async |puller: &Puller| puller.get("/readyz").await.0.contains("200");
    eventually("ready", async || ready(&puller).await.then_some(())).await;
    eventually("the runtime is up", async || {
        let (_, metrics) = puller.get("/metrics").await;
        metrics.contains("kubefledged_cri_up 1").then_some(())
    })
    .await;
    puller.runtime.stop();
    eventually("not ready", async || (!ready(&puller).await).then_some(())).await;
    assert!(puller.get("/livez").await.0.contains("200"));
    puller.runtime.serve().unwrap();
    eventually("ready again", async || ready(&puller).await.then_some(())).await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_lets_the_runtime_finish_and_then_the_process() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.block(A);
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;
    let runtime = &puller.runtime;
    eventually("the runtime pulls", async || {
        (runtime.count(&Call::Pull(A.to_owned())) == 1).then_some(())
    })
    .await;
    puller.shutdown.cancel();
    assert_eq!(
        pulling.try_outcomes().await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(!puller.task.is_finished());
    puller.runtime.release(A);
    puller.task.await.unwrap().unwrap();
    assert!(puller.runtime.holds(A));
    assert_eq!(puller.runtime.count(&Call::PullCancelled(A.to_owned())), 0);
}

#[tokio::test]
async fn a_check_answers_what_the_puller_is_if_it_is_asked_for() {
    let mut puller = Puller::start(Removal::Whole).await;
    let ask = |with_info| CheckImagesRequest {
        node_name: NODE.to_owned(),
        references: vec![A.to_owned()],
        with_info,
    };
    let client = &mut puller.client;
    let node_name = NODE.to_owned();
    let info = client.get_info(GetInfoRequest { node_name }).await;
    let answer = client.check_images(ask(true)).await.unwrap().into_inner();
    assert_eq!(answer.info, Some(info.unwrap().into_inner()));
    assert_eq!(answer.images.len(), 1);
    let answer = client.check_images(ask(false)).await.unwrap().into_inner();
    assert_eq!(answer.info, None);
}

#[tokio::test]
async fn a_runtime_that_hangs_is_found_out_by_the_first_check_at_once() {
    let mut puller = Puller::start(Removal::Whole).await;
    puller.runtime.hang();
    let check = CheckImagesRequest {
        node_name: NODE.to_owned(),
        references: Vec::new(),
        with_info: true,
    };
    // The controller waits for 15 s.
    let answer = tokio::time::timeout(Duration::from_secs(5), puller.client.check_images(check));
    let refused = answer.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let message = refused.message();
    assert!(message.contains("container runtime"), "{message}");
}
