//! Two controllers, of which one leads; whatever becomes of it, a wave of pulls that runs ends as if
//! nothing had been, and each image is pulled once per node. Every test leaves two controllers ready.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use kubefledged_e2e::{Cluster, demo, faulty, fleet::Pod, leader::Leader, registry::AccessLog};
use serde_json::{Value, json};

const IMAGES: [&str; 4] = ["web", "api", "worker", "cache"];

/// A wave that is under way on all nodes.
struct Wave {
    cluster: Cluster,
    namespace: &'static str,
    leader: Leader,
    log: AccessLog,
    began: Value,
    controllers: Vec<Pod>,
}

impl Wave {
    /// At `slow` KiB per second and blob: of each image some 200 KiB, two images at a time. What they
    /// have in common is there already, by an image that is none of the wave.
    fn begin(namespace: &'static str, slow: u32) -> Self {
        let cluster = Cluster::default();
        let leader = cluster.leader().unwrap();
        cluster.clean(namespace).unwrap();
        let spec = json!({"cacheSpec": [{"images": [demo("extra")]}]});
        cluster.create(namespace, "base", &spec).unwrap();
        cluster
            .ended(namespace, "base", "ImageCacheCreate")
            .unwrap();
        let fault = format!("slow={slow}");
        cluster.run(&["fault", &fault, "only=blobs"], "").unwrap();
        let log = cluster.access_log().unwrap();
        let spec = json!({"cacheSpec": [{"images": IMAGES.map(faulty)}]});
        cluster.create(namespace, "wave", &spec).unwrap();
        let nodes = cluster.nodes().unwrap().len();
        let began = cluster.until(Duration::from_secs(20), "all nodes pull", || {
            let status = cluster.object(namespace, "wave")?["status"].clone();
            Ok((status["nodes"]["pulling"] == nodes).then_some(status))
        });
        Self {
            controllers: cluster.pods("controller").unwrap(),
            began: began.unwrap(),
            cluster,
            namespace,
            leader,
            log,
        }
    }

    fn is_under_way(&self) -> bool {
        let status = &self.cluster.object(self.namespace, "wave").unwrap()["status"];
        status["status"] == "Processing"
    }

    /// As if one controller had led all the time.
    fn ends_well(&self) {
        let cluster = &self.cluster;
        let status = cluster.ended(self.namespace, "wave", "ImageCacheCreate");
        let _ = cluster.run(&["fault", "off"], "");
        let status = status.unwrap();
        assert_eq!(status["status"], "Succeeded", "{status}");
        assert_eq!(status["startTime"], self.began["startTime"]);
        let nodes = cluster.nodes().unwrap();
        for image in IMAGES {
            let pulls = self.log.pulls(image).unwrap();
            assert_eq!(pulls, nodes.len(), "{image}: once per node");
        }
        for node in &nodes {
            assert_eq!(cluster.demo_images(node).unwrap().len(), IMAGES.len() + 1);
        }
        let told = cluster.until(Duration::from_secs(10), "begin and end are told", || {
            let messages = cluster.events(self.namespace, "wave")?;
            Ok((messages.len() >= 2).then_some(messages))
        });
        assert_eq!(told.unwrap().len(), 2, "each once");
        cluster.ready("controller", 2).unwrap();
    }

    /// Who leads now is another than at the begin; within so long.
    fn succeeded_within(&self, limit: Duration) -> Leader {
        let (took, new) = self.cluster.succeeded(&self.leader).unwrap();
        println!("{}: taken over in {took:?}", self.namespace);
        assert!(took < limit, "{took:?}");
        assert!(new.term > self.leader.term);
        assert!(self.is_under_way(), "it happened in the middle of the wave");
        new
    }

    /// When a pod logged for the last time that it stands by, or that it leads in this term.
    fn logged(&self, pod: &str, message: &str, term: Option<u64>) -> Option<String> {
        let log = self.cluster.pod_logs(pod).unwrap();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found = lines.filter(|line| {
            line["message"] == message && term.is_none_or(|term| line["term"] == term)
        });
        let last = found.next_back()?;
        Some(last["timestamp"].as_str()?.to_owned())
    }
}

