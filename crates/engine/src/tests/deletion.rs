//! Deletion, purge and what is left.

use super::*;

#[test]
fn deleting_the_object_leaves_its_images_on_the_nodes() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.objects.clear();
    world.tell(Event::CacheDeleted(key()));
    world.wait(1000);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    assert_eq!(world.count("remove"), 0);
}
