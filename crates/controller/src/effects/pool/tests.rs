use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::{permits::Waiting, *};

/// Names beginning with `dead` never answer; the rest answer after 10 ms, and the connection is the
/// number of the dial.
#[derive(Clone, Default)]
struct Net {
    dials: Arc<AtomicU32>,
    open: Arc<AtomicUsize>,
    dialing: Arc<AtomicUsize>,
    most_dialing: Arc<AtomicUsize>,
}

struct Wire {
    number: u32,
    ended: AtomicBool,
    open: Arc<AtomicUsize>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dial for Net {
    type Key = String;
    type Connection = Arc<Wire>;

    async fn dial(&self, key: &String) -> Result<Arc<Wire>, Arc<str>> {
        let _dialing = Waiting::begin(&self.dialing);
        let now = self.dialing.load(Ordering::SeqCst);
        self.most_dialing.fetch_max(now, Ordering::SeqCst);
        if key.starts_with("dead") {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!key.starts_with("breaking"), "this dial breaks");
        if key.starts_with("refusing") {
            return Err("refused".into());
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Wire {
            number: self.dials.fetch_add(1, Ordering::SeqCst),
            open: self.open.clone(),
            ended: AtomicBool::new(false),
        }))
    }

    fn has_ended(wire: &Arc<Wire>) -> bool {
        wire.ended.load(Ordering::SeqCst)
    }
}

fn pool(dials: usize, connections: usize) -> (Pool<Net>, Net) {
    let net = Net::default();
    (Pool::new(net.clone(), dials, connections), net)
}

fn key(name: &str) -> String {
    name.to_owned()
}

