//! README.md and ARCHITECTURE.md say what holds: the figures are those that docs/performance.md reports,
//! the commands are run by something, and the table of crates names their dependencies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, process::Command};

use kubefledged_chart::{file, yaml};

const CREATE: &str = "ImageCache, create to Succeeded";

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).expect(before);
    rest.split_once(after).expect(after).0
}

/// The cells of the one table row that begins with this cell.
fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let begin = format!("| {first} |");
    let mut rows = text.lines().filter(|line| line.starts_with(&begin));
    let row = rows.next().expect(first);
    assert!(rows.next().is_none(), "two rows begin with {first}");
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// The section that `make bench-real` writes.
fn real_pulls(performance: &str) -> &str {
    between(performance, "<!-- real -->", "<!-- /real -->")
}

#[test]
fn the_readme_shows_the_measured_time_and_api_writes() {
    let (readme, performance) = (read("README.md"), read("docs/performance.md"));
    let shown = row(&readme, "kubefledged, create to Succeeded");
    let measured = real_pulls(&performance);
    assert_eq!(shown[1], between(measured, "crictl: wall ", ", CPU"));
    assert_eq!(shown[2], *row(measured, CREATE).last().unwrap());
    // Times are relative to this row.
    let crictl = row(&readme, "`crictl pull`, two at a time on both nodes");
    assert_eq!(crictl[1..], ["1", "0"]);
}

/// Blocks of commands in a document: what follows `sh` in their first line, and their text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let begins = text.split("\n```sh").skip(1);
    let blocks = begins.map(|rest| {
        let (word, rest) = rest.split_once('\n').unwrap();
        let (block, _) = rest.split_once("\n```\n").unwrap();
        (word.trim().to_owned(), block.to_owned())
    });
    blocks.collect()
}

/// Blocks without a word are run by `make test-install`. Those of these words are for a machine, a place
/// or a registry that no test has.
const NOT_RUN: [&str; 3] = ["clone", "example", "machine"];

#[test]
fn every_block_of_commands_is_shell_and_is_run_by_a_test() {
    let runs = read(".github/workflows/kind.yml") + &read("Makefile");
    // The workflow names the clusters of one step in a matrix.
    let runs = runs.replace("${{ matrix.cluster }}", "minikube")
        + &runs.replace("${{ matrix.cluster }}", "k3d");
    for path in ["README.md", "docs/install.md"] {
        let blocks = blocks(&read(path));
        assert!(blocks.len() > 5, "{path}");
        for (word, block) in blocks {
            let checked = Command::new("bash").args(["-n", "-c", &block]).status();
            assert!(checked.unwrap().success(), "{path}: {block}");
            let run = runs.contains(&format!("hack/blocks {path} {word})"))
                || runs.contains(&format!("hack/blocks {path} {word};"));
            let by_install = word.is_empty();
            assert!(
                run || by_install || NOT_RUN.contains(&word.as_str()),
                "{path}: nothing runs ```sh {word}"
            );
        }
    }
}

#[test]
fn the_documents_name_the_images_of_this_version() {
    let chart = yaml("charts/kubefledged/Chart.yaml").unwrap();
    let version = chart["appVersion"].as_str().unwrap();
    let mut named = 0;
    for path in ["README.md", "docs/install.md"] {
        let text = read(path);
        for part in ["controller", "webhook", "puller", "$name"] {
            for rest in text.split(&format!("ghcr.io/kubefledged/{part}:")).skip(1) {
                assert!(rest.starts_with(version), "{path}: {part}");
                named += 1;
            }
        }
    }
    assert!(named >= 7, "{named}");
    let bake = read("docker-bake.hcl");
    let default = format!(r#"variable "VERSION" {{ default = "{version}" }}"#);
    assert!(bake.contains(&default), "docker-bake.hcl");
}

#[test]
fn the_table_of_budgets_shows_the_measured_time_and_api_writes() {
    let performance = read("docs/performance.md");
    let measured = real_pulls(&performance);
    let wall = between(measured, "crictl: wall ", ", CPU");
    let cpu = between(measured, ", CPU ", ". API");
    let writes = *row(measured, CREATE).last().unwrap();
    let pulls = "2 nodes x 24 images of 4 MB, create to Succeeded";
    assert_eq!(
        row(&performance, pulls)[2],
        format!("{wall} of its time, {cpu} of its CPU; {writes} writes")
    );
}

/// Names of our own crates in the section `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<&str> {
    let section = manifest.split("[dependencies]").nth(1).unwrap_or("");
    let section = section.split("\n[").next().unwrap();
    let names = section
        .lines()
        .filter_map(|line| line.strip_prefix("kubefledged-"));
    names
        .map(|line| line.split(['.', ' ', '=']).next().unwrap())
        .collect()
}

#[test]
fn the_architecture_lists_every_crate_with_the_crates_it_uses() {
    let architecture = read("ARCHITECTURE.md");
    let table = between(&architecture, "\n## Crates\n", "\n## ");
    let mut listed = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`');
        let manifest = read(&format!("crates/{name}/Cargo.toml"));
        let used: BTreeSet<_> = match cells[2] {
            "none" => BTreeSet::new(),
            names => names.split(", ").collect(),
        };
        assert_eq!(used, dependencies(&manifest), "{name}");
        listed.insert(name.to_owned());
    }
    let crates = std::fs::read_dir(file("crates")).unwrap();
    let crates = crates.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(listed, crates.collect::<BTreeSet<_>>());
}
