//! Deletion, and what is left.

use kubefledged_api_types::DeletionPolicy;

use super::*;

fn purged_at_the_end() -> ImageCacheSpec {
    ImageCacheSpec {
        deletion_policy: Some(DeletionPolicy::Purge),
        ..images(&["r.test/a:1"])
    }
}

#[test]
fn deleting_the_object_leaves_its_images_on_the_nodes() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1"]));
    harness.lead();
    harness.delete();
    harness.wait(1000);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    assert_eq!(
        (harness.count("remove"), harness.count("finalizer")),
        (0, 0)
    );
}

#[test]
fn purge_removes_the_images_before_the_object_goes() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(purged_at_the_end());
    harness.lead();
    assert_eq!(harness.asked()[0], "finalizer a true");
    harness.delete();
    assert!(harness.held("n1").is_empty() && harness.held("n2").is_empty());
    assert!(harness.objects.is_empty());
    let asked = harness.asked();
    assert_eq!(asked.last().unwrap(), "finalizer a false", "{asked:?}");
}

#[test]
fn after_its_deadline_a_deletion_ends_and_an_event_names_the_images_and_nodes_that_are_left() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(purged_at_the_end());
    harness.lead();
    harness.stuck.insert("r.test/a:1".into());
    harness.delete();
    assert_eq!(harness.reported(), ("Processing", "ImageCacheDelete"));
    harness.wait(590);
    assert_eq!(harness.objects.len(), 1);
    harness.wait(20);
    assert!(harness.objects.is_empty());
    let left = harness
        .log
        .iter()
        .find(|l| l.starts_with("event ImagesLeft"));
    let expected = "event ImagesLeft: deleted although r.test/a:1 (0 kept on purpose) are left on 2 nodes: n1, n2";
    assert_eq!(left.map(String::as_str), Some(expected));
}

#[test]
fn a_deletion_waits_for_no_node_whose_puller_does_not_answer() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(purged_at_the_end());
    harness.lead();
    harness.unreachable.insert("n2".into());
    harness.delete();
    harness.wait(150);
    assert!(harness.objects.is_empty());
    assert!(harness.held("n1").is_empty());
}

#[test]
fn a_deletion_that_a_new_leader_finds_before_any_puller_is_ready_waits_for_them() {
    let nodes = ["n1", "n2"];
    let mut harness = Harness::new(&nodes);
    harness.create(purged_at_the_end());
    harness.lead();
    let object = harness.objects[&key()].clone();
    let mut next = Harness {
        engine: Some(Engine::new(Settings::default())),
        held: std::mem::take(&mut harness.held),
        ..Harness::default()
    };
    for name in nodes {
        next.handle(Event::NodeApplied(node(name), facts(&[])));
    }
    next.apply(|new| {
        *new = CacheObject {
            deleting: true,
            ..object
        }
    });
    next.handle(Event::Synced(Source::Nodes));
    next.handle(Event::Synced(Source::Pullers));
    next.lead();
    next.wait(30);
    assert_eq!(next.objects.len(), 1, "{:?}", next.log);
    next.puller("n1");
    next.wait(150);
    assert!(next.objects.is_empty(), "n2 never gets one");
    assert!(next.held("n1").is_empty());
    assert_eq!(next.held("n2"), ["r.test/a:1"]);
    let left = next.log.iter().find(|l| l.starts_with("event ImagesLeft"));
    assert!(left.is_some_and(|line| line.contains("n2")), "{left:?}");
}

#[test]
fn setting_retain_frees_an_object_that_is_being_deleted() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(purged_at_the_end());
    harness.lead();
    harness.stuck.insert("r.test/a:1".into());
    harness.delete();
    assert_eq!(harness.objects.len(), 1);
    harness.change(|spec| spec.deletion_policy = Some(DeletionPolicy::Retain));
    harness.wait(1);
    assert!(harness.objects.is_empty());
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn suspend_does_not_hold_a_deletion() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(purged_at_the_end());
    harness.lead();
    harness.change(|spec| spec.suspend = true);
    harness.delete();
    assert!(harness.objects.is_empty() && harness.held("n1").is_empty());
}

