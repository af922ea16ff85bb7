//! README.md and ARCHITECTURE.md say what holds: the figures are those that docs/performance.md reports,
//! and the table of crates names their dependencies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;

use kubefledged_chart::file;

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
