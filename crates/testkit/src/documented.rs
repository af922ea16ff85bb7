//! Compares the metrics of a process with docs/metrics.md. Dashboards and alerts depend on their names.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::registry::Registry;

const LIST: &str = include_str!("../../../docs/metrics.md");

/// Compares names, types, labels and help texts of all metrics in a registry with a section of
/// docs/metrics.md.
///
/// # Panics
/// They differ. The message lists the lines.
#[allow(clippy::panic, reason = "only tests call it")]
pub fn assert_documented(section: &str, registry: &Registry) {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, registry) {
        panic!("{error}");
    }
    let (shown, listed) = (shown(&text), listed(section));
    let missing: Vec<_> = shown.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&shown).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/metrics.md, section {section}: the table lacks {missing:#?}, and the process lacks {stale:#?}"
    );
}

fn listed(section: &str) -> BTreeSet<String> {
    let heading = format!("## {section}\n");
    let text = LIST.split_once(&heading).map_or("", |(_, rest)| rest);
    let text = text
        .split_once("\n## ")
        .map_or(text, |(section, _)| section);
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(ToOwned::to_owned).collect()
}

fn shown(text: &str) -> BTreeSet<String> {
    let mut help: BTreeMap<&str, &str> = BTreeMap::new();
    let mut rows: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, text] => drop(help.insert(name, text)),
            ["#", "TYPE", name, kind] => drop(rows.insert(name, (kind, BTreeSet::new()))),
            ["#", ..] => {}
            _ => {
                let series = line.split(['{', ' ']).next().unwrap_or_default();
                let family = rows
                    .iter_mut()
                    .rev()
                    .find(|(name, _)| series.starts_with(**name));
                let labels = line
                    .split_once('{')
                    .and_then(|(_, rest)| rest.rsplit_once('}'));
                if let (Some((_, (_, known))), Some((labels, _))) = (family, labels) {
                    let names = labels
                        .split("\",")
                        .filter_map(|label| label.split_once('='));
                    known.extend(names.map(|(name, _)| name).filter(|name| *name != "le"));
                }
            }
        }
    }
    let row = |(name, (kind, labels)): (&&str, &(&str, BTreeSet<&str>))| {
        let suffix = match *kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels = labels.iter().copied().collect::<Vec<_>>().join(", ");
        let help = help.get(name).copied().unwrap_or_default();
        format!("| `{name}{suffix}` | {kind} | {labels} | {help} |")
    };
    rows.iter().map(row).collect()
}
