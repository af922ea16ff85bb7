//! Protection from the kubelet's garbage collection, on containerd with and without it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use std::time::Duration;

use common::{NODE, Puller, authority, image, texts};
use kubefledged_proto::puller::{
    GetInfoRequest, ImagePull, PinResult, PullOutcome, PullPolicy, PullResult, RemoveImagesRequest,
    RemoveOutcome, RemoveResult, Retention, Support, remove_images_response::Event,
};
use kubefledged_testkit::{Call, Native};

const A: &str = "registry.test/team/a:1";

fn pinned(name: &str) -> ImagePull {
    ImagePull {
        retention: Retention::Pinned.into(),
        ..image(name)
    }
}

async fn pin_support(puller: &mut Puller) -> Support {
    let node_name = NODE.to_owned();
    let request = GetInfoRequest { node_name };
    let info = puller.client.get_info(request).await.unwrap();
    info.into_inner().pin_support()
}

fn labelled(puller: &Puller) -> Vec<Call> {
    let calls = puller.runtime.calls().into_iter();
    calls.filter(|call| matches!(call, Call::Pin(..))).collect()
}

async fn remove(puller: &mut Puller, request: RemoveImagesRequest) -> Vec<RemoveOutcome> {
    let stream = puller.client.remove_images(request).await.unwrap();
    let mut stream = stream.into_inner();
    let mut outcomes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Event::Outcomes(more)) = message.event {
            outcomes.extend(more.outcomes);
        }
    }
    outcomes
}

#[tokio::test]
async fn a_pinned_image_shows_as_pinned_and_as_ours() {
    let mut puller = Puller::containerd(Native::WithPins, &[]).await;
    assert_eq!(pin_support(&mut puller).await, Support::Unknown);
    let outcomes = puller.pull(1, vec![pinned(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    assert_eq!(outcomes[0].pin(), PinResult::Pinned);
    assert!(puller.runtime.pinned(A));
    let checked = puller.check(&[A]).await;
    assert!(checked.images[0].pinned);
    assert_eq!(checked.pinned_by_us, [outcomes[0].image_id.as_str()]);
    assert_eq!(checked.pin_support(), Support::Yes);
    assert_eq!(pin_support(&mut puller).await, Support::Yes);
}

#[tokio::test]
async fn where_labels_have_no_effect_the_image_is_pulled_and_the_pin_refused_in_words() {
    let mut puller = Puller::containerd(Native::WithoutPins, &[]).await;
    let b = "registry.test/team/b:1";
    let outcomes = puller.pull(1, vec![pinned(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].result(), PullResult::Pulled);
    assert_eq!(outcomes[0].pin(), PinResult::Unsupported);
    assert!(outcomes[0].pin_message.contains("does not support pins"));
    let tried = labelled(&puller);
    assert!(
        matches!(&*tried, [Call::Pin(_, true), Call::Pin(_, false)]),
        "{tried:?}"
    );
    puller.pull(2, vec![pinned(b)]).await.outcomes().await;
    assert_eq!(labelled(&puller), tried, "it is tried once");
    assert_eq!(puller.check(&[A]).await.pin_support(), Support::No);
}

#[tokio::test]
async fn a_runtime_without_containerds_interface_is_not_even_tried() {
    let mut puller = Puller::containerd(Native::None, &[]).await;
    assert_eq!(pin_support(&mut puller).await, Support::No);
    let outcomes = puller.pull(1, vec![pinned(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].pin(), PinResult::Unsupported);
    assert_eq!(puller.check(&[A]).await.pinned_by_us, [""; 0]);
}

#[tokio::test]
async fn a_tag_that_moved_takes_the_pin_along() {
    let mut puller = Puller::containerd(Native::WithPins, &[]).await;
    let first = puller.pull(1, vec![pinned(A)]).await.outcomes().await;
    puller.runtime.move_tag(A);
    let refresh = ImagePull {
        policy: PullPolicy::Always.into(),
        freshness: "refresh".to_owned(),
        ..pinned(A)
    };
    let second = puller.pull(2, vec![refresh]).await.outcomes().await;
    assert_eq!(second[0].pin(), PinResult::Pinned);
    assert_ne!(first[0].image_id, second[0].image_id);
    assert_eq!(
        puller.check(&[A]).await.pinned_by_us,
        [second[0].image_id.as_str()]
    );
}

#[tokio::test]
async fn our_pin_goes_before_the_image_does_or_alone() {
    let mut puller = Puller::containerd(Native::WithPins, &[]).await;
    let b = "registry.test/team/b:1";
    let outcomes = puller.pull(1, vec![pinned(A), pinned(b)]).await;
    let outcomes = outcomes.outcomes().await;
    assert_eq!(puller.remove(2, &[A]).await[0].reason, "Pinned");
    let request = RemoveImagesRequest {
        authority: Some(authority(3)),
        references: texts(&[A]),
        unpin_ours: true,
        unpin: vec![outcomes[1].image_id.clone()],
        ..RemoveImagesRequest::default()
    };
    let removed = remove(&mut puller, request).await;
    let told: Vec<_> = removed.iter().map(|o| (o.index, o.result())).collect();
    assert_eq!(
        told,
        [(0, RemoveResult::Removed), (1, RemoveResult::Removed)]
    );
    assert!(!puller.runtime.holds(A) && puller.runtime.holds(b));
    assert!(!puller.runtime.pinned(b));
    assert!(puller.check(&[b]).await.pinned_by_us.is_empty());
}

/// containerd takes in the label of a CRI image asynchronously.
#[tokio::test]
async fn twenty_four_images_are_pinned_although_the_runtime_shows_it_late() {
    let mut puller = Puller::containerd(Native::WithPins, &[]).await;
    puller.runtime.show_pins_after(Duration::from_secs(2));
    let names: Vec<String> = (0..24)
        .map(|i| format!("registry.test/team/n{i}:1"))
        .collect();
    let images = names.iter().map(|name| pinned(name)).collect();
    let outcomes = puller.pull(1, images).await.outcomes().await;
    let told: Vec<PinResult> = outcomes.iter().map(PullOutcome::pin).collect();
    assert_eq!(told, [PinResult::Pinned; 24]);
    assert_eq!(pin_support(&mut puller).await, Support::Yes);
}
