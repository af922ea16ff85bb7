use super::*;
use crate::registry::Registries;

fn holding(flavor: Flavor) -> Runtime {
    let registries = Registries::default();
    let mut runtime = Runtime::new(flavor, &registries.manifest(PAUSE));
    for name in ["r1.test/app:1", "r1.test/alias:1"] {
        runtime.store(name, &registries.manifest(name), 1);
    }
    runtime
}

#[test]
fn containerd_removes_an_image_with_all_its_names_even_in_use() {
    let mut runtime = holding(Flavor::Containerd16);
    let id = runtime.resolve("r1.test/app:1").unwrap();
    runtime.containers.push(id);
    runtime.remove("r1.test/app:1").unwrap();
    assert!(!runtime.holds("r1.test/alias:1"));
}

#[test]
fn crio_removes_a_name_and_keeps_the_data_of_the_last_one() {
    let mut runtime = holding(Flavor::Crio);
    let id = runtime.resolve("r1.test/app:1").unwrap();
    runtime.remove("r1.test/app:1").unwrap();
    assert!(runtime.holds("r1.test/alias:1"));
    runtime.remove("r1.test/alias:1").unwrap();
    assert!(runtime.holds(&id));
    assert!(runtime.remove(&format!("sha256:{id}")).is_err());
    runtime.remove(&id).unwrap();
    assert!(!runtime.holds(&id));
}

#[test]
fn a_layer_lies_on_the_disk_once_until_its_last_image_is_gone() {
    let registries = Registries::default();
    let mut runtime = Runtime::new(Flavor::Containerd16, &registries.manifest(PAUSE));
    let used = |runtime: &Runtime| runtime.layers().values().sum::<u64>();
    let empty = used(&runtime);
    let (app, other) = ("r2.test/team/db:1", "r2.test/team/db:2");
    runtime.store(app, &registries.manifest(app), 1);
    let one = used(&runtime);
    runtime.store(other, &registries.manifest(other), 1);
    assert_eq!((one, used(&runtime)), (empty + 25, empty + 45));
    runtime.remove(app).unwrap();
    assert_eq!(used(&runtime), empty + 25);
    runtime.remove(other).unwrap();
    assert_eq!(used(&runtime), empty);
}

#[test]
fn what_a_broken_off_pull_had_fetched_is_not_fetched_again() {
    let registries = Registries::default();
    let manifest = registries.manifest("r2.test/team/db:1");
    let mut runtime = Runtime::new(Flavor::Containerd16, &registries.manifest(PAUSE));
    runtime.break_off(&manifest, 50);
    assert_eq!(manifest.lacks(&runtime.layers()), 20);
    runtime.collect(0, 1);
    assert_eq!(manifest.lacks(&runtime.layers()), 25);
    let mut newer = Runtime::new(Flavor::Containerd2, &registries.manifest(PAUSE));
    newer.break_off(&manifest, 50);
    assert_eq!(manifest.lacks(&newer.layers()), 25);
}

#[test]
fn collection_takes_what_never_ran_first_and_nothing_in_use() {
    let mut runtime = holding(Flavor::Containerd16);
    let id = runtime.resolve("r1.test/app:1").unwrap();
    assert_eq!(runtime.collect(9, 1), [id]);
    assert!(runtime.holds(PAUSE));
}

#[test]
fn a_label_shows_as_a_pin_some_time_after_it_was_set_and_after_it_was_taken_off() {
    let mut runtime = holding(Flavor::Containerd2);
    let id = runtime.resolve("r1.test/app:1").unwrap();
    let shown = |runtime: &Runtime, now| runtime.inspect("r1.test/app:1", now).unwrap().pinned;
    runtime.label(&id, true, 10, 15).unwrap();
    assert!(!shown(&runtime, 14));
    assert!(shown(&runtime, 15));
    runtime.label(&id, false, 20, 25).unwrap();
    assert!(shown(&runtime, 24));
    assert!(!shown(&runtime, 25));
}

#[test]
fn a_mounted_image_is_removed_by_containerd_and_kept_by_crio() {
    for (flavor, kept) in [(Flavor::Containerd2, false), (Flavor::Crio, true)] {
        let mut runtime = holding(flavor);
        runtime.mount("r1.test/app:1");
        let id = runtime.resolve("r1.test/app:1").unwrap();
        let said = runtime.list_containers();
        assert!(said[1].image.iter().any(|said| said.ends_with(&id)));
        assert_eq!(runtime.collect(9, 1), Vec::<String>::new());
        assert_eq!(runtime.remove("r1.test/app:1").is_err(), kept);
        assert_eq!(runtime.holds("r1.test/app:1"), kept);
    }
}
