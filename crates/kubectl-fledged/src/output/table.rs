//! Tables like those of kubectl: no lines, two spaces between columns.

use comfy_table::{ContentArrangement, Table, presets};

/// Draws a table. Columns are as wide as their longest text: whoever pipes it reads whole names.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_text() {
        let rows = [["web", "47/48"], ["a-long-name", "1/1"]];
        let drawn = table(
            &["NAME", "READY"],
            rows.iter().map(|row| row.map(str::to_owned).to_vec()),
        );
        let expected = "NAME          READY\nweb           47/48\na-long-name   1/1\n";
        assert_eq!(drawn, expected);
    }
}
