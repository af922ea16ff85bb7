//! Somebody who has taken over one node has the certificate of its puller, which is that of all pullers, and
//! answers the controller in its place: the node sends what is meant for its puller to a program of theirs.

use std::{
    path::PathBuf,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kubefledged_e2e::{
    Cluster, demo,
    fleet::{OURS, entry},
    leader::Leader,
};
use serde_json::{Value, json};

use super::{
    Memory, NAMESPACE, VICTIM, assert_unhurt, cluster, delete, ours, row, seconds_to_succeed, spec,
};

/// The node that somebody has taken over.
const TAKEN: &str = "2";
const PORT: &str = "17443";
/// Longer than the controller keeps a connection without calls.
const SETTLED: Duration = Duration::from_secs(8);
/// Longer than a node needs until its real puller is believed again.
const HEALED: Duration = Duration::from_secs(120);

/// A puller that lies, in the place of the real one until this is dropped.
struct Rogue<'a> {
    cluster: &'a Cluster,
    redirect: String,
    directory: PathBuf,
    running: Option<JoinHandle<String>>,
}

impl<'a> Rogue<'a> {
    fn new(cluster: &'a Cluster, lie: &str, seconds: u64) -> Self {
        let pods = cluster.pods("puller").unwrap();
        let pod = pods.iter().find(|pod| pod.node == TAKEN).unwrap();
        let name = format!("kubefledged-rogue-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let secret = cluster.secret("kubefledged-puller-tls").unwrap();
        for file in ["tls.crt", "tls.key", "ca.crt"] {
            std::fs::write(directory.join(file), entry(&secret, file).unwrap()).unwrap();
        }
        let (path, lie) = (directory.to_str().unwrap().to_owned(), lie.to_owned());
        let (seconds, uid) = (seconds.to_string(), pod.uid.clone());
        let running = thread::spawn(move || {
            let rogue = env!("CARGO_BIN_EXE_rogue");
            let args = ["node", TAKEN, rogue, &lie, PORT, &path, &uid, &seconds];
            Cluster::default().run(&args, "").unwrap()
        });
        let redirect = format!(
            "PREROUTING -p tcp -d {} --dport 7443 -j DNAT --to-destination 10.77.0.{TAKEN}:{PORT}",
            pod.address
        );
        let rogue = Self {
            cluster,
            redirect,
            directory,
            running: Some(running),
        };
        rogue.rule("-I");
        // Until the controller has closed the connections that it has to the real one.
        thread::sleep(SETTLED);
        rogue
    }

    fn rule(&self, action: &str) {
        let rule = format!("node {TAKEN} iptables -t nat {action} {}", self.redirect);
        let args: Vec<&str> = rule.split(' ').collect();
        self.cluster.run(&args, "").unwrap();
    }

    /// Waits for its end, and says how many calls it answered.
    fn ended(mut self) -> u64 {
        let said = self.running.take().unwrap().join().unwrap();
        said.trim().parse().unwrap()
    }
}

impl Drop for Rogue<'_> {
    fn drop(&mut self) {
        self.rule("-D");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn here(leader: &Cluster) -> Leader {
    leader.lease().unwrap().unwrap()
}

/// Asks for work on all nodes again and again: seconds that the sound node needs, the longest.
fn work(cluster: &Cluster, seconds: u64) -> f64 {
    let begin = Instant::now();
    let (mut worst, mut turn) = (0.0, 0);
    let all = spec(&[demo("api"), demo("worker")], None);
    cluster.create(NAMESPACE, "all", &all).unwrap();
    while begin.elapsed() < Duration::from_secs(seconds) {
        turn += 1;
        let token = format!("kubefledged.io/refresh-imagecache={turn}");
        let annotate = format!("annotate ic all -n {NAMESPACE} --overwrite {token}");
        cluster.kubectl(&annotate).unwrap();
        let name = format!("sound-{turn}");
        let sound = spec(&[demo("web")], Some(VICTIM));
        let took = seconds_to_succeed(cluster, &name, &sound, Duration::from_secs(30));
        worst = f64::max(worst, took);
        delete(cluster, &name);
        thread::sleep(Duration::from_secs(2));
    }
    worst
}

/// The node is believed again, and works.
fn assert_healed(cluster: &Cluster) {
    delete(cluster, "all");
    let taken = spec(&[demo("web"), demo("cache")], Some(TAKEN));
    seconds_to_succeed(cluster, "healed", &taken, HEALED);
    let held = cluster.images(TAKEN).unwrap();
    assert!(held.contains(&demo("cache")), "{held:?}");
}

#[test]
#[ignore = "make test-abuse"]
fn a_puller_that_claims_later_terms_moves_no_lease_and_locks_nobody_out() {
    for (lie, claim) in [("next", "one term later"), ("last", "the term 2147483646")] {
        let cluster = cluster();
        cluster.lead_away_from(TAKEN).unwrap();
        let (pods, before) = (ours(&cluster), here(&cluster));
        let rogue = Rogue::new(&cluster, lie, 55);
        let worst = work(&cluster, 40);
        let calls = rogue.ended();
        let after = here(&cluster);
        row(
            &format!("the puller of one node of three claims {claim}, for 40 s"),
            &format!(
                "{calls} false answers; leaseTransitions {} before and {} afterwards, the same leader; \
                 another node's ImageCache succeeds in {worst:.1} s at most",
                before.term, after.term,
            ),
        );
        assert!(calls > 5, "{calls}");
        assert_eq!(before, after);
        assert_healed(&cluster);
        assert_unhurt(&cluster, &pods);
    }
}

#[test]
#[ignore = "make test-abuse"]
fn answers_that_are_larger_than_their_questions_are_refused() {
    let cluster = cluster();
    cluster.lead_away_from(TAKEN).unwrap();
    let pods = ours(&cluster);
    let leader = here(&cluster);
    let pod = pods.iter().find(|pod| pod.name == leader.pod).unwrap();
    let memory = Memory::of(&cluster, pod, "kubefledged-con");
    let calm = memory.now();
    memory.forget_peak();
    let rogue = Rogue::new(&cluster, "rows", 45);
    let worst = work(&cluster, 30);
    let calls = rogue.ended();
    let peak = memory.peak();
    let status = cluster.object(NAMESPACE, "all").unwrap()["status"].clone();
    row(
        "the puller of one node answers with a million empty rows, or with 100,000 outcomes for two images, for 30 s",
        &format!(
            "{calls} false answers; the leader's memory {calm:.1} MiB before, {peak:.1} at most; \
             another node's ImageCache succeeds in {worst:.1} s at most; ready {}",
            status["ready"],
        ),
    );
    // After a false answer the controller waits longer and longer before it asks again.
    assert!(calls > 0, "{calls}");
    // One such answer would take a hundred.
    assert!(peak < calm + 20.0, "{calm} {peak}");
    assert_eq!(here(&cluster), leader);
    assert_ne!(
        status["ready"], "3/3",
        "nothing of it is believed: {status}"
    );
    assert_healed(&cluster);
    assert_unhurt(&cluster, &pods);
}

/// As by `kubectl edit`; the second time the leader ends before it has seen it.
#[test]
#[ignore = "make test-abuse"]
fn a_lease_that_counts_no_further_heals() {
    let cluster = cluster();
    let patch = json!({"spec": {"leaseTransitions": i32::MAX}}).to_string();
    let mut seen = Vec::new();
    for (turn, ends) in [false, true].into_iter().enumerate() {
        let leader = cluster.leader().unwrap();
        let args = "kubectl patch lease kubefledged-controller --type=merge -n";
        let mut args: Vec<&str> = args.split(' ').collect();
        args.extend([OURS, "-p", &patch]);
        cluster.run(&args, "").unwrap();
        if ends {
            let delete = format!("delete pod {} -n {OURS} --now --wait=false", leader.pod);
            cluster.kubectl(&delete).unwrap();
        }
        let begin = Instant::now();
        let name = format!("after-{turn}");
        let image = spec(&[demo(["web", "api"][turn])], None);
        let took = seconds_to_succeed(&cluster, &name, &image, Duration::from_secs(90));
        let sane = cluster.until(Duration::from_secs(60), "the Lease is sane", || {
            let lease = cluster.lease()?;
            Ok(lease.filter(|lease| lease.term < 2_000_000_000))
        });
        let sane = sane.unwrap();
        seen.push(format!(
            "{}after {:.0} s {} transitions; an ImageCache succeeds in {took:.1} s",
            if ends { "and with a new leader: " } else { "" },
            begin.elapsed().as_secs_f64(),
            sane.term,
        ));
    }
    row("a Lease with 2147483647 transitions", &seen.join("; "));
    let status: Value = cluster.object(NAMESPACE, "after-1").unwrap()["status"].clone();
    assert_eq!(status["ready"], "3/3", "{status}");
}
