//! What can be seen inside.

use super::*;
use crate::view::{BatchKind, PairQuery, PairRow, PlanQuery, PlanStep};

fn pairs(harness: &Harness, change: impl FnOnce(&mut PairQuery)) -> Vec<PairRow> {
    let mut query = PairQuery {
        cache: key(),
        node: None,
        image: None,
        states: Vec::new(),
    };
    change(&mut query);
    let engine = harness.engine.as_ref().unwrap();
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = engine
            .view_pairs(harness.now, &query, after.as_ref())
            .unwrap();
        rows.extend(page.rows);
        after = page.next;
        if after.is_none() {
            return rows;
        }
    }
}

fn plan(harness: &Harness, query: &PlanQuery) -> Vec<(String, String, PlanStep)> {
    let engine = harness.engine.as_ref().unwrap();
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = engine.explain(harness.now, query, after.as_ref());
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
fn every_pair_shows_its_state_and_the_cause() {
    let mut harness = Harness::new(&["n1", "n2"]);
    harness.broken.insert("b:1".into(), "Unauthorized");
    harness.slow.insert("c:1".into());
    harness.create(images(&["a:1", "b:1", "c:1", "UPPER/x"]));
    harness.lead();
    let rows = pairs(&harness, |query| query.node = Some(node("n2")));
    let states: Vec<_> = rows
        .iter()
        .map(|row| (&*row.reference, row.state))
        .collect();
    assert_eq!(
        states,
        [
            ("a:1", PullState::Ready),
            ("b:1", PullState::Failed),
            ("c:1", PullState::Pulling),
            ("UPPER/x", PullState::Failed),
        ]
    );
    let (ready, failed, pulling) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((ready.size, &ready.plan), (1001, &Err(PullBlock::Present)));
    assert!(ready.since.is_some() && pulling.since.is_some());
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!(
        (&*failure.reason, &*failure.message),
        ("Unauthorized", "as planned")
    );
    assert_eq!(failed.attempts, 1);
    assert!(matches!(failed.plan, Err(PullBlock::BackOff(_))));
    // It fails again: since the first time.
    harness.wait(60);
    let again = pairs(&harness, |query| query.states = vec![PullState::Failed]);
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
    let one = pairs(&harness, |query| query.image = Some("a:1".into()));
    assert_eq!(one.len(), 2);
    let now = harness.now;
    let batches = harness
        .engine()
        .view_batches(now, Some(&node("n1")), None, None, 10);
    assert_eq!(batches.rows.len(), 1);
    let batch = &batches.rows[0];
    assert_eq!(
        (batch.kind, batch.caches.clone()),
        (BatchKind::Pull, BTreeSet::from([key()]))
    );
    assert_eq!((batch.images, batch.open, batch.age.as_secs()), (3, 1, 60));
}

#[test]
fn pages_show_every_pair_once() {
    let names: Vec<String> = (0..130).map(|n| format!("n{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::new(&names);
    let wanted: Vec<String> = (0..30).map(|image| format!("a:{image}")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    harness.create(images(&wanted));
    harness.lead();
    let rows = pairs(&harness, |_| {});
    let distinct: BTreeSet<_> = rows
        .iter()
        .map(|row| (row.node.clone(), row.reference.clone()))
        .collect();
    assert_eq!((rows.len(), distinct.len()), (130 * 30, 130 * 30));
    let engine = harness.engine.as_ref().unwrap();
    let query = PairQuery {
        cache: key(),
        node: None,
        image: None,
        states: vec![PullState::Failed],
    };
    let page = engine.view_pairs(harness.now, &query, None).unwrap();
    assert!(
        page.rows.is_empty() && page.next.is_some(),
        "a page is bounded though it is empty"
    );
    let steps = plan(
        &harness,
        &PlanQuery {
            all: true,
            ..PlanQuery::default()
        },
    );
    assert_eq!(steps.len(), 130 * 30);
    assert_eq!(plan(&harness, &PlanQuery::default()), []);
}

#[test]
fn caches_are_shown_in_pages_and_by_namespace() {
    let mut harness = Harness::new(&["n1"]);
    for name in ["a", "b", "c"] {
        harness.create_as(name, images(&["i:1"]));
    }
    harness.lead();
    let engine = harness.engine.as_ref().unwrap();
    let first = engine.view_caches(Some("ns"), None, 2);
    assert_eq!(first.rows.len(), 2);
    let rest = engine.view_caches(Some("ns"), first.next.as_ref(), 2);
    assert_eq!((rest.rows.len(), rest.next), (1, None));
    assert_eq!(rest.rows[0].nodes.ready, 1);
    assert!(engine.view_caches(Some("other"), None, 2).rows.is_empty());
}

#[test]
fn an_image_that_a_purge_leaves_is_shown_with_its_reason() {
    let mut harness = Harness::new(&["n1"]);
    harness.create(images(&["a:1", "b:1"]));
    harness.lead();
    harness.in_use.insert("a:1".into());
    harness.apply(|object| object.purge = Some("now".into()));
    harness.run();
    let steps = plan(&harness, &PlanQuery::default());
    let [(_, reference, PlanStep::Remove(Err(RemovalBlock::Kept(why, _))))] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!((&**reference, *why), ("a:1", KeptReason::InUse));
    let now = harness.now;
    let detail = harness.engine().view_cache(now, &key()).unwrap();
    assert!(detail.purged && detail.pending.len() == 1);
    let pending = &detail.pending[0];
    assert_eq!((pending.removed, pending.kept, pending.failed), (0, 1, 0));
    assert_eq!(pending.reason.as_deref(), Some("InUse"));
}

#[test]
fn a_node_shows_why_it_is_not_eligible_and_which_image_it_lacks() {
    let mut harness = Harness::new(&["n1"]);
    harness.broken.insert("b:1".into(), "ImageNotFound");
    harness.create(images(&["a:1", "b:1"]));
    harness.lead();
    let now = harness.now;
    let detail = harness.engine().view_node(now, &node("n1")).unwrap();
    assert_eq!(detail.eligibility, Ok(()));
    assert!(detail.checked.is_some() && detail.silent.is_none());
    let cache = &detail.caches[0];
    assert_eq!(cache.state, PullState::Failed);
    assert_eq!((cache.desired, cache.present, cache.failed), (2, 1, 1));
    assert_eq!(
        (cache.bytes, detail.bytes),
        (1024, 1024),
        "a:1, in whole KiB"
    );
    let failure = cache.worst.as_ref().unwrap().failure.clone().unwrap();
    assert_eq!(&*failure.reason, "ImageNotFound");
    let mut cordoned = facts(&[]);
    cordoned.unschedulable = true;
    harness.handle(Event::NodeApplied(node("n1"), cordoned));
    harness.run();
    let detail = harness.engine().view_node(now, &node("n1")).unwrap();
    assert_eq!(detail.eligibility, Err(Ineligible::Cordoned));
    assert_eq!(detail.caches[0].state, PullState::NotDesired);
    assert!(harness.engine().view_node(now, &node("n2")).is_none());
}
