//! One call brings a node images of several caches.

use super::*;

/// What each pull asks for: the cache and the name of each image.
fn pulls(harness: &Harness) -> Vec<Vec<String>> {
    let pulls = harness
        .batches
        .iter()
        .filter_map(|batch| match &batch.work {
            Work::Pull { images, .. } => Some(images),
            Work::Check { .. } | Work::Remove { .. } => None,
        });
    let line = |item: &PullItem| format!("{} {}", item.cache.name, item.reference);
    pulls
        .map(|items| items.iter().map(line).collect())
        .collect()
}

fn of_priority(names: &[&str], priority: i32) -> ImageCacheSpec {
    let mut spec = images(names);
    spec.cache_spec[0].priority = Some(priority);
    spec
}

fn on_one_node_at_a_time(names: &[&str]) -> ImageCacheSpec {
    ImageCacheSpec {
        max_concurrent_nodes: "1".parse().ok(),
        ..images(names)
    }
}

#[test]
fn images_of_all_caches_of_one_registry_come_in_one_call_which_serves_all_their_operations() {
    let mut harness = Harness::new(&[]);
    harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
    harness.create(images(&["r.test/a:1", "other.test/a:1"]));
    harness.create_as("b", images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.puller("n1");
    harness.run();
    assert_eq!(
        pulls(&harness),
        [
            vec!["a r.test/a:1", "b r.test/b:1"],
            vec!["a other.test/a:1"]
        ],
        "an image that both desire comes once"
    );
    let shared = harness
        .batches
        .iter()
        .find(|batch| batch.work.caches().len() == 2);
    assert_eq!(shared.unwrap().operations, [named("a"), named("b")]);
    assert_eq!(harness.reported().0, "Succeeded");
    let (_, last) = harness
        .statuses
        .iter()
        .rfind(|(key, _)| *key == named("b"))
        .unwrap();
    assert_eq!(last.status, "Succeeded");
}

#[test]
fn caches_of_other_pull_secrets_or_another_urgency_have_calls_of_their_own() {
    let mut harness = Harness::new(&[]);
    harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
    harness.create(images(&["r.test/a:1"]));
    harness.create_as("urgent", of_priority(&["r.test/u:1"], 5));
    let mut secret = images(&["r.test/s:1"]);
    secret.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    harness.create_as("secret", secret);
    harness.lead();
    harness.puller("n1");
    harness.run();
    let all = pulls(&harness);
    assert_eq!(all.first().unwrap(), &["urgent r.test/u:1"]);
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn a_cache_whose_images_are_there_gives_its_place_to_another_node_while_the_call_goes_on() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.slow.insert("r.test/slow:1".into());
    harness.create(on_one_node_at_a_time(&["r.test/a:1"]));
    harness.create_as("b", images(&["r.test/slow:1"]));
    harness.lead();
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    assert_eq!(harness.held("n2"), ["r.test/a:1"], "{:?}", pulls(&harness));
    assert_eq!(harness.reported().0, "Succeeded");
}

#[test]
fn a_cache_that_waits_for_another_node_leaves_its_images_to_other_caches() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness
        .slow
        .extend(["r.test/a:1".into(), "r.test/b:1".into()]);
    harness.create(on_one_node_at_a_time(&["r.test/a:1", "r.test/b:1"]));
    harness.create_as("b", images(&["r.test/b:1"]));
    harness.lead();
    assert_eq!(
        pulls(&harness),
        [vec!["a r.test/a:1", "a r.test/b:1"], vec!["b r.test/b:1"]]
    );
    harness.end_slow("r.test/a:1");
    harness.end_slow("r.test/b:1");
    harness.end_slow("r.test/a:1");
    assert_eq!(harness.held("n2"), ["r.test/a:1", "r.test/b:1"]);
}

#[test]
fn every_cache_hears_that_a_pull_secret_does_not_exist() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.create_as("b", images(&["r.test/b:1"]));
    harness.lead();
    harness.secrets_read(vec![named("a"), named("b")], &["s"]);
    assert_eq!(harness.count("event ImagePullSecretNotFound"), 2);
}

#[test]
fn an_image_whose_logins_are_not_sent_keeps_no_other_image_from_being_pulled() {
    let mut harness = Harness::new(&[]);
    harness.handle(Event::NodeApplied(node("n1"), facts(&[])));
    let slow = ["r.test/a:1".to_owned(), "r.test/b:1".to_owned()];
    harness.slow.extend(slow);
    harness.create(images(&["r.test/a:1"]));
    harness.create_as("b", images(&["r.test/b:1"]));
    harness.lead();
    harness.puller("n1");
    harness.run();
    let call = harness.batches.last().unwrap().id;
    harness.slow.remove("r.test/b:1");
    let outcomes = vec![
        ImageOutcome::new(0, failed("CredentialsUnavailable")),
        ImageOutcome::new(1, ImageResult::Cancelled),
    ];
    harness.handle(Event::Outcomes(call, outcomes));
    harness.handle(Event::BatchEnded(call, BatchEnd::Done));
    harness.run();
    assert_eq!(
        pulls(&harness),
        [vec!["a r.test/a:1", "b r.test/b:1"], vec!["b r.test/b:1"]],
        "at once, and without the other"
    );
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
    harness.is("Degraded", "True", "PullFailed");
}
