use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_793_494_800);

fn cache(status: &serde_json::Value) -> StoredCache {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "generation": 2},
        "spec": {"cacheSpec": []}, "status": status,
    });
    serde_json::from_value(object).expect("an object")
}

fn failing() -> StoredCache {
    let at = "2026-11-01T00:59:00Z";
    let condition = |type_: &str, status: &str, reason: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": "2 of 2 nodes lack r/web:none",
               "lastTransitionTime": at})
    };
    let failure = |node: &str| json!({"node": node, "reason": "ImageNotFound", "message": "manifest unknown"});
    cache(&json!({
        "status": "Failed", "reason": "ImageCacheCreate", "message": "Image pull failed for some images.",
        "startTime": "2026-11-01T00:58:58Z", "completionTime": at, "observedGeneration": 2,
        "nodes": {"desired": 2, "failed": 2}, "images": {"desired": 2, "ready": 0},
        "conditions": [condition("Ready", "False", "ImagesMissing"), condition("Degraded", "True", "PullFailed")],
        "failures": {"r/web:none": [failure("n1"), failure("n2")]},
    }))
}

fn without_access() -> Result<Inside, Failure> {
    Err(Failure::NoAccess("you may not".to_owned()))
}

#[test]
fn a_wrong_tag_is_one_cause_with_its_nodes_and_the_command_that_helps() {
    let screen = screen(&failing(), &without_access(), NOW);
    let expected = "\
shop/web is not ready: 0/2 nodes, 0/2 images
ImageCacheCreate Failed, 1m ago, took 2s: Image pull failed for some images.

CONDITION   STATUS   SINCE   REASON          MESSAGE
Ready       False    1m      ImagesMissing   2 of 2 nodes lack r/web:none
Degraded    True     1m      PullFailed      2 of 2 nodes lack r/web:none

Causes
  r/web:none on n1, n2: the registry has no such image or tag: correct the name, or push the image.
    ImageNotFound: manifest unknown
    kubectl edit imagecache web -n shop

The slowest nodes and what is next are not shown: you may not
";
    assert_eq!(console::strip_ansi_codes(&screen.to_string()), expected);
    assert!(!screen.is_good());
}

#[test]
fn a_selector_without_nodes_is_a_cause_of_the_whole_object() {
    let ready = json!({"type": "Ready", "status": "False", "reason": "NoNodeMatches", "message": "cacheSpec[0]: tier=x",
                       "lastTransitionTime": "2026-11-01T00:59:00Z"});
    let mut stalled = ready.clone();
    stalled["type"] = json!("Stalled");
    stalled["status"] = json!("True");
    let status = json!({"observedGeneration": 2, "conditions": [ready, stalled]});
    let screen = screen(&cache(&status), &without_access(), NOW);
    assert_eq!(screen.causes.len(), 1);
    assert_eq!(screen.causes[0].message, "cacheSpec[0]: tier=x");
}

#[test]
fn what_is_purged_or_suspended_is_called_so_and_not_ready() {
    let at = "2026-11-01T00:59:00Z";
    let rests = |purge: bool| {
        let mut status = json!({
            "status": "Succeeded", "reason": "ImageCachePurge", "observedGeneration": 2, "startTime": at, "completionTime": at,
        });
        if purge {
            status["purge"] = json!({"startTime": at, "completionTime": at});
        }
        let inside = Inside {
            cache: kubefledged_proto::debug::GetCacheResponse {
                next_refresh: Some(prost_types::Duration {
                    seconds: 720,
                    nanos: 0,
                }),
                ..Default::default()
            },
            slowest: Vec::new(),
        };
        let screen = screen(&cache(&status), &Ok(inside), NOW);
        assert!(screen.is_good());
        console::strip_ansi_codes(&screen.to_string()).into_owned()
    };
    assert!(
        rests(true).starts_with("shop/web is purged: "),
        "{}",
        rests(true)
    );
    assert!(
        rests(false).starts_with("shop/web is suspended: "),
        "{}",
        rests(false)
    );
    assert!(!rests(true).contains("next refresh"), "{}", rests(true));
}

#[test]
fn an_object_that_no_controller_has_seen_is_not_ready() {
    let screen = screen(
        &cache(&json!({"observedGeneration": 1})),
        &without_access(),
        NOW,
    );
    assert!(!screen.is_good());
    assert!(
        screen
            .to_string()
            .contains("No controller has seen the newest spec")
    );
}

#[test]
fn what_happens_by_itself_is_told() {
    let inside = Inside {
        cache: kubefledged_proto::debug::GetCacheResponse {
            next_refresh: Some(prost_types::Duration {
                seconds: 720,
                nanos: 0,
            }),
            ..Default::default()
        },
        slowest: vec![(
            "n2".to_owned(),
            1,
            2,
            Some(CacheNodeImage {
                node: "n2".to_owned(),
                image: "r/web:none".to_owned(),
                state: kubefledged_proto::debug::State::Failed.into(),
                reason: "ImageNotFound".to_owned(),
                ..CacheNodeImage::default()
            }),
        )],
    };
    let shown = screen(&failing(), &Ok(inside), NOW).to_string();
    assert!(
        shown.contains("n2 lacks 1 of 2 images; r/web:none: failed (ImageNotFound)"),
        "{shown}"
    );
    assert!(shown.contains("The next refresh is in 12m."), "{shown}");
}
