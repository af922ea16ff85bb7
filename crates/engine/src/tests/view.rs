//! What can be seen inside.

use super::*;
use crate::view::{BatchKind, PairQuery, PairRow, PlanQuery, Step};

fn pairs(world: &World, change: impl FnOnce(&mut PairQuery)) -> Vec<PairRow> {
    let mut query = PairQuery {
        cache: key(),
        node: None,
        image: None,
        states: Vec::new(),
    };
    change(&mut query);
    let engine = world.engine.as_ref().unwrap();
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = engine
            .view_pairs(world.now, &query, after.as_ref())
            .unwrap();
        rows.extend(page.rows);
        after = page.next;
        if after.is_none() {
            return rows;
        }
    }
}

fn plan(world: &World, query: &PlanQuery) -> Vec<(String, String, Step)> {
    let engine = world.engine.as_ref().unwrap();
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = engine.explain(world.now, query, after.as_ref());
        rows.extend(
            page.rows
                .into_iter()
                .map(|row| (row.node.to_string(), row.reference.to_string(), row.step)),
        );
        after = page.next;
        if after.is_none() {
            return rows;
        }
    }
}

#[test]
fn every_pair_has_its_state_and_what_stands_behind_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.broken.insert("b:1".into(), "Unauthorized");
    world.slow.insert("c:1".into());
    world.create(images(&["a:1", "b:1", "c:1", "UPPER/x"]));
    world.lead();
    let rows = pairs(&world, |query| query.node = Some(node("n2")));
    let states: Vec<_> = rows
        .iter()
        .map(|row| (&*row.reference, row.state))
        .collect();
    assert_eq!(
        states,
        [
            ("a:1", CellState::Ready),
            ("b:1", CellState::Failed),
            ("c:1", CellState::Pulling),
            ("UPPER/x", CellState::Failed),
        ]
    );
    let (ready, failed, pulling) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((ready.size, &ready.plan), (1001, &Err(Skip::Present)));
    assert!(ready.since.is_some() && pulling.since.is_some());
    let (reason, message) = failed.failure.clone().unwrap();
    assert_eq!((&*reason, &*message), ("Unauthorized", "as planned"));
    assert_eq!(failed.attempts, 1);
    assert!(matches!(failed.plan, Err(Skip::BackOff(_))));
    // It fails again: since the first time.
    world.wait(60);
    let again = pairs(&world, |query| query.states = vec![CellState::Failed]);
    let names: Vec<_> = again
        .iter()
        .map(|row| (row.node.to_string(), &*row.reference))
        .collect();
    assert_eq!(
        names,
        [
            ("n1".to_owned(), "b:1"),
            ("n1".to_owned(), "UPPER/x"),
            ("n2".to_owned(), "b:1"),
            ("n2".to_owned(), "UPPER/x"),
        ]
    );
    assert!(again[2].attempts > 1);
    assert_eq!(again[2].since, failed.since);
    let one = pairs(&world, |query| query.image = Some("a:1".into()));
    assert_eq!(one.len(), 2);
    let now = world.now;
    let batches = world
        .engine()
        .view_batches(now, Some(&node("n1")), None, None, 10);
    assert_eq!(batches.rows.len(), 1);
    let batch = &batches.rows[0];
    assert_eq!(
        (batch.kind, batch.cache.as_ref()),
        (BatchKind::Pull, Some(&key()))
    );
    assert_eq!((batch.images, batch.age.as_secs()), ((3, 1), 60));
}

#[test]
fn pages_hold_every_pair_once_however_many_there_are() {
    let names: Vec<String> = (0..130).map(|n| format!("n{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    let wanted: Vec<String> = (0..30).map(|image| format!("a:{image}")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    world.create(images(&wanted));
    world.lead();
    let rows = pairs(&world, |_| {});
    let seen: BTreeSet<_> = rows
        .iter()
        .map(|row| (row.node.clone(), row.reference.clone()))
        .collect();
    assert_eq!((rows.len(), seen.len()), (130 * 30, 130 * 30));
    let engine = world.engine.as_ref().unwrap();
    let query = PairQuery {
        cache: key(),
        node: None,
        image: None,
        states: vec![CellState::Failed],
    };
    let page = engine.view_pairs(world.now, &query, None).unwrap();
    assert!(
        page.rows.is_empty() && page.next.is_some(),
        "a page is bounded though it is empty"
    );
    let steps = plan(
        &world,
        &PlanQuery {
            all: true,
            ..PlanQuery::default()
        },
    );
    assert_eq!(steps.len(), 130 * 30);
    assert_eq!(plan(&world, &PlanQuery::default()), []);
}

#[test]
fn caches_come_in_pages_and_by_namespace() {
    let mut world = World::new(&["n1"]);
    for name in ["a", "b", "c"] {
        world.create_as(name, images(&["i:1"]));
    }
    world.lead();
    let engine = world.engine.as_ref().unwrap();
    let first = engine.view_caches(Some("ns"), None, 2);
    assert_eq!(first.rows.len(), 2);
    let rest = engine.view_caches(Some("ns"), first.next.as_ref(), 2);
    assert_eq!((rest.rows.len(), rest.next), (1, None));
    assert_eq!(rest.rows[0].nodes.ready, 1);
    assert!(engine.view_caches(Some("other"), None, 2).rows.is_empty());
}

#[test]
fn what_a_purge_leaves_behind_is_named_with_its_reason() {
    let mut world = World::new(&["n1"]);
    world.create(images(&["a:1", "b:1"]));
    world.lead();
    world.in_use.insert("a:1".into());
    world.apply(|object| object.purge = Some("now".into()));
    world.run();
    let steps = plan(&world, &PlanQuery::default());
    let [(_, reference, Step::Owe(Err(Stays::Kept(why, _))))] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!((&**reference, &**why), ("a:1", "InUse"));
    let now = world.now;
    let detail = world.engine().view_cache(now, &key()).unwrap();
    assert!(detail.purged && detail.owed.len() == 1);
    assert_eq!(detail.owed[0].nodes, [0, 1, 0]);
    assert_eq!(detail.owed[0].reason.as_deref(), Some("InUse"));
}

#[test]
fn a_node_tells_why_it_gets_nothing_and_which_image_it_misses() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("b:1".into(), "ImageNotFound");
    world.create(images(&["a:1", "b:1"]));
    world.lead();
    let now = world.now;
    let detail = world.engine().view_node(now, &node("n1")).unwrap();
    assert_eq!(detail.eligibility, Ok(()));
    assert!(detail.looked.is_some() && detail.silent.is_none());
    let cache = &detail.caches[0];
    assert_eq!((cache.state, cache.images), (CellState::Failed, [2, 1, 1]));
    let (reason, _) = cache.worst.as_ref().unwrap().failure.clone().unwrap();
    assert_eq!(&*reason, "ImageNotFound");
    let mut cordoned = facts(&[]);
    cordoned.unschedulable = true;
    world.tell(Event::NodeApplied(node("n1"), cordoned));
    world.run();
    let detail = world.engine().view_node(now, &node("n1")).unwrap();
    assert_eq!(detail.eligibility, Err(Ineligible::Cordoned));
    assert_eq!(detail.caches[0].state, CellState::Out);
    assert!(world.engine().view_node(now, &node("n2")).is_none());
}
