//! Workloads as a source of images.

use kubefledged_api_types::{WorkloadAccess, WorkloadKind, workloads::ImagePlace};

use super::*;

/// A spec with one list whose images come from workloads.
pub(super) fn following(list: &serde_json::Value) -> ImageCacheSpec {
    serde_json::from_value(serde_json::json!({"cacheSpec": [list]})).unwrap()
}

pub(super) fn all() -> ImageCacheSpec {
    following(&serde_json::json!({"imagesFrom": [{"workloads": {}}]}))
}

pub(super) fn harness(nodes: &[&str]) -> Harness {
    let settings = Settings {
        workloads: WorkloadAccess::enabled("ns", []),
        ..Settings::default()
    };
    Harness::with(settings, nodes)
}

pub(super) fn workload(images: &[&str]) -> Workload {
    let image = |reference: &&str| WorkloadImage {
        container: "app".into(),
        place: ImagePlace::Container,
        reference: (*reference).into(),
    };
    Workload {
        images: images.iter().map(image).collect(),
        service_account: Some("default".into()),
        ..Workload::default()
    }
}

pub(super) fn at(namespace: &str, name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}

pub(super) const DEPLOYMENTS: Watched = Watched::Workloads(WorkloadKind::Deployment);

impl Harness {
    pub(super) fn watch_of(&self, target: &Watched) -> WatchId {
        let found = self.watches.iter().find(|(_, known)| known == target);
        found.unwrap_or_else(|| panic!("{target} is not watched")).0
    }

    /// A Deployment of namespace `ns` names these images; none: it is gone.
    pub(super) fn deploy(&mut self, name: &str, images: &[&str]) {
        self.deploy_as(at("ns", name), workload(images));
    }

    pub(super) fn deploy_as(&mut self, key: WorkloadKey, workload: Workload) {
        let watch = self.watch_of(&DEPLOYMENTS);
        if workload.images.is_empty() {
            self.handle(Event::WorkloadDeleted(watch, key));
        } else {
            self.handle(Event::WorkloadApplied(watch, key, Box::new(workload)));
        }
        self.run();
    }

    /// All watches have brought everything.
    pub(super) fn sync(&mut self) {
        for (id, _) in self.watches.clone() {
            self.handle(Event::Listing(Source::Watch(id)));
            self.handle(Event::Synced(Source::Watch(id)));
        }
        self.run();
    }

    /// The names that the status records, those that stay marked with +, those to be removed with -.
    pub(super) fn recorded(&self) -> Vec<String> {
        let images = self.status().applied_images.iter();
        let mark =
            |image: &kubefledged_api_types::AppliedImage| match (image.since, image.retained_since)
            {
                (Some(_), _) => "-",
                (None, Some(_)) => "+",
                (None, None) => "",
            };
        images
            .map(|image| format!("{}{}", mark(image), image.name))
            .collect()
    }
}

/// A cache whose Deployment `web` names `r.test/web:1`, and that has it everywhere.
pub(super) fn warm(nodes: &[&str], spec: ImageCacheSpec) -> Harness {
    let mut harness = harness(nodes);
    harness.create(spec);
    harness.lead();
    harness.sync();
    harness.deploy("web", &["r.test/web:1"]);
    harness.wait(5);
    harness.asked();
    harness
}

