//! What real runtimes said to pulls that failed, recorded by hack/record-pull-errors, and what it
//! means.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod documented;
mod meaning;
mod names;

use std::collections::BTreeSet;

use kubefledged_queue::{CallError, classify};
use serde_json::Value;

use meaning::{MEANING, meaning};

const RECORDED: &str = include_str!("../../testdata/pull-errors.json");

fn recorded() -> Vec<Value> {
    serde_json::from_str(RECORDED).unwrap()
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap()
}

#[test]
fn every_recorded_answer_means_what_was_wrong() {
    let mut seen = BTreeSet::new();
    for record in recorded() {
        let case = text(&record, "case");
        let (reason, remedy) =
            meaning(case).unwrap_or_else(|| panic!("nobody says what {case:?} means"));
        let error = CallError {
            code: text(&record, "code").to_owned(),
            message: text(&record, "message").to_owned(),
        };
        let class = classify(&error, name(&error.message));
        assert_eq!((class.reason, class.remedy), (reason, remedy), "{record}");
        seen.insert((case.to_owned(), text(&record, "runtime").to_owned()));
    }
    for (case, ..) in MEANING {
        assert!(
            seen.iter().any(|(name, _)| name == case),
            "{case} is not recorded"
        );
    }
}

/// What hack/record-pull-errors asked for.
const NAMES: [&str; 9] = [
    "registry.test:5000/demo/web@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "registry.test:5000/demo/web:9.9",
    "registry.test:5000/demo/none:1.0",
    "registry.test:5000/bench/big:1.0",
    "private.test:5001/demo/secret:1.0",
    "down.test:5002/a:1",
    "nohost.test/a:1",
    "registry.test:5000/UPPER/case:1",
    "faulty.test:5003/demo/web:1.0",
];

/// The name that a recorded message is about.
fn name(message: &str) -> &'static str {
    let registry = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    let whole = NAMES.iter().find(|name| message.contains(**name));
    let near = NAMES.iter().find(|name| message.contains(&registry(name)));
    whole
        .or(near)
        .copied()
        .unwrap_or("faulty.test:5003/demo/web:1.0")
}

#[test]
fn four_runtimes_were_recorded() {
    let records = recorded();
    let runtimes: BTreeSet<&str> = records
        .iter()
        .map(|record| text(record, "runtime"))
        .collect();
    assert_eq!(
        runtimes.into_iter().collect::<Vec<_>>(),
        [
            "containerd://1.6.20",
            "containerd://2.2.9",
            "containerd://2.4.2",
            "cri-o://1.34.0"
        ]
    );
}