#[tokio::test(start_paused = true)]
async fn all_who_need_a_node_share_one_connection() {
    let (pool, net) = pool(4, 4);
    let wanted = key("a");
    let (a, b) = tokio::join!(
        pool.borrow(&wanted, Line::Back),
        pool.borrow(&wanted, Line::Back)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.connection().number, b.connection().number), (0, 0));
    assert_eq!(net.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_outlives_its_last_use_by_five_seconds() {
    let (pool, net) = pool(4, 4);
    drop(pool.borrow(&key("a"), Line::Back).await.unwrap());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let again = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(again.connection().number, 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(net.open.load(Ordering::SeqCst), 1, "in use is not idle");
    drop(again);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(net.open.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_for_the_next_call_and_soon_makes_room_for_a_node_that_waits() {
    let (pool, net) = pool(4, 1);
    drop(pool.borrow(&key("a"), Line::Back).await.unwrap());
    let (start, wanted) = (Instant::now(), key("b"));
    let mut b = std::pin::pin!(pool.borrow(&wanted, Line::Back));
    assert!(timeout(Duration::from_millis(20), &mut b).await.is_err());
    let again = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(again.connection().number, 0, "not dialed anew");
    drop(again);
    let b = b.await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(200));
    assert_eq!(net.open.load(Ordering::SeqCst), 1);
    // And one that becomes idle while somebody waits.
    let wanted = key("c");
    let mut c = std::pin::pin!(pool.borrow(&wanted, Line::Back));
    assert!(timeout(Duration::from_millis(500), &mut c).await.is_err());
    drop(b);
    assert_eq!(c.await.unwrap().connection().number, 2);
    assert_eq!(net.open.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_pull_for_long_do_not_keep_a_new_one_waiting() {
    let (pool, net) = pool(64, 512);
    let mut pulling = Vec::new();
    for n in 0..512 {
        pulling.push(pool.borrow(&format!("n{n}"), Line::Back).await.unwrap());
    }
    let start = Instant::now();
    let new = pool.borrow(&key("new"), Line::Back).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    drop(new);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = Instant::now();
    let new = pool.borrow(&key("newer"), Line::Back).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_millis(50),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(net.open.load(Ordering::SeqCst), 513);
    drop((new, pulling));
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(net.open.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn open_connections_are_bounded_however_long_they_are_in_use() {
    let (pool, net) = pool(4, 2);
    let mut pulling = Vec::new();
    for n in 0..4 {
        pulling.push(pool.borrow(&format!("n{n}"), Line::Back).await.unwrap());
    }
    let wanted = key("one more");
    let mut more = std::pin::pin!(pool.borrow(&wanted, Line::Back));
    assert!(timeout(Duration::from_secs(60), &mut more).await.is_err());
    assert_eq!(net.open.load(Ordering::SeqCst), 4);
    pulling.pop();
    assert!(more.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn five_hundred_dead_nodes_do_not_hold_up_a_living_one() {
    let (pool, net) = pool(64, 512);
    let mut dead = tokio::task::JoinSet::new();
    for n in 0..500 {
        let pool = pool.clone();
        dead.spawn(async move { pool.borrow(&format!("dead{n}"), Line::Back).await.err() });
    }
    tokio::task::yield_now().await;
    // One that comes after all of them in the first moment, and one when they are known.
    for name in ["early", "late"] {
        let start = Instant::now();
        let _borrowed = pool.borrow(&key(name), Line::Back).await.unwrap();
        let took = start.elapsed();
        let limit = if name == "early" { 2500 } else { 50 };
        assert!(took < Duration::from_millis(limit), "{name} {took:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    while let Some(ended) = dead.join_next().await {
        let message = ended.unwrap().unwrap();
        assert_eq!(&*message, "no connection within 2s");
    }
    assert!(net.most_dialing.load(Ordering::SeqCst) <= 64);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_failed_is_tried_anew_by_whoever_comes_next() {
    let (pool, net) = pool(2, 1);
    for _ in 0..3 {
        let refused = pool
            .borrow(&key("refusing"), Line::Back)
            .await
            .err()
            .unwrap();
        assert_eq!(&*refused, "refused");
    }
    // The permit came back each time.
    let _a = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(net.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_broke_is_tried_anew_by_whoever_comes_next() {
    let (pool, _) = pool(2, 1);
    for _ in 0..3 {
        let broken = pool.borrow(&key("breaking"), Line::Back).await.err();
        assert_eq!(&*broken.unwrap(), "the dial was cut short");
        assert!(pool.0.slots().is_empty());
    }
    let _a = pool.borrow(&key("a"), Line::Back).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_ended_is_used_by_nobody_new() {
    let (pool, _) = pool(2, 4);
    let a = pool.borrow(&key("a"), Line::Back).await.unwrap();
    a.connection().ended.store(true, Ordering::SeqCst);
    let b = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(b.connection().number, 1);
}

#[tokio::test(start_paused = true)]
async fn a_discarded_connection_is_used_by_nobody_new() {
    let (pool, net) = pool(2, 4);
    let a = pool.borrow(&key("a"), Line::Back).await.unwrap();
    pool.discard(&a);
    let b = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(b.connection().number, 1);
    assert_eq!(net.open.load(Ordering::SeqCst), 2);
    drop(a);
    // The old one is gone, and giving it back took nothing from the new one.
    assert_eq!(net.open.load(Ordering::SeqCst), 1);
    assert_eq!(
        pool.borrow(&key("a"), Line::Back)
            .await
            .unwrap()
            .connection()
            .number,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_next_call_is_known_outlives_others_that_wait_but_one_in_eight_does_not()
{
    let (pool, net) = pool(4, 8);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for name in names {
        // Also one that is still in use counts.
        let borrowed = pool.borrow(&key(name), Line::Back).await.unwrap();
        pool.keep(&key(name));
        pool.keep(&key(name));
        drop(borrowed);
    }
    pool.keep(&key("never opened"));
    let start = Instant::now();
    let _other = pool.borrow(&key("i"), Line::Back).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(500));
    for (number, name) in (0..7).zip(names) {
        let again = pool.borrow(&key(name), Line::Back).await.unwrap();
        assert_eq!(again.connection().number, number, "{name}");
    }
    // They were used: now they make room as others do.
    let start = Instant::now();
    let _more = [
        pool.borrow(&key("j"), Line::Back).await.unwrap(),
        pool.borrow(&key("k"), Line::Back).await.unwrap(),
    ];
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(net.dials.load(Ordering::SeqCst), 11);
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_kept_hold_up_nobody_and_are_closed_after_five_seconds() {
    let (pool, net) = pool(4, 4);
    for name in ["a", "b"] {
        drop(pool.borrow(&key(name), Line::Back).await.unwrap());
        pool.keep(&key(name));
    }
    let start = Instant::now();
    for number in 0..10 {
        drop(
            pool.borrow(&format!("other{number}"), Line::Back)
                .await
                .unwrap(),
        );
    }
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let again = pool.borrow(&key("a"), Line::Back).await.unwrap();
    assert_eq!(again.connection().number, 0);
    drop(again);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(net.open.load(Ordering::SeqCst), 0);
}

/// Checks of nodes n0 to n399, of which most wait.
async fn four_hundred_checks(pool: &Pool<Net>) -> tokio::task::JoinSet<()> {
    let mut checks = tokio::task::JoinSet::new();
    for number in 0..400 {
        let pool = pool.clone();
        checks.spawn(async move {
            let borrowed = pool.borrow(&format!("n{number}"), Line::Back).await;
            drop(borrowed.unwrap());
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    checks
}

#[tokio::test(start_paused = true)]
async fn a_pull_waits_behind_few_of_hundreds_of_checks() {
    let (pool, net) = pool(4, 4);
    let mut checks = four_hundred_checks(&pool).await;
    drop(pool.borrow(&key("pull"), Line::Front).await.unwrap());
    let before = net.dials.load(Ordering::SeqCst);
    assert!(before < 20, "{before} nodes came first");
    // Nor do pulls keep checks waiting for ever.
    while checks.join_next().await.is_some() {}
    assert_eq!(net.dials.load(Ordering::SeqCst), 401);
}

#[tokio::test(start_paused = true)]
async fn a_pull_does_not_wait_in_the_line_of_its_own_nodes_check() {
    let (pool, net) = pool(4, 4);
    let mut checks = four_hundred_checks(&pool).await;
    let last = key("n399");
    assert!(matches!(pool.0.slots().get(&last), Some(Slot::Dialing(..))));
    drop(pool.borrow(&last, Line::Front).await.unwrap());
    let before = net.dials.load(Ordering::SeqCst);
    assert!(before < 20, "{before} nodes came first");
    while checks.join_next().await.is_some() {}
    assert_eq!(net.dials.load(Ordering::SeqCst), 400);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_waits_for_whoever_had_it_dialed() {
    let (pool, net) = pool(4, 1);
    let wanted = key("a");
    let opening = pool.0.find(&wanted, Line::Back).err().unwrap();
    opening.await.unwrap();
    let (start, other) = (Instant::now(), key("b"));
    let mut b = std::pin::pin!(pool.borrow(&other, Line::Back));
    assert!(timeout(Duration::from_millis(500), &mut b).await.is_err());
    let a = pool.borrow(&wanted, Line::Back).await.unwrap();
    assert_eq!(a.connection().number, 0, "not dialed anew");
    drop(a);
    drop(b.await.unwrap());
    assert!(start.elapsed() < Duration::from_secs(1));
    // One that nobody takes makes room soon, too.
    let opening = pool.0.find(&key("c"), Line::Back).err().unwrap();
    opening.await.unwrap();
    let start = Instant::now();
    drop(pool.borrow(&wanted, Line::Back).await.unwrap());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(net.dials.load(Ordering::SeqCst), 4);
}

#[test]
fn thousands_of_waiting_dials_take_little_memory() {
    fn size<F>(_: impl FnOnce(Arc<Inner<Net>>, String, Place) -> F) -> usize {
        size_of::<F>()
    }
    let open = size(Inner::open);
    assert!(open <= 512, "{open} bytes");
}
