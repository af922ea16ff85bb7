//! What the workflows of .github rest on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;

use kubefledged_chart::{file, get, yaml};
use serde_json::Value;

fn workflows() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(file(".github/workflows")).unwrap();
    let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| {
            let parsed = yaml(&format!(".github/workflows/{name}")).unwrap();
            (name, parsed)
        })
        .collect()
}

/// Texts anywhere in a workflow.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|inner| texts(inner, found)),
        Value::Object(map) => map.values().for_each(|inner| texts(inner, found)),
        _ => {}
    }
}

#[test]
fn the_workflows_call_targets_of_the_makefile() {
    let makefile = std::fs::read_to_string(file("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ', '#', '.']))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut called = 0;
    for (name, workflow) in workflows() {
        for job in workflow["jobs"].as_object().unwrap().values() {
            let mut all = Vec::new();
            texts(&job["steps"], &mut all);
            let matrix = get(job, "strategy.matrix.targets").as_array();
            let matrix = matrix.into_iter().flatten().filter_map(Value::as_str);
            let made = all.iter().filter_map(|text| text.strip_prefix("make "));
            for word in made.chain(matrix).flat_map(str::split_whitespace) {
                let argument = word.contains('=') || "${{matrix.targets}}".contains(word);
                assert!(argument || targets.contains(word), "{name}: make {word}");
                called += usize::from(!argument);
            }
        }
    }
    assert!(called > 5, "{called}");
}

#[test]
fn the_release_pushes_the_images_that_the_chart_names() {
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    let release = yaml(".github/workflows/release.yml").unwrap();
    let pushed = get(&release, "jobs.image.strategy.matrix.name");
    let pushed: Vec<&str> = pushed
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    for component in ["controller", "webhook", "puller"] {
        let image = get(&values, &format!("{component}.image"));
        let repository = image["repository"].as_str().unwrap();
        assert_eq!(image["registry"], "ghcr.io");
        let name = repository.strip_prefix("kubefledged/").unwrap();
        assert!(pushed.contains(&name), "{name} is not pushed");
        assert!(file(&format!("Dockerfile.{name}")).exists());
    }
    assert_eq!(pushed.len(), 3);
}

/// A tag can be moved to another commit; a commit cannot.
#[test]
fn actions_are_pinned_by_commit() {
    let mut pinned = 0;
    for entry in std::fs::read_dir(file(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let Some((_, action)) = line.split_once("uses: ") else {
                continue;
            };
            let (name, rest) = action.split_once('@').unwrap();
            let (commit, version) = rest.split_once(" # v").expect(action);
            assert_eq!(commit.len(), 40, "{name} in {}", path.display());
            assert!(commit.chars().all(|c| c.is_ascii_hexdigit()), "{action}");
            assert!(
                version.starts_with(|c: char| c.is_ascii_digit()),
                "{action}"
            );
            pinned += 1;
        }
    }
    assert!(pinned > 10, "{pinned}");
}
