//! Alerts and the dashboard, held against docs/metrics.md, docs/troubleshooting.md and Prometheus' own
//! checks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, path::Path, process::Command};

use kubefledged_chart::yaml;
use serde_json::Value;

const RULES: &str = "charts/kubefledged/files/prometheus-rules.yaml";
const DASHBOARD: &str = include_str!("../../../charts/kubefledged/files/dashboard.json");
const METRICS: &str = include_str!("../../../docs/metrics.md");
const TROUBLESHOOTING: &str = include_str!("../../../docs/troubleshooting.md");

fn promtool(args: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new("promtool")
        .args(args)
        .current_dir(root)
        .output()
        .expect("promtool is missing: make setup");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn alerts() -> Vec<Value> {
    let rules = yaml(RULES).unwrap();
    rules["groups"][0]["rules"].as_array().unwrap().clone()
}

/// Every expression of the dashboard with its panel.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| {
            let expression = target["expr"].as_str().unwrap();
            (title.to_owned(), expression.to_owned())
        })
    });
    queries.collect()
}

/// Names of ours in an expression.
fn names(expression: &str) -> BTreeSet<&str> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let words = expression.split(word);
    words
        .filter(|word| word.starts_with("kubefledged_"))
        .collect()
}

fn documented(name: &str) -> bool {
    let suffixes = ["_bucket", "_count", "_sum"];
    let family = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
    [Some(name), family]
        .into_iter()
        .flatten()
        .any(|name| METRICS.contains(&format!("| `{name}` |")))
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    promtool(&["check", "rules", RULES]);
    promtool(&[
        "test",
        "rules",
        "crates/chart/testdata/prometheus-rules-test.yaml",
    ]);
    let tests = yaml("crates/chart/testdata/prometheus-rules-test.yaml")
        .unwrap()
        .to_string();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(
            tests.contains(&format!("\"alertname\":\"{name}\"")),
            "{name} is not tested"
        );
    }
}

#[test]
fn every_alert_leads_to_a_chapter_that_is_there() {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        text.replace(' ', "-")
    };
    let anchors: BTreeSet<String> = TROUBLESHOOTING
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(heading)
        .collect();
    for alert in alerts() {
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        let (page, anchor) = url.split_once('#').unwrap();
        assert!(page.ends_with("/docs/troubleshooting.md"), "{url}");
        assert!(anchors.contains(anchor), "{url}");
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let alerts = alerts();
    let alerts = alerts.iter().map(|alert| {
        let name = alert["alert"].as_str().unwrap();
        (name.to_owned(), alert["expr"].as_str().unwrap().to_owned())
    });
    let all: Vec<_> = alerts.chain(queries()).collect();
    assert!(all.len() > 40);
    for (place, expression) in &all {
        let names = names(expression);
        assert!(!names.is_empty(), "{place}");
        for name in names {
            assert!(documented(name), "{place}: {name}");
        }
    }
    // And nothing is counted that nobody looks at. The conventional names are for other people's dashboards.
    let listed = METRICS.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed = listed.filter(|line| line.starts_with("kubefledged_"));
    for name in listed.filter_map(|line| line.split('`').next()) {
        let shown = all.iter().any(|(_, expression)| expression.contains(name));
        assert!(shown, "{name} is in no panel and no alert");
    }
}

#[test]
fn panels_do_not_overlap_and_have_numbers_of_their_own() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{}", panel["title"]);
        }
    }
}
