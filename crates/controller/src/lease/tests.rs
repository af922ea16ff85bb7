use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use kubefledged_contract::terms::HIGHEST_TERM;
use serde_json::{Value, json};

use super::*;

fn held(holder: &str, transitions: u64) -> Held {
    Held {
        holder: holder.to_owned(),
        transitions,
        renewed: "r".to_owned(),
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_free_lease_is_taken_in_a_higher_term() {
    assert_eq!(
        evaluate(None, "me", SECOND, 0),
        LeaseDecision::Take { term: 1 }
    );
    assert_eq!(
        evaluate(Some(&held("", 4)), "me", SECOND, 0),
        LeaseDecision::Take { term: 5 }
    );
    assert_eq!(
        evaluate(Some(&held("you", 4)), "me", DURATION, 0),
        LeaseDecision::Take { term: 5 }
    );
}

#[test]
fn a_living_leader_is_left_alone_and_our_own_lease_is_renewed_in_its_term() {
    assert_eq!(
        evaluate(Some(&held("you", 4)), "me", SECOND, 9),
        LeaseDecision::Stand
    );
    assert_eq!(
        evaluate(Some(&held("me", 4)), "me", SECOND, 4),
        LeaseDecision::Renew { term: 4 }
    );
}

#[test]
fn a_deleted_lease_does_not_lock_the_fleet_out() {
    assert_eq!(
        evaluate(None, "me", SECOND, 7),
        LeaseDecision::Take { term: 8 }
    );
    assert_eq!(
        evaluate(Some(&held("me", 1)), "me", SECOND, 7),
        LeaseDecision::Renew { term: 8 }
    );
}

#[test]
fn a_term_beyond_all_counting_does_not_overflow() {
    assert_eq!(
        evaluate(None, "me", SECOND, u64::MAX),
        LeaseDecision::Take { term: 1 }
    );
    let most = u64::try_from(i32::MAX).unwrap();
    for holder in ["", "me"] {
        let verdict = evaluate(Some(&held(holder, most)), "me", SECOND, 5);
        let term = match verdict {
            LeaseDecision::Take { term } | LeaseDecision::Renew { term } => term,
            LeaseDecision::Stand => 0,
        };
        assert_eq!(term, 6, "{holder}");
    }
    for seen in [HIGHEST_TERM, HIGHEST_TERM + 1, most] {
        assert_eq!(
            evaluate(None, "me", SECOND, seen),
            LeaseDecision::Take { term: 1 }
        );
    }
}

/// An API server that holds one Lease.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    version: Arc<AtomicU64>,
}

/// One process: its way to the server may be cut.
struct Process {
    cut: Arc<AtomicBool>,
    standing: watch::Receiver<Option<Term>>,
    events: mpsc::Receiver<Event>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    raise: watch::Sender<u64>,
    acts: TaskTracker,
    budgets: watch::Sender<Option<String>>,
}

impl Server {
    fn answer(&self, request: &http::Method, body: &[u8]) -> (u16, Value) {
        let mut lease = self.lease.lock().unwrap();
        match (request.as_str(), lease.as_ref()) {
            ("GET", Some(lease)) => return (200, lease.clone()),
            ("GET", None) => return (404, failure(404)),
            ("POST", Some(_)) => return (409, failure(409)),
            _ => {}
        }
        let mut written: Value = serde_json::from_slice(body).unwrap();
        let known = lease
            .as_ref()
            .map(|l| l["metadata"]["resourceVersion"].clone());
        if known.is_some_and(|known| known != written["metadata"]["resourceVersion"]) {
            return (409, failure(409));
        }
        let version = self.version.fetch_add(1, Ordering::SeqCst);
        written["metadata"]["resourceVersion"] = json!(version.to_string());
        *lease = Some(written.clone());
        (200, written)
    }

    fn start(&self, name: &str) -> Process {
        let cut = Arc::new(AtomicBool::new(false));
        let (server, is_cut) = (self.clone(), cut.clone());
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (server, is_cut) = (server.clone(), is_cut.clone());
            async move {
                if is_cut.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await?;
                let (code, value) = server.answer(&method, &body);
                let body = kube::client::Body::from(value.to_string().into_bytes());
                let response = http::Response::builder().status(code).body(body);
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        let (tell, budgets) = watch::channel(None);
        let candidate = Candidate {
            api: Api::namespaced(kube::Client::new(service, "ns"), "ns"),
            name: "lease".to_owned(),
            identity: name.to_owned(),
            budgets,
        };
        let (stand, standing) = watch::channel(None);
        let (sender, events) = mpsc::channel(64);
        let (raise, raised) = watch::channel(0);
        let acts = TaskTracker::new();
        let followers = Followers {
            holder: watch::channel(String::new()).0,
            standing: stand,
            events: sender,
            acts: acts.clone(),
        };
        let shutdown = CancellationToken::new();
        Process {
            cut,
            standing,
            events,
            running: tokio::spawn(run(candidate, followers, raised, shutdown.clone())),
            shutdown,
            raise,
            acts,
            budgets: tell,
        }
    }

    fn holder(&self) -> Value {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().unwrap()["spec"]["holderIdentity"].clone()
    }
}

impl Process {
    /// How long until it leads, and in which term.
    async fn leads(&mut self) -> (Duration, u64) {
        let start = Instant::now();
        let term = timeout(60 * SECOND, self.standing.wait_for(Option::is_some)).await;
        let term = term.expect("it never leads").unwrap();
        (start.elapsed(), term.as_ref().unwrap().number)
    }
}

fn failure(code: u16) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "no"})
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_when_its_lease_expires_as_the_standby_saw_it() {
    let server = Server::default();
    let mut first = server.start("first");
    assert_eq!(first.leads().await.1, 1);
    let mut second = server.start("second");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(second.standing.borrow().is_none());
    first.running.abort();
    let (took, term) = second.leads().await;
    assert!(took <= DURATION + WATCH, "{took:?}");
    assert_eq!(term, 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_hands_over_within_two_seconds() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    let mut second = server.start("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.shutdown.cancel();
    let (took, term) = second.leads().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(term, 2);
    first.running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_answers_stops_before_anybody_takes_its_place() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    let mut second = server.start("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let acting = first.standing.borrow().clone().unwrap().acting;
    first.cut.store(true, Ordering::SeqCst);
    let cut = Instant::now();
    acting.cancelled().await;
    assert!(cut.elapsed() <= RENEW_LIMIT, "{:?}", cut.elapsed());
    assert!(first.standing.borrow().is_none());
    assert!(second.standing.borrow().is_none(), "still nobody else");
    assert_eq!(second.leads().await.1, 2);
    // And it comes back as a standby, not as a second leader.
    first.cut.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(first.standing.borrow().is_none());
    assert!(second.standing.borrow().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_for_a_moment_changes_nothing() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    first.cut.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(4)).await;
    first.cut.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let received: Vec<Event> = std::iter::from_fn(|| first.events.try_recv().ok()).collect();
    assert!(
        matches!(&received[..], [Event::Leadership(Some(1)), ..]),
        "{received:?}"
    );
    assert!(first.standing.borrow().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_deleted_goes_on_above_its_own_term_and_above_the_pullers() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    for (raise, term) in [(0, 2), (7, 8)] {
        *server.lease.lock().unwrap() = None;
        first.raise.send_replace(raise);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(first.standing.borrow().as_ref().unwrap().number, term);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transition_count_that_somebody_wrote_heals_and_is_never_left_out() {
    for count in [i32::MAX, 1_000_000, -1, 0] {
        let server = Server::default();
        let mut first = server.start("first");
        first.leads().await;
        let edit = |count: Value| {
            let mut lease = server.lease.lock().unwrap();
            lease.as_mut().unwrap()["spec"]["leaseTransitions"] = count;
        };
        for count in [json!(count), Value::Null] {
            let before = first.standing.borrow().as_ref().unwrap().number;
            edit(count.clone());
            tokio::time::sleep(Duration::from_secs(5)).await;
            let led = first.standing.borrow().as_ref().unwrap().number;
            assert_eq!(led, before + 1, "{count}");
            let written = server.lease.lock().unwrap().clone().unwrap();
            assert_eq!(written["spec"]["leaseTransitions"], json!(led));
        }
        // Written while nobody leads.
        first.shutdown.cancel();
        first.running.await.unwrap();
        edit(json!(i32::MAX));
        let term = server.start("second").leads().await.1;
        assert!((1..1000).contains(&term), "{term}");
    }
}

#[tokio::test(start_paused = true)]
async fn pullers_that_claim_ever_higher_terms_begin_one_a_minute() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    for _ in 0..100 {
        let led = first.standing.borrow().as_ref().unwrap().number;
        first.raise.send_replace(led + 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let led = first.standing.borrow().as_ref().unwrap().number;
    assert!((6..=14).contains(&led), "{led}");
}

#[tokio::test(start_paused = true)]
async fn who_stood_by_and_takes_a_deleted_lease_does_not_give_the_same_term_again() {
    let server = Server::default();
    let mut first = server.start("first");
    assert_eq!(first.leads().await.1, 1);
    let mut second = server.start("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.cut.store(true, Ordering::SeqCst);
    *server.lease.lock().unwrap() = None;
    assert_eq!(second.leads().await.1, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_ends_before_the_lease_is_given_back() {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    let acting = first.standing.borrow().clone().unwrap().acting;
    let seen = server.clone();
    let act = first.acts.spawn(async move {
        acting.cancelled().await;
        tokio::time::sleep(SECOND / 2).await;
        seen.holder()
    });
    first.shutdown.cancel();
    assert_eq!(act.await.unwrap(), "first");
    first.running.await.unwrap();
    assert_eq!(server.holder(), "");
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_is_told_of_registries_before_it_leads_and_also_after_one_that_knew_nothing()
 {
    let server = Server::default();
    let mut first = server.start("first");
    first.leads().await;
    first.budgets.send_replace(Some("r.test=18/36".to_owned()));
    tokio::time::sleep(3 * SECOND).await;
    first.running.abort();
    for name in ["second", "third"] {
        let mut next = server.start(name);
        next.leads().await;
        let told = next.events.recv().await;
        let Some(Event::BudgetsKnown(known)) = told else {
            panic!("{told:?}")
        };
        assert_eq!(
            (&*known[0].0, known[0].1.limit, known.len()),
            ("r.test", 18, 1)
        );
        assert!(matches!(
            next.events.recv().await,
            Some(Event::Leadership(Some(_)))
        ));
        next.running.abort();
    }
}
