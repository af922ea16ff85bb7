//! A tenant who may write `ImageCache`s in one namespace, and registries that do not answer as registries
//! should.

use std::{
    thread,
    time::{Duration, Instant},
};

use kubefledged_e2e::{
    Cluster, demo,
    examples::{DEBUG, examples},
    faulty,
};
use serde_json::Value;

use super::{NAMESPACE, cluster, delete, row, seconds_to_succeed, spec};

/// Within which another tenant's small image is there.
const FAIR: Duration = Duration::from_secs(15);

/// What the leader's debug endpoint says of a registry.
fn registry(cluster: &Cluster, host: &str) -> Value {
    let examples = examples(DEBUG);
    let commands = |heading: &str| {
        let mut known = examples.iter();
        &known.find(|(name, _)| *name == heading).unwrap().1
    };
    let forward = &examples[0].1[..1];
    let said = cluster.forwarded(forward, &[7070], commands("ListRegistries"));
    let said: Value = serde_json::from_str(&said.unwrap()).unwrap();
    let mut all = said["registries"].as_array().unwrap().iter();
    all.find(|known| known["host"] == host).unwrap().clone()
}

/// The reasons of an object's failures, each once.
fn reasons(status: &Value) -> Vec<String> {
    let failures = status["failures"].as_object().into_iter().flatten();
    let failures = failures.flat_map(|(_, nodes)| nodes.as_array().into_iter().flatten());
    let mut reasons: Vec<String> = failures
        .map(|failure| failure["reason"].as_str().unwrap().to_owned())
        .collect();
    reasons.sort();
    reasons.dedup();
    reasons
}

#[test]
#[ignore = "make test-abuse"]
fn names_that_read_like_a_refusal_of_the_registry_cost_it_no_budget() {
    let cluster = cluster();
    let host = "registry.test:5000";
    let small = spec(&[demo("web")], None);
    seconds_to_succeed(&cluster, "small", &small, Duration::from_secs(60));
    let before = registry(&cluster, host);
    let names = [
        "toomanyrequests",
        "429",
        "rate.limit.exceeded",
        "unauthorized",
        "denied",
    ];
    let images = names.iter().flat_map(|name| {
        let image = move |i| match i % 2 {
            0 => format!("{host}/demo/web:{name}-{i}"),
            _ => format!("{host}/{name}/too-many-requests:{i}"),
        };
        (0..8).map(image)
    });
    let images: Vec<String> = images.collect();
    cluster
        .create(NAMESPACE, "names", &spec(&images, None))
        .unwrap();
    let status = cluster
        .ended(NAMESPACE, "names", "ImageCacheCreate")
        .unwrap();
    let after = registry(&cluster, host);
    let reasons = reasons(&status);
    row(
        "40 images that do not exist, with names such as `toomanyrequests-1`",
        &format!(
            "{} failures, all {}; the registry's budget is {} before and {} afterwards",
            status["failureCount"],
            reasons.join(", "),
            before["budget"],
            after["budget"],
        ),
    );
    assert_eq!(reasons, ["ImageNotFound"]);
    assert!(after["budget"].as_u64() >= before["budget"].as_u64());
    assert!(after["lastRateLimited"].is_null(), "{after}");
    delete(&cluster, "names");
}

#[test]
#[ignore = "make test-abuse"]
fn sixty_images_of_a_silent_registry_do_not_delay_the_small_image_of_another_cache() {
    let cluster = cluster();
    let nodes = cluster.nodes().unwrap().len();
    cluster.run(&["fault", "delay=9999"], "").unwrap();
    let silent: Vec<String> = (0..60).map(|i| faulty(&format!("silent-{i}"))).collect();
    cluster
        .create(NAMESPACE, "silent", &spec(&silent, None))
        .unwrap();
    let pulling = cluster.until(Duration::from_secs(30), "all nodes pull", || {
        let status = cluster.object(NAMESPACE, "silent")?["status"].clone();
        Ok((status["nodes"]["pulling"] == nodes).then_some(()))
    });
    pulling.unwrap();
    // The pulls that fill the places are old enough to be called long, and then too.
    let mut took = Vec::new();
    for (turn, image) in ["web", "api", "worker"].into_iter().enumerate() {
        let small = spec(&[demo(image)], None);
        let name = format!("small-{turn}");
        took.push(seconds_to_succeed(
            &cluster,
            &name,
            &small,
            Duration::from_secs(60),
        ));
        thread::sleep(Duration::from_secs(15));
    }
    row(
        "60 images of a registry that accepts and never answers, on 3 nodes",
        &format!(
            "another cache's image is on all nodes in {:.1} s, {:.1} s and {:.1} s, at once, 15 s and 30 s later",
            took[0], took[1], took[2],
        ),
    );
    cluster.run(&["fault", "off"], "").unwrap();
    delete(&cluster, "silent");
    assert!(
        took.iter().all(|took| *took < FAIR.as_secs_f64()),
        "{took:?}"
    );
}

/// Digest of the layer of a test image that no other has.
fn own_layer(cluster: &Cluster, image: &str) -> String {
    let source = format!("docker://10.77.0.1:5000/demo/{image}:1.0");
    let inspect = "run skopeo --insecure-policy inspect --raw --tls-verify=false";
    let mut args: Vec<&str> = inspect.split(' ').collect();
    args.push(&source);
    let manifest: Value = serde_json::from_str(&cluster.run(&args, "").unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    layers[layers.len() - 1]["digest"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
#[ignore = "make test-abuse"]
fn a_registry_that_drips_a_byte_a_minute_loses_its_place() {
    let cluster = cluster();
    // What the test images have in common is there: of one layer a runtime lets only one pull fetch it.
    let base = spec(&[demo("worker")], None);
    seconds_to_succeed(&cluster, "base", &base, Duration::from_secs(60));
    let layer = format!("match={}", own_layer(&cluster, "extra"));
    cluster.run(&["fault", "drip=60", &layer], "").unwrap();
    let begin = Instant::now();
    let dripping = spec(&[faulty("extra")], None);
    cluster.create(NAMESPACE, "dripping", &dripping).unwrap();
    thread::sleep(Duration::from_secs(5));
    let other = spec(&[demo("web")], None);
    let took = seconds_to_succeed(&cluster, "other", &other, Duration::from_secs(60));
    let what = "the dripping pulls have failed";
    let status = cluster.until(Duration::from_secs(180), what, || {
        let status = cluster.object(NAMESPACE, "dripping")?["status"].clone();
        Ok((status["status"] == "Failed").then_some(status))
    });
    let ended = begin.elapsed().as_secs_f64();
    cluster.run(&["fault", "off"], "").unwrap();
    let status = status.unwrap();
    let reasons = reasons(&status);
    row(
        "an image whose layer drips a byte a minute, on 3 nodes",
        &format!(
            "all pulls have ended after {ended:.0} s with {} (`puller.noProgressLimit` is 2m); \
             meanwhile another cache's image was on all nodes in {took:.1} s",
            reasons.join(", "),
        ),
    );
    delete(&cluster, "dripping");
    assert_eq!(reasons, ["NoProgress"], "{status}");
    assert!(took < FAIR.as_secs_f64(), "{took}");
}
