//! docs/imagecache.md is the reference of the API: its tables name every field of the definition and
//! every reason of a condition, and none that does not exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::conditions::{Degraded, Progressing, Ready, Stalled};
use kubefledged_chart::{file, yaml};
use serde_json::Value;

/// Paths of all fields below a schema; a list's end with `[]`.
fn fields(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = match path {
            "" => name.clone(),
            _ => format!("{path}.{name}"),
        };
        let inner = ["items", "additionalProperties"].map(|key| &field[key]);
        let list = inner.iter().find(|inner| inner["properties"].is_object());
        found.insert(path.clone());
        match list {
            Some(inner) => fields(&format!("{path}[]"), inner, found),
            // Lists of lists by name: failures.
            None => match inner.iter().find(|inner| inner["items"].is_object()) {
                Some(inner) => fields(&format!("{path}[]"), &inner["items"], found),
                None => fields(&path, field, found),
            },
        }
    }
}

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What the table below a heading says of each field.
fn table(text: &str, heading: &str) -> BTreeMap<String, String> {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let mut cells = row.trim_matches('|').splitn(2, " | ");
        let (names, meaning) = (cells.next().unwrap(), cells.next().unwrap().to_owned());
        quoted(names).map(move |name| (name.to_owned(), meaning.clone()))
    })
    .collect()
}

#[test]
fn the_reference_names_every_field_and_no_other() {
    let text = std::fs::read_to_string(file("docs/imagecache.md")).unwrap();
    let definition = yaml("charts/kubefledged/files/crd.yaml").unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    for part in ["spec", "status"] {
        let mut all = BTreeSet::new();
        fields("", &schema[part], &mut all);
        let rows = table(&text, part);
        let plain = |path: &str| path.trim_end_matches("[]").to_owned();
        for row in rows.keys() {
            assert!(all.contains(&plain(row)), "{part}: there is no {row}");
        }
        let named: BTreeSet<String> = rows.keys().map(|row| plain(row)).collect();
        for field in &all {
            // As a row; as the way to rows; or by name in what its parent's row says.
            let above = format!("{field}.");
            let list = format!("{field}[].");
            let leads = |row: &String| row.starts_with(&above) || row.starts_with(&list);
            let said = rows.iter().any(|(row, meaning)| {
                let inside = field.strip_prefix(&plain(row));
                let inside = inside.filter(|rest| rest.starts_with(['.', '[']));
                let name = field.rsplit('.').next().unwrap();
                // The shape of a node affinity is Kubernetes' own.
                inside.is_some()
                    && (quoted(meaning).any(|word| word == name) || row.ends_with("nodeAffinity"))
            });
            assert!(
                named.contains(field) || rows.keys().any(leads) || said,
                "{part}: docs/imagecache.md does not name {field}"
            );
        }
    }
}

/// Reasons by status, as a row of the table of conditions lists them.
fn reasons(text: &str, condition: &str) -> BTreeSet<(String, String)> {
    let begin = format!("| {condition} | ");
    let row = text.lines().find_map(|line| line.strip_prefix(&begin));
    let statuses = row.expect(condition).split(". ");
    let found = statuses.flat_map(|part| {
        let (status, reasons) = part.split_once(": ").expect(part);
        quoted(reasons).map(|reason| (status.to_owned(), reason.to_owned()))
    });
    found.collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeSet<(String, String)> {
    let owned = |(status, reason): (&str, &str)| (status.to_owned(), reason.to_owned());
    pairs.map(owned).into()
}

#[test]
fn the_reference_lists_every_reason_under_its_status() {
    let text = std::fs::read_to_string(file("docs/imagecache.md")).unwrap();
    let ready = Ready::ALL.map(|reason| (reason.status(), reason.as_str()));
    assert_eq!(reasons(&text, "Ready"), pairs(ready));
    let progressing = Progressing::ALL.map(|reason| (reason.status(), reason.as_str()));
    assert_eq!(reasons(&text, "Progressing"), pairs(progressing));
    let stalled = Stalled::ALL.map(|reason| ("True", reason.as_str()));
    assert_eq!(reasons(&text, "Stalled"), pairs(stalled));
    let mut degraded = pairs(Degraded::ALL.map(|reason| (reason.status(), reason.as_str())));
    // A new leader writes this one.
    degraded.insert(("Unknown".to_owned(), "None".to_owned()));
    assert_eq!(reasons(&text, "Degraded"), degraded);
}
