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
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1"]));
    world.lead();
    world.delete();
    world.wait(1000);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    assert_eq!((world.count("remove"), world.count("finalizer")), (0, 0));
}

#[test]
fn purge_removes_the_images_before_the_object_goes() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(purged_at_the_end());
    world.lead();
    assert_eq!(world.asked()[0], "finalizer a true");
    world.delete();
    assert!(world.held("n1").is_empty() && world.held("n2").is_empty());
    assert!(world.objects.is_empty());
    let asked = world.asked();
    assert_eq!(asked.last().unwrap(), "finalizer a false", "{asked:?}");
}

#[test]
fn after_its_deadline_a_deletion_ends_and_an_event_names_the_nodes_that_keep_images() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(purged_at_the_end());
    world.lead();
    world.stuck.insert("r.test/a:1".into());
    world.delete();
    assert_eq!(world.reported(), ("Processing", "ImageCacheDelete"));
    world.wait(590);
    assert_eq!(world.objects.len(), 1);
    world.wait(20);
    assert!(world.objects.is_empty());
    let left = world.log.iter().find(|l| l.starts_with("event ImagesLeft"));
    assert!(left.is_some_and(|line| line.contains("n1, n2")), "{left:?}");
}

#[test]
fn a_deletion_waits_for_no_node_whose_puller_does_not_answer() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(purged_at_the_end());
    world.lead();
    world.unreachable.insert("n2".into());
    world.delete();
    world.wait(150);
    assert!(world.objects.is_empty());
    assert!(world.held("n1").is_empty());
}

#[test]
fn setting_retain_frees_an_object_that_is_being_deleted() {
    let mut world = World::new(&["n1"]);
    world.create(purged_at_the_end());
    world.lead();
    world.stuck.insert("r.test/a:1".into());
    world.delete();
    assert_eq!(world.objects.len(), 1);
    world.change(|spec| spec.deletion_policy = Some(DeletionPolicy::Retain));
    world.wait(1);
    assert!(world.objects.is_empty());
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn suspend_does_not_hold_a_deletion() {
    let mut world = World::new(&["n1"]);
    world.create(purged_at_the_end());
    world.lead();
    world.change(|spec| spec.suspend = true);
    world.delete();
    assert!(world.objects.is_empty() && world.held("n1").is_empty());
}

#[test]
fn an_object_is_deleted_even_if_its_status_cannot_be_written() {
    let mut world = World::new(&["n1"]);
    world.create(purged_at_the_end());
    world.lead();
    world.writes_fail = true;
    world.delete();
    world.wait(5);
    assert!(world.objects.is_empty() && world.held("n1").is_empty());
}

#[test]
fn deleting_with_purge_keeps_images_that_another_cache_desires() {
    let mut world = World::new(&["n1"]);
    world.create(purged_at_the_end());
    world.create_as("b", images(&["r.test/a:1"]));
    world.lead();
    world.delete();
    assert!(!world.objects.contains_key(&key()));
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn the_pins_of_a_deleted_object_go_and_its_images_stay() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(pinned(&["r.test/a:1"]));
    world.lead();
    assert_eq!(world.pins["n1"].len(), 1);
    world.delete();
    world.wait(2);
    assert!(world.objects.is_empty());
    assert!(world.pins.values().all(BTreeSet::is_empty));
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn a_pin_of_ours_without_an_owner_goes_when_its_node_comes_back() {
    let mut world = World::new(&["n1"]);
    let pins = [id("r.test/a:1", 1)].into();
    world
        .held
        .insert("n2".into(), [("r.test/a:1".into(), 1)].into());
    world.pins.insert("n2".into(), pins);
    world.lead();
    world.join("n2", &[]);
    world.run();
    world.wait(2);
    assert!(world.pins["n2"].is_empty(), "no cache is needed for that");
    assert_eq!(world.held("n2"), ["r.test/a:1"]);
}

#[test]
fn deleting_an_object_drops_pending_removals_and_emits_an_event() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["r.test/a:1", "r.test/b:1"]));
    world.lead();
    world.stuck.insert("r.test/a:1".into());
    world.change(|spec| spec.cache_spec[0].images = vec!["r.test/b:1".into()]);
    world.delete();
    assert_eq!(world.count("event RemovalDropped"), 1);
}

#[test]
fn a_deletion_waits_until_the_runtime_reports_its_pins() {
    let mut world = World::new(&["n1"]);
    world.create(pinned(&["r.test/a:1"]));
    world.lead();
    world.pins_unknown = true;
    world.delete();
    let checks = world.count("check");
    world.wait(60);
    assert!(world.objects.contains_key(&key()));
    assert!(
        world.count("check") - checks < 10,
        "not asked again at once"
    );
    world.pins_unknown = false;
    world.wait(300);
    assert!(world.pins["n1"].is_empty());
    assert!(!world.objects.contains_key(&key()));
}

#[test]
fn an_edit_of_a_pinned_object_that_is_being_deleted_does_not_leave_its_pins() {
    let mut world = World::new(&["n1"]);
    world.create(pinned(&["r.test/a:1"]));
    world.lead();
    assert_eq!(world.pins["n1"].len(), 1);
    world.unreachable.insert("n1".into());
    world.delete();
    world.change(|spec| spec.refresh = None);
    world.change(|spec| spec.service_account_name = Some("robot".into()));
    assert!(world.objects[&key()].finalizer, "n1 has not answered");
    world.unreachable.clear();
    world.wait(60);
    assert!(world.pins["n1"].is_empty());
    assert!(!world.objects.contains_key(&key()));
}