#[test]
fn a_leader_that_is_killed_in_the_middle_of_a_wave_is_replaced_and_no_pull_is_repeated() {
    let wave = Wave::begin("lead-kill", 22);
    let pod = &wave.leader.pod;
    wave.cluster.signal_controller(pod, "KILL").unwrap();
    wave.succeeded_within(Duration::from_secs(15));
    wave.ends_well();
}

#[test]
fn a_leader_that_is_told_to_end_hands_over_within_two_seconds_and_has_stopped_before() {
    let wave = Wave::begin("lead-term", 50);
    let old = &wave.leader.pod;
    wave.cluster.signal_controller(old, "TERM").unwrap();
    let new = wave.succeeded_within(Duration::from_secs(2));
    wave.ends_well();
    let stopped = wave.logged(old, "standing by", None).unwrap();
    let began = wave.logged(&new.pod, "leading", Some(new.term)).unwrap();
    assert!(stopped < began, "stopped at {stopped}, began at {began}");
}

/// The worst that can happen to fencing: it does not know that it was replaced.
#[test]
fn a_leader_that_wakes_up_after_it_was_replaced_acts_no_more() {
    let wave = Wave::begin("lead-stop", 22);
    let old = &wave.leader.pod;
    wave.cluster.signal_controller(old, "STOP").unwrap();
    let taken = wave.cluster.succeeded(&wave.leader);
    wave.cluster.signal_controller(old, "CONT").unwrap();
    let (_, new) = taken.unwrap();
    assert!(wave.is_under_way(), "it happened in the middle of the wave");
    let began = wave.logged(&new.pod, "leading", Some(new.term)).unwrap();
    let what = "the old leader stands by";
    let stands = wave.cluster.until(Duration::from_secs(10), what, || {
        let stopped = wave.logged(old, "standing by", None);
        Ok(stopped.filter(|stopped| *stopped > began))
    });
    stands.unwrap();
    wave.ends_well();
    let lease = wave.cluster.leader().unwrap();
    assert_eq!(lease, new, "it did not take the Lease back");
}

#[test]
fn a_deleted_lease_locks_nobody_out_and_the_term_still_rises() {
    let wave = Wave::begin("lead-lease", 40);
    let delete = "delete lease kubefledged-controller -n kube-fledged";
    wave.cluster.kubectl(delete).unwrap();
    let what = "there is a Lease with a higher term";
    let lease = wave.cluster.until(Duration::from_secs(15), what, || {
        let lease = wave.cluster.lease()?;
        Ok(lease.filter(|lease| lease.term > wave.leader.term))
    });
    lease.unwrap();
    wave.ends_well();
}

#[test]
fn an_api_server_that_is_away_makes_controllers_stand_by_and_not_end() {
    let wave = Wave::begin("lead-api", 22);
    // Longer than a leader may go without renewing.
    wave.cluster
        .run(&["restart", "1", "kube-apiserver", "9"], "")
        .unwrap();
    let what = "the API server answers";
    let answers = wave.cluster.until(Duration::from_secs(60), what, || {
        Ok(wave.cluster.kubectl("get --raw /readyz").ok())
    });
    answers.unwrap();
    wave.ends_well();
    let uids = |pods: Vec<Pod>| -> Vec<(String, u64)> {
        pods.into_iter()
            .map(|pod| (pod.uid, pod.restarts))
            .collect()
    };
    let after = uids(wave.cluster.pods("controller").unwrap());
    assert_eq!(after, uids(wave.controllers.clone()), "no crash");
    let stopped = wave.logged(&wave.leader.pod, "standing by", None);
    let began = wave.began["startTime"].as_str().unwrap();
    assert!(stopped.is_some_and(|stopped| *stopped > *began));
}
