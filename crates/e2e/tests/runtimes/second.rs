//! A node with two runtimes that answer.

use std::time::Duration;

use kubefledged_e2e::demo;

use crate::setup::{Setup, component};

/// A containerd that the kubelet does not use, at the first path where the puller looks.
const SECOND: &str = r#"
mkdir -p /run/second /run/containerd
cat >/run/second/config.toml <<CONFIG
version = 2
root = "/run/second/root"
state = "/run/second/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
CONFIG
setsid "$0" --config /run/second/config.toml >/run/second/log 2>&1 &
echo $! >/run/second/pid
"#;
const AWAY: &str = "kill $(cat /run/second/pid); rm -rf /run/second /run/containerd";

#[test]
fn of_two_runtimes_the_puller_uses_the_one_that_runs_its_pod() {
    let s = Setup::new("rt-second");
    let image = demo("web");
    let of = |runtime: &str| {
        let mut nodes = s.nodes.iter();
        nodes.find(|(_, known)| known.starts_with(runtime))
    };
    // `make e2e` has no node with CRI-O.
    let (Some((node, _)), Some((other, _))) = (of("cri-o"), of("containerd")) else {
        return;
    };
    let pid = s
        .cluster
        .run(&["pid", other, component(&s, other)], "")
        .unwrap();
    let exe = format!("/proc/{}/exe", pid.trim());
    let program = s
        .cluster
        .run(&["node", other, "readlink", &exe], "")
        .unwrap();
    s.cluster
        .run(&["node", node, "sh", "-c", SECOND, program.trim()], "")
        .unwrap();
    s.cluster
        .until(
            Duration::from_secs(20),
            "the second runtime answers",
            || {
                let socket = [
                    "node",
                    node,
                    "test",
                    "-S",
                    "/run/containerd/containerd.sock",
                ];
                Ok(s.cluster.run(&socket, "").ok())
            },
        )
        .unwrap();
    let restart = "rollout restart daemonset/kubefledged-puller -n kube-fledged";
    let wait = "rollout status daemonset/kubefledged-puller -n kube-fledged --timeout=120s";
    let ready = s
        .cluster
        .kubectl(restart)
        .and_then(|_| s.cluster.kubectl(wait));
    let status = ready.map(|_| s.created("second", &[&image]));
    let held = s.demo_images(node);
    s.cluster
        .run(&["node", node, "sh", "-c", AWAY], "")
        .unwrap();
    let status = status.unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert!(held.contains(&image), "{held:?}");
}
