use kubefledged_proto::debug::{
    GetDiskResponse, GetNodeResponse, NodeCache, Puller, Registry, State,
};

use super::*;
use crate::access::puller::Health;

fn healthy() -> Facts {
    Facts {
        node: GetNodeResponse {
            node: "n2".to_owned(),
            eligible: true,
            puller: Some(Puller::default()),
            caches: vec![NodeCache {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                desired_images: 2,
                ..NodeCache::default()
            }],
            ..GetNodeResponse::default()
        },
        installation: "kube-fledged".to_owned(),
        ..Facts::default()
    }
}

fn pair(
    image: &str,
    state: State,
    reason: &str,
    message: &str,
) -> (String, String, CacheNodeImage) {
    let pair = CacheNodeImage {
        node: "n2".to_owned(),
        image: image.to_owned(),
        state: state.into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..CacheNodeImage::default()
    };
    ("shop".to_owned(), "web".to_owned(), pair)
}

fn plain(answer: &Answer) -> String {
    console::strip_ansi_codes(&answer.to_string()).into_owned()
}

#[test]
fn a_cordoned_node_is_one_sentence_and_the_command_that_helps() {
    let mut facts = healthy();
    facts.node.eligible = false;
    facts.node.reason = "Cordoned".to_owned();
    facts.pairs = vec![pair("r/a:1", State::Out, "Cordoned", "")];
    let answer = answer(&facts, None);
    let expected = "n2 gets no images: the node is cordoned, and gets images when it is uncordoned.\n  kubectl uncordon n2\n";
    assert_eq!(plain(&answer), expected);
    assert!(!answer.good);
}

#[test]
fn a_missing_puller_is_told_with_the_time_since_when() {
    let mut facts = healthy();
    facts.node.puller = None;
    facts.node.puller_silent = Some(prost_types::Duration {
        seconds: 75,
        nanos: 0,
    });
    let text = plain(&answer(&facts, None));
    assert!(text.contains("cannot be reached (for 1m15s now)"), "{text}");
    assert!(text.contains("--field-selector spec.nodeName=n2"), "{text}");
}

#[test]
fn images_with_one_cause_are_one_sentence() {
    let mut facts = healthy();
    let failed = |image| pair(image, State::Failed, "ImageNotFound", "manifest unknown");
    facts.pairs = ["r/a:1", "r/b:1", "r/c:1", "r/d:1"].map(failed).to_vec();
    facts.pairs.push(pair("r/ok:1", State::Ready, "", ""));
    facts.pairs[0].2.attempts = 3;
    facts.pairs[0].2.next_attempt = Some(prost_types::Duration {
        seconds: 120,
        nanos: 0,
    });
    let expected = "\
n2 lacks r/a:1, r/b:1, r/c:1 and 1 more of shop/web (failed): the registry has no such image or tag: correct the name, or push the image; tried 3 times; next attempt in 2m.
  ImageNotFound: manifest unknown
  kubectl edit imagecache web -n shop
";
    assert_eq!(plain(&answer(&facts, None)), expected);
}

#[test]
fn a_registry_that_answers_429_is_told_with_its_budget() {
    let mut facts = healthy();
    facts.pairs = vec![pair("hub/a:1", State::Failed, "RateLimited", "429")];
    facts.registries = vec![Registry {
        host: "hub".to_owned(),
        budget: 32,
        last_rate_limited: Some(prost_types::Duration {
            seconds: 12,
            nanos: 0,
        }),
        ..Registry::default()
    }];
    let text = plain(&answer(&facts, None));
    assert!(
        text.contains("429; hub answered 429 12s ago, and 32 pulls may run"),
        "{text}"
    );
}

#[test]
fn an_image_that_a_container_uses_is_told_as_still_there() {
    let mut facts = healthy();
    facts.steps = vec![PlannedStep {
        node: "n2".to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        image: "r/a:1".to_owned(),
        action: Action::Wait.into(),
        reason: "InUse".to_owned(),
        wait: None,
    }];
    let answer = answer(&facts, Some("a:1"));
    let text = plain(&answer);
    assert!(
        text.starts_with("r/a:1 of shop/web is still on n2: a container uses it"),
        "{text}"
    );
    assert!(text.contains("kubectl get pods -A -o wide --field-selector spec.nodeName=n2"));
    assert!(!answer.good);
}

#[test]
fn a_node_that_holds_everything_is_good_and_its_disk_is_told() {
    let mut facts = healthy();
    facts.health = Some(Health {
        disk: GetDiskResponse {
            capacity_bytes: 1000,
            available_bytes: 500,
            used_percent: 50,
            ..GetDiskResponse::default()
        },
        runtime: kubefledged_proto::debug::GetRuntimeResponse {
            runtime: "containerd".to_owned(),
            version: "1.6.20".to_owned(),
            answers: true,
            ..Default::default()
        },
    });
    let answer = answer(&facts, None);
    assert!(answer.good);
    let text = plain(&answer);
    assert!(text.contains("n2 holds all of the 2 images"), "{text}");
    assert!(
        text.contains("containerd 1.6.20; its image file system is 50 % full"),
        "{text}"
    );
}

#[test]
fn an_image_that_nobody_desires_there_is_no_failure_of_the_node() {
    let text = plain(&answer(&healthy(), Some("other")));
    assert_eq!(text, "No ImageCache desires an image called other on n2.\n");
}

#[test]
fn a_present_image_is_told_with_what_the_kubelet_asks_of_pods() {
    let mut facts = healthy();
    facts.pairs = vec![pair("r/a:1", State::Ready, "", "")];
    facts.verification = Some("AlwaysVerify".to_owned());
    let answer = answer(&facts, Some("a:1"));
    assert!(answer.good && plain(&answer).contains("a pod needs a pull secret of its own"));
}

#[test]
fn an_image_that_workloads_name_is_told_with_them() {
    let mut facts = healthy();
    facts.pairs = vec![pair("r/web:2", State::Ready, "", "")];
    let row = |name: &str| kubefledged_proto::debug::NamedImage {
        kind: "Deployment".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        container: "app".to_owned(),
        place: "container".to_owned(),
        image: "r/web:2".to_owned(),
        list: 0,
    };
    facts.workloads = vec![ListWorkloadsResponse {
        images: ["a", "b", "c", "d"].map(row).to_vec(),
        truncated: false,
    }];
    let text = plain(&answer(&facts, Some("web")));
    assert!(
        text.contains("r/web:2 is named by Deployment shop/a (container app)"),
        "{text}"
    );
}
