//! Tables of the documentation, for tests that hold them against a cluster.

use anyhow::Context as _;
use kubefledged_chart::file;

/// The rows of the first table below a heading, as texts of their cells.
pub fn table(path: &str, heading: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(file(path)).with_context(|| path.to_owned())?;
    let (_, below) = text
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("{path} has no {heading:?}"))?;
    let lines = below.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|'));
    // The table's own heading and the line below it.
    let rows: Vec<_> = rows.skip(2).map(cells).collect();
    anyhow::ensure!(!rows.is_empty(), "{path} has no table below {heading:?}");
    Ok(rows)
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_matches('|');
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The text of the code block whose first line is this language, with what follows it.
pub fn block(path: &str, language: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file(path)).with_context(|| path.to_owned())?;
    let begin = format!("\n```{language}\n");
    let below = text.split_once(&begin).map(|(_, below)| below);
    let below = below.with_context(|| format!("{path} has no block {language:?}"))?;
    let (block, _) = below
        .split_once("\n```\n")
        .with_context(|| format!("{path}: the block {language:?} does not end"))?;
    Ok(block.to_owned())
}

/// What stands between backticks.
pub fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
