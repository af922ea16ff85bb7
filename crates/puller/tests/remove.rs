//! Removals, with the three ways in which runtimes remove.

mod common;

use common::{NODE, Puller, authority, image, texts};
use kubefledged_proto::puller::{
    RemoveImagesRequest, RemoveOutcome, RemoveResult, remove_images_response::Event,
};
use kubefledged_testkit::{Call, Native, Removal};

const A: &str = "registry.test/team/a:1";
const B: &str = "registry.test/team/b:1";

fn removals(puller: &Puller) -> Vec<Call> {
    let calls = puller.runtime.calls().into_iter();
    calls
        .filter(|call| matches!(call, Call::Remove(_)))
        .collect()
}

#[tokio::test]
async fn an_image_goes_from_every_kind_of_runtime() {
    for removal in [Removal::Whole, Removal::Name, Removal::Id] {
        let mut puller = Puller::start(removal).await;
        puller.runtime.hold(A);
        puller.runtime.hold(B);
        let outcomes = puller.remove(1, &[A, "registry.test/team/never:1"]).await;
        let results: Vec<RemoveResult> = outcomes.iter().map(RemoveOutcome::result).collect();
        assert_eq!(
            results,
            [RemoveResult::Removed, RemoveResult::Absent],
            "{removal:?}"
        );
        assert!(!puller.runtime.holds(A), "{removal:?}");
        assert!(puller.runtime.holds(B), "{removal:?}");
    }
}

#[tokio::test]
async fn what_a_container_uses_what_somebody_pinned_and_the_sandbox_image_stay() {
    let pause = "registry.k8s.io/pause:3.10";
    for removal in [Removal::Whole, Removal::Name, Removal::Id] {
        let mut puller = Puller::start(removal).await;
        for name in [A, B, pause] {
            puller.runtime.hold(name);
        }
        puller.runtime.run(A);
        puller.runtime.pin(B);
        let outcomes = puller.remove(1, &[A, B, pause]).await;
        let told: Vec<_> = outcomes
            .iter()
            .map(|o| (o.result(), o.reason.as_str()))
            .collect();
        let kept = RemoveResult::Kept;
        assert_eq!(
            told,
            [(kept, "InUse"), (kept, "Pinned"), (kept, "InUse")],
            "{removal:?}"
        );
        assert!(removals(&puller).is_empty(), "{removal:?}");
    }
}

#[tokio::test]
async fn an_image_with_a_name_that_is_not_ours_stays_and_cri_o_takes_our_name_off() {
    for removal in [Removal::Whole, Removal::Name, Removal::Id] {
        let mut puller = Puller::start(removal).await;
        puller.runtime.hold(A);
        puller.runtime.tag(A, "registry.test/other:1");
        let outcomes = puller.remove(1, &[A]).await;
        let told = (outcomes[0].result(), outcomes[0].reason.as_str());
        if removal == Removal::Name {
            assert_eq!(told, (RemoveResult::Removed, ""));
            assert!(!puller.runtime.holds(A));
        } else {
            assert_eq!(told, (RemoveResult::Kept, "SharedImage"), "{removal:?}");
            assert!(puller.runtime.holds(A));
        }
        assert!(puller.runtime.holds("registry.test/other:1"), "{removal:?}");
    }
}

#[tokio::test]
async fn one_of_two_artifacts_goes_from_containerd_and_the_other_stays() {
    let mut puller = Puller::containerd(Native::WithPins, &[]).await;
    puller.runtime.hold_artifact(A);
    puller.runtime.hold_artifact(B);
    let outcomes = puller.remove(1, &[A]).await;
    assert_eq!(outcomes[0].result(), RemoveResult::Removed);
    assert_eq!(removals(&puller), [], "RemoveImage would remove both");
    assert!(!puller.runtime.holds(A));
    assert!(puller.runtime.holds(B));
    let outcomes = puller.remove(2, &[B]).await;
    assert_eq!(outcomes[0].result(), RemoveResult::Removed);
    assert!(!puller.runtime.holds(B));
}

#[tokio::test]
async fn two_names_that_nobody_wants_go_with_their_image() {
    for removal in [Removal::Whole, Removal::Name, Removal::Id] {
        let mut puller = Puller::start(removal).await;
        puller.runtime.hold(A);
        puller.runtime.tag(A, B);
        let request = RemoveImagesRequest {
            authority: Some(authority(1)),
            references: texts(&[A]),
            releasable: texts(&[B]),
            ..RemoveImagesRequest::default()
        };
        let stream = puller.client.remove_images(request).await.unwrap();
        let mut stream = stream.into_inner();
        let mut results = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            if let Some(Event::Outcomes(outcomes)) = message.event {
                results.extend(outcomes.outcomes.iter().map(RemoveOutcome::result));
            }
        }
        assert_eq!(results, [RemoveResult::Removed], "{removal:?} on {NODE}");
        assert!(
            !puller.runtime.holds(A) && !puller.runtime.holds(B),
            "{removal:?}"
        );
    }
}

fn results(outcomes: &[RemoveOutcome]) -> Vec<(RemoveResult, &str)> {
    let outcomes = outcomes.iter();
    outcomes.map(|o| (o.result(), o.reason.as_str())).collect()
}

#[tokio::test]
async fn an_image_that_a_container_mounts_as_a_volume_stays_until_the_container_has_gone() {
    for removal in [Removal::Whole, Removal::Name] {
        let mut puller = Puller::start(removal).await;
        puller.runtime.hold(A);
        puller.runtime.mount(A);
        let outcomes = puller.remove(1, &[A]).await;
        assert_eq!(
            results(&outcomes),
            [(RemoveResult::Kept, "InUse")],
            "{removal:?}"
        );
        assert!(removals(&puller).is_empty(), "{removal:?}");
        puller.runtime.end_containers();
        let outcomes = puller.remove(2, &[A]).await;
        assert_eq!(results(&outcomes), [(RemoveResult::Removed, "")]);
        assert!(!puller.runtime.holds(A), "{removal:?}");
    }
}

#[tokio::test]
async fn a_container_is_asked_once_what_it_mounts_however_many_images_are_removed() {
    let mut puller = Puller::start(Removal::Whole).await;
    let names: Vec<String> = (0..5)
        .map(|i| format!("registry.test/team/n{i}:1"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        puller.runtime.hold(name);
    }
    puller.runtime.hold(A);
    puller.runtime.mount(A);
    let asked = |puller: &Puller| {
        let calls = puller.runtime.calls().into_iter();
        calls
            .filter(|call| matches!(call, Call::ContainerStatus(_)))
            .count()
    };
    puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(asked(&puller), 0, "pulls need no such call");
    puller.remove(2, &names).await;
    assert_eq!(asked(&puller), 1);
}