#[test]
fn an_object_is_deleted_even_if_its_status_cannot_be_written() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(purged_at_the_end());
    harness.lead();
    harness.writes_fail = true;
    harness.delete();
    harness.wait(5);
    assert!(harness.objects.is_empty() && harness.held("n1").is_empty());
}

#[test]
fn deleting_with_purge_keeps_images_that_another_cache_desires() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(purged_at_the_end());
    harness.create_as("b", images(&["r.test/a:1"]));
    harness.lead();
    harness.delete();
    assert!(!harness.objects.contains_key(&key()));
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn the_pins_of_a_deleted_object_go_and_its_images_stay() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.pins["n1"].len(), 1);
    harness.delete();
    harness.wait(2);
    assert!(harness.objects.is_empty());
    assert!(harness.pins.values().all(BTreeSet::is_empty));
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_pin_of_ours_without_an_owner_goes_when_its_node_comes_back() {
    let mut harness = Harness::new(&["n1"]);
    let pins = [id("r.test/a:1", 1)].into();
    harness
        .held
        .insert("n2".into(), [("r.test/a:1".into(), 1)].into());
    harness.pins.insert("n2".into(), pins);
    harness.lead();
    harness.join("n2", &[]);
    harness.run();
    harness.wait(2);
    assert!(harness.pins["n2"].is_empty(), "no cache is needed for that");
    assert_eq!(harness.held("n2"), ["r.test/a:1"]);
}

#[test]
fn deleting_an_object_drops_pending_removals_and_emits_an_event() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["r.test/a:1", "r.test/b:1"]));
    harness.lead();
    harness.stuck.insert("r.test/a:1".into());
    harness.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    harness.delete();
    assert_eq!(harness.count("event RemovalDropped"), 1);
}

#[test]
fn a_deletion_seen_before_the_answer_about_its_finalizer_is_no_dropped_removal() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.watch_is_faster = true;
    harness.create(purged_at_the_end());
    harness.lead();
    harness.delete();
    assert!(harness.objects.is_empty() && harness.held("n1").is_empty());
    assert_eq!(harness.count("event RemovalDropped"), 0);
}

#[test]
fn images_that_a_deletion_leaves_are_told_once() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.watch_is_faster = true;
    harness.create(purged_at_the_end());
    harness.lead();
    harness.stuck.insert("r.test/a:1".into());
    harness.delete();
    harness.wait(610);
    assert!(harness.objects.is_empty());
    assert_eq!(harness.count("event ImagesLeft"), 1);
    assert_eq!(harness.count("event RemovalDropped"), 0);
}

#[test]
fn a_deletion_waits_until_the_runtime_reports_its_pins() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    harness.pins_unknown = true;
    harness.delete();
    let checks = harness.count("check");
    harness.wait(60);
    assert!(harness.objects.contains_key(&key()));
    assert!(
        harness.count("check") - checks < 10,
        "not asked again at once"
    );
    harness.pins_unknown = false;
    harness.wait(300);
    assert!(harness.pins["n1"].is_empty());
    assert!(!harness.objects.contains_key(&key()));
}

#[test]
fn an_edit_of_a_pinned_object_that_is_being_deleted_does_not_leave_its_pins() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(pinned(&["r.test/a:1"]));
    harness.lead();
    assert_eq!(harness.pins["n1"].len(), 1);
    harness.unreachable.insert("n1".into());
    harness.delete();
    harness.change(|spec| spec.refresh = None);
    harness.change(|spec| spec.service_account_name = Some("robot".into()));
    assert!(harness.objects[&key()].finalizer, "n1 has not answered");
    harness.unreachable.clear();
    harness.wait(60);
    assert!(harness.pins["n1"].is_empty());
    assert!(!harness.objects.contains_key(&key()));
}

#[test]
fn an_image_that_another_cache_desires_is_not_left_behind_by_a_deletion() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.create(purged_at_the_end());
    harness.create_as("other", images(&["r.test/a:1"]));
    harness.lead();
    harness.delete();
    harness.wait(60);
    assert!(!harness.objects.contains_key(&key()), "{:?}", harness.log);
    assert_eq!(harness.held("n1"), ["r.test/a:1"]);
    assert_eq!(harness.count("event ImagesLeft"), 0, "{:?}", harness.log);
}
