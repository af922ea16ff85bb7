//! Every query of the dashboard, asked of a real Prometheus that has scraped a real run: none may be
//! empty. And promtool reads what the processes show. `make test-dashboard`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubefledged_e2e::{Cluster, demo, faulty};
use serde_json::{Value, json};

const DASHBOARD: &str = include_str!("../../../charts/kubefledged/files/dashboard.json");
const ADDRESS: &str = "127.0.0.1:9099";

/// A Prometheus in the cluster's network; it ends with this.
struct Prometheus {
    process: Child,
    folder: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Job, node, pod and address of the metrics of each of our pods.
fn targets(cluster: &Cluster) -> Vec<[String; 4]> {
    let json = cluster.kubectl("get pods -n kube-fledged -o json").unwrap();
    let pods: Value = serde_json::from_str(&json).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let target = |pod: &Value| {
        let job = text(&pod["metadata"]["labels"]["app.kubernetes.io/component"]);
        let port = match job.as_str() {
            "controller" => 8080,
            "webhook-server" => 8081,
            "puller" => 8082,
            _ => return None,
        };
        let address = format!("{}:{port}", text(&pod["status"]["podIP"]));
        let (node, name) = (&pod["spec"]["nodeName"], &pod["metadata"]["name"]);
        Some([job, text(node), text(name), address])
    };
    let pods = pods["items"].as_array().unwrap();
    pods.iter().filter_map(target).collect()
}

fn start(targets: &[[String; 4]]) -> Prometheus {
    let folder =
        std::env::temp_dir().join(format!("kubefledged-prometheus-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let jobs = targets.iter().enumerate().map(|(at, [job, node, pod, address])| {
        let labels = json!({"job": job, "node": node, "pod": pod});
        json!({"job_name": format!("{job}-{at}"), "static_configs": [{"targets": [address], "labels": labels}]})
    });
    let rules = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../charts/kubefledged/files/prometheus-rules.yaml"
    );
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [Path::new(rules).canonicalize().unwrap()],
        "scrape_configs": jobs.collect::<Vec<_>>(),
    });
    // JSON is YAML.
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, config.to_string()).unwrap();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../../hack/cluster");
    let process = Command::new(program)
        .args(["run", "prometheus", "--log.level=warn"])
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("data").display()
        ))
        .arg(format!("--web.listen-address={ADDRESS}"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Prometheus { process, folder }
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A minute of what clusters live through.
fn live(cluster: &Cluster) {
    let images: Vec<String> = ["web", "api", "worker", "cache", "extra"]
        .map(demo)
        .to_vec();
    let web = json!({"cacheSpec": [{"images": images}]});
    cluster.create("shop", "web", &web).unwrap();
    cluster.ended("shop", "web", "ImageCacheCreate").unwrap();
    cluster
        .run(&["fault", "status=429", "retry-after=5"], "")
        .unwrap();
    let limited = json!({"cacheSpec": [{"images": [faulty("web"), faulty("api")]}]});
    cluster.create("shop", "limited", &limited).unwrap();
    let wrong = json!({"cacheSpec": [{"images": [demo("web").replace(":1.0", ":none")]}]});
    cluster.create("shop", "wrong", &wrong).unwrap();
    sleep(Duration::from_secs(8));
    cluster.run(&["fault", "off"], "").unwrap();
    cluster.kubectl("cordon n2").unwrap();
    sleep(Duration::from_secs(3));
    cluster.kubectl("uncordon n2").unwrap();
    cluster
        .kubectl("annotate ic web -n shop kubefledged.io/purge-imagecache=")
        .unwrap();
    cluster.ended("shop", "web", "ImageCachePurge").unwrap();
    sleep(Duration::from_secs(5));
    cluster.kubectl("delete ic wrong -n shop").unwrap();
    cluster
        .kubectl("annotate ic web -n shop kubefledged.io/refresh-imagecache=")
        .unwrap();
    cluster.ended("shop", "web", "ImageCacheRefresh").unwrap();
    // Only then is the node that was cordoned warm again.
    let limit = Duration::from_secs(90);
    let healed = || {
        let limited = cluster.object("shop", "limited")?;
        Ok((limited["status"]["ready"] == "2/2").then_some(()))
    };
    cluster
        .until(limit, "what the registry refused is pulled", healed)
        .unwrap();
    sleep(Duration::from_secs(10));
}

fn ask(cluster: &Cluster, query: &str, from: u64, to: u64) -> Vec<Value> {
    let url = format!("http://{ADDRESS}/api/v1/query_range");
    let (query, from, to) = (
        format!("query={query}"),
        format!("start={from}"),
        format!("end={to}"),
    );
    let mut args = vec!["run", "curl", "-sSG", &url];
    for part in [&query, &from, &to, "step=1"] {
        args.extend(["--data-urlencode", part]);
    }
    let answer: Value = serde_json::from_str(&cluster.run(&args, "").unwrap()).unwrap();
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// Is some value a number?
fn tells(series: &[Value]) -> bool {
    let values = series
        .iter()
        .flat_map(|one| one["values"].as_array().unwrap());
    let mut numbers = values.filter_map(|point| point[1].as_str()?.parse::<f64>().ok());
    numbers.any(f64::is_finite)
}

/// promtool reads what each process shows.
fn assert_metrics_are_sound(cluster: &Cluster, targets: &[[String; 4]]) {
    assert!(targets.len() >= 4, "{targets:?}");
    for [job, _, _, address] in targets {
        let check = format!("set -o pipefail; curl -sS {address}/metrics | promtool check metrics");
        let said = cluster.run(&["run", "bash", "-c", &check], "");
        assert!(said.is_ok(), "{job}: {}", said.unwrap_err());
    }
}

fn until_scraped(cluster: &Cluster, targets: usize) {
    let all = targets.to_string();
    cluster
        .until(
            Duration::from_secs(60),
            "every target has been scraped",
            || {
                let url = format!("http://{ADDRESS}/api/v1/query?query=count(up==1)");
                let answer = cluster.run(&["run", "curl", "-sS", "--globoff", &url], "");
                let answer: Value =
                    serde_json::from_str(&answer.unwrap_or_default()).unwrap_or_default();
                Ok((answer["data"]["result"][0]["value"][1] == all.as_str()).then_some(()))
            },
        )
        .unwrap();
}

/// A panel with the values of its queries, unless it has none; and its queries without a value.
fn show(cluster: &Cluster, panel: &Value, from: u64, to: u64) -> (Option<Value>, Vec<String>) {
    let (mut lines, mut empty) = (Vec::new(), Vec::new());
    for target in panel["targets"].as_array().into_iter().flatten() {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$__rate_interval", "10s")
            .replace("[1h]", "[1m]")
            .replace("$namespace", ".*")
            .replace("$imagecache", ".*");
        let series = ask(cluster, &query, from, to);
        if !tells(&series) {
            empty.push(format!("{}: {query}", panel["title"]));
        }
        lines.push(json!({"legend": target["legendFormat"], "series": series}));
    }
    let unit = &panel["fieldConfig"]["defaults"]["unit"];
    let shown = (!lines.is_empty()).then(
        || json!({"title": panel["title"], "type": panel["type"], "unit": unit, "lines": lines}),
    );
    (shown, empty)
}

#[test]
#[ignore = "make test-dashboard: it needs Prometheus and takes a minute"]
fn no_query_of_the_dashboard_is_empty() {
    let cluster = Cluster::default();
    cluster.clean("shop").unwrap();
    let targets = targets(&cluster);
    assert_metrics_are_sound(&cluster, &targets);
    let prometheus = start(&targets);
    until_scraped(&cluster, targets.len());
    sleep(Duration::from_secs(2));
    let from = seconds();
    live(&cluster);
    let to = seconds();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut shown, mut empty) = (Vec::new(), Vec::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let (panel, without) = show(&cluster, panel, from, to);
        shown.extend(panel);
        empty.extend(without);
    }
    let alerts = ask(
        &cluster,
        "ALERTS{alertname=\"KubefledgedImagePullsFailing\",alertstate=\"pending\"}",
        from,
        to,
    );
    drop(prometheus);
    if let Some(file) = std::env::var_os("KUBEFLEDGED_DASHBOARD") {
        std::fs::write(file, json!({"from": from, "panels": shown}).to_string()).unwrap();
    }
    assert!(empty.is_empty(), "{empty:#?}");
    assert!(shown.len() > 30);
    assert!(!alerts.is_empty(), "the wrong tag was seen coming");
}