/// Large objects are written at growing intervals: every change of the names begins anew.
#[test]
fn a_large_cache_is_ready_again_soon_after_each_change_of_its_workloads() {
    let mut harness = harness(&["n1"]);
    harness.create(all());
    harness.lead();
    harness.sync();
    let path = "p".repeat(60);
    let names: Vec<String> = (0..1_500).map(|n| format!("r.test/{path}/{n}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness.deploy("many", &names);
    for version in 0..10 {
        harness.deploy("web", &[&format!("r.test/web:{version}")]);
        harness.wait(60);
        harness.is("Ready", "True", "AllImagesPresent");
    }
}

#[test]
fn the_create_waits_until_all_workloads_are_read() {
    let mut harness = harness(&["n1", "n2"]);
    harness.create(all());
    harness.lead();
    harness.wait(30);
    assert_eq!(harness.reported(), ("Processing", "ImageCacheCreate"));
    harness.is("Ready", "Unknown", "NotYetChecked");
    assert_eq!(
        harness.count("event watch: Deployment StatefulSet DaemonSet CronJob"),
        1
    );
    let watch = harness.watch_of(&DEPLOYMENTS);
    harness.handle(Event::WorkloadApplied(
        watch,
        at("ns", "web"),
        Box::new(workload(&["r.test/web:1"])),
    ));
    harness.handle(Event::WorkloadApplied(
        watch,
        at("other", "api"),
        Box::new(workload(&["r.test/api:1"])),
    ));
    let sync = |harness: &mut Harness, at: usize| {
        let id = harness.watches[at].0;
        harness.handle(Event::Synced(Source::Watch(id)));
        harness.wait(2);
    };
    for kind in 0..3 {
        sync(&mut harness, kind);
    }
    assert_eq!(harness.reported().0, "Processing");
    sync(&mut harness, 3);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    harness.is("Ready", "True", "AllImagesPresent");
    assert_eq!(harness.held("n2"), ["r.test/web:1"]);
    let sources = &harness.status().sources;
    assert_eq!(
        (
            sources[0].workloads,
            sources[0].images,
            sources[0].error.as_str()
        ),
        (1, 1, "")
    );
    assert!(sources[0].since.is_some());
}

#[test]
fn a_new_image_is_pulled_everywhere_without_an_operation_and_the_previous_one_stays() {
    let mut harness = warm(&["n1", "n2"], all());
    let before = (
        harness.status().start_time,
        harness.status().observed_generation,
    );
    harness.deploy("web", &["r.test/web:2"]);
    // The name is recorded before the first pull, and within a second.
    harness.wait(1);
    let asked = harness.asked();
    assert_eq!(
        asked
            .iter()
            .filter(|line| line.starts_with("pull") && line.contains("web:2"))
            .count(),
        2,
        "{asked:?}"
    );
    harness.wait(2);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:2"]);
    assert_eq!(harness.recorded(), ["+r.test/web:1", "r.test/web:2"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(
        (
            harness.status().start_time,
            harness.status().observed_generation
        ),
        before
    );
    harness.is("Ready", "True", "AllImagesPresent");
    // It stays for ever as the previous version.
    harness.wait(9000);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:2"]);
    harness.asked();
    // kubectl rollout undo
    harness.deploy("web", &["r.test/web:1"]);
    harness.wait(60);
    let asked = harness.asked();
    assert!(
        !asked.iter().any(|line| line.starts_with("pull")),
        "{asked:?}"
    );
    assert_eq!(harness.recorded(), ["r.test/web:1", "+r.test/web:2"]);
}

#[test]
fn what_nobody_names_goes_after_retain_for_from_all_nodes() {
    let spec = following(
        &serde_json::json!({"imagesFrom": [{"workloads": {}}], "keepPrevious": 0, "retainFor": "10m"}),
    );
    let mut harness = warm(&["n1", "n2"], spec);
    harness.deploy("api", &["r.test/api:1"]);
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(590);
    assert_eq!(
        harness.recorded(),
        ["r.test/api:1", "+r.test/web:1", "r.test/web:2"]
    );
    harness.wait(30);
    assert_eq!(harness.held("n1"), ["r.test/api:1", "r.test/web:2"]);
    assert_eq!(harness.recorded(), ["r.test/api:1", "r.test/web:2"]);
    harness.deploy("api", &[]);
    harness.wait(700);
    assert_eq!(harness.held("n2"), ["r.test/web:2"]);
    assert_eq!(harness.reported(), ("Succeeded", "ImageCacheCreate"));
}

#[test]
fn one_event_tells_what_came_and_went_and_the_next_waits_a_minute() {
    let mut harness = warm(&["n1"], all());
    harness.wait(120);
    harness.log.clear();
    harness.deploy("web", &["r.test/web:2"]);
    let first = "event ImagesChanged: workloads name 1 new image (r.test/web:2), and no longer 1 image (r.test/web:1)";
    assert_eq!(harness.count(first), 1, "{:#?}", harness.log);
    for version in 3..20 {
        harness.deploy("web", &[&format!("r.test/web:{version}")]);
        harness.wait(1);
    }
    assert_eq!(harness.count("event ImagesChanged"), 1);
    harness.wait(60);
    let second = "event ImagesChanged: workloads name 1 new image (r.test/web:19), and no longer 1 image (r.test/web:2)";
    assert_eq!(harness.count(second), 1, "{:#?}", harness.log);
    harness.wait(600);
    assert_eq!(harness.count("event ImagesChanged"), 2);
}

#[test]
fn each_image_is_pulled_with_the_secrets_of_its_own_workload() {
    let mut harness = warm(
        &["n1"],
        following(&serde_json::json!({
            "images": ["r.test/own:1"],
            "imagesFrom": [{"workloads": {"namespaceSelector": {}}}],
        })),
    );
    harness.batches.clear();
    let secret = Workload {
        secrets: ["s".to_owned()].into(),
        ..workload(&["r.test/private:1"])
    };
    harness.deploy_as(at("shop", "private"), secret);
    harness.deploy_as(at("shop", "robot"), workload(&["r.test/robot:1"]));
    harness.wait(5);
    let scopes: BTreeMap<String, CredentialScope> = harness
        .batches
        .iter()
        .filter_map(|batch| match &batch.work {
            Work::Pull {
                images,
                credentials,
            } => Some((images, credentials)),
            _ => None,
        })
        .flat_map(|(images, scope)| {
            images
                .iter()
                .map(|image| (image.reference.to_string(), scope.clone()))
        })
        .collect();
    let private = &scopes["r.test/private:1"];
    assert_eq!(
        (
            &*private.namespace,
            private.secrets.to_vec(),
            private.service_account.clone()
        ),
        ("shop", vec!["s".to_owned()], None)
    );
    let robot = &scopes["r.test/robot:1"];
    assert_eq!(
        (
            &*robot.namespace,
            robot.secrets.len(),
            robot.service_account.as_deref()
        ),
        ("shop", 0, Some("default"))
    );
    assert!(private.of_pods && robot.of_pods);
}

#[test]
fn a_cache_without_sources_asks_for_no_watch() {
    let mut harness = harness(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.wait(10);
    assert_eq!(harness.count("event watch"), 0);
    assert!(harness.status().sources.is_empty());
}

#[test]
fn what_a_list_names_itself_stays_when_workloads_stop_naming_it() {
    let spec = following(&serde_json::json!({
        "images": ["r.test/web:1"], "imagesFrom": [{"workloads": {}}], "retainFor": "1m", "keepPrevious": 0,
    }));
    let mut harness = warm(&["n1"], spec);
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(300);
    assert_eq!(harness.held("n1"), ["r.test/web:1", "r.test/web:2"]);
    assert_eq!(harness.recorded(), ["r.test/web:1", "r.test/web:2"]);
}

#[test]
fn another_cache_removes_nothing_that_stays_for_a_roll_back() {
    let mut harness = warm(&["n1"], all());
    harness.create_as("b", images(&["r.test/web:1"]));
    harness.run();
    harness.deploy("web", &["r.test/web:2"]);
    harness.wait(5);
    harness.apply_to(&named("b"), |object| {
        object.spec = images(&["r.test/b:1"]);
        object.generation += 1;
    });
    harness.wait(600);
    assert_eq!(
        harness.held("n1"),
        ["r.test/b:1", "r.test/web:1", "r.test/web:2"]
    );
}

#[test]
fn what_workloads_named_while_a_cache_was_suspended_does_not_stay_for_its_roll_backs() {
    let mut harness = harness(&["n1"]);
    let mut spec = following(&serde_json::json!({
        "imagesFrom": [{"workloads": {}}], "keepPrevious": 1, "retainFor": "0s"
    }));
    spec.suspend = true;
    harness.create(spec);
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.lead();
    harness.sync();
    harness.deploy("x", &["r.test/a:1"]);
    harness.deploy("x", &["r.test/a:2"]);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    harness.apply_to(&named("b"), |object| {
        object.spec = images(&["r.test/b:1"]);
        object.generation += 1;
    });
    harness.run();
    assert_eq!(harness.held("n1"), ["r.test/b:1"]);
}

#[test]
fn pods_that_come_and_go_with_the_same_images_cause_no_write() {
    let mut harness = warm(&["n1"], all());
    harness.wait(10);
    let writes = harness.statuses.len();
    for round in 0..50 {
        harness.deploy(&format!("pod-{round}"), &["r.test/web:1"]);
        harness.wait(1);
    }
    assert_eq!(harness.statuses.len(), writes);
    assert!(harness.asked().is_empty());
}
