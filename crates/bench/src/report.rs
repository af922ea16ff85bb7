//! Measures as Markdown tables and SVG plots.

use std::{fmt::Write as _, path::Path};

use anyhow::Context as _;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

/// What one scenario took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Name of the scenario.
    pub scenario: String,
    /// Nodes in the fleet.
    pub nodes: usize,
    /// Images of the cache, or caches.
    pub images: usize,
    /// From the request until the status says so.
    pub seconds: f64,
    /// CPU of the controller in that time.
    pub controller_cpu: f64,
    /// CPU of the simulator of the pullers in that time.
    pub fleet_cpu: f64,
    /// Resident memory of the controller before, MiB.
    pub rss_before: f64,
    /// Largest resident memory of the controller in that time, MiB.
    pub peak_rss: f64,
    /// Its writes to the API server in that time.
    pub writes: u64,
    /// Lines of its log in that time, INFO and above.
    pub lines: u64,
    /// Calls to pullers in that time: pulls, checks, removals.
    pub calls: u64,
    /// Connections made in that time.
    pub handshakes: u64,
    /// Most connections open at a time.
    pub connections: u64,
    /// What else is worth knowing.
    pub note: String,
    /// Pairs of node and image present over time: seconds, pairs.
    pub curve: Vec<(f64, f64)>,
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| scenario | nodes | images | wall s | controller CPU s | fleet CPU s | controller RSS MiB, before → peak | API writes | log lines | calls | handshakes | most connections | |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.0} → {:.0} | {} | {} | {} | {} | {} | {} |",
            row.scenario,
            row.nodes,
            row.images,
            row.seconds,
            row.controller_cpu,
            row.fleet_cpu,
            row.rss_before,
            row.peak_rss,
            row.writes,
            row.lines,
            row.calls,
            row.handshakes,
            row.connections,
            row.note,
        );
    }
    text
}

/// The exponent of `y ~ x^k` that fits best; 1 is linear.
pub fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|(x, y)| (x.ln(), y.ln()))
        .collect();
    slope(&logs)
}

/// Of the line that fits best.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let n = points.len() as f64;
    let (sx, sy) = points
        .iter()
        .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let (mx, my) = (sx / n, sy / n);
    let cov: f64 = points.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let var: f64 = points.iter().map(|(x, _)| (x - mx) * (x - mx)).sum();
    cov / var
}

/// How the measures grow with the fleet, as a sentence.
pub fn growth(rows: &[Row]) -> String {
    #[allow(clippy::cast_precision_loss)]
    let fit = |value: fn(&Row) -> f64| {
        exponent(
            &rows
                .iter()
                .map(|row| (row.nodes as f64, value(row)))
                .collect::<Vec<_>>(),
        )
    };
    #[allow(clippy::cast_precision_loss)]
    let writes = fit(|row| row.writes as f64);
    format!(
        "Exponents (1 is linear, 0 is constant): wall {:.2}, controller CPU {:.2}, peak RSS {:.2}, API writes {:.2}.\n",
        fit(|row| row.seconds),
        fit(|row| row.controller_cpu),
        fit(|row| row.peak_rss),
        writes,
    )
}

/// Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`; adds both at the end of a
/// file that lacks them.
pub fn insert(file: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(file).unwrap_or_default();
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let new = match (old.split_once(&open), old.split_once(&close)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{open}\n{text}\n{close}{after}"),
        _ => format!("{old}\n{open}\n{text}\n{close}\n"),
    };
    std::fs::write(file, new).with_context(|| format!("cannot write {}", file.display()))
}

/// What the figures were measured on.
pub fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let (cpus, memory, load) = (
        read("/proc/cpuinfo"),
        read("/proc/meminfo"),
        read("/proc/loadavg"),
    );
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let kib: u64 = field(&memory, "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_default();
    format!(
        "{} processors ({}), {} GiB, load {} at the end, {:.10}",
        std::thread::available_parallelism().map_or(0, usize::from),
        field(&cpus, "model name"),
        (kib + (1 << 19)) >> 20,
        load.split(' ').next().unwrap_or_default(),
        k8s_openapi::jiff::Timestamp::now().to_string(),
    )
}

/// One line for each row's curve, as SVG.
pub fn plot(
    file: &Path,
    title: &str,
    x: &str,
    y: &str,
    lines: &[(String, Vec<(f64, f64)>)],
) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most_x = points().map(|(x, _)| *x).fold(1e-3, f64::max) * 1.02;
    let most_y = points().map(|(_, y)| *y).fold(1e-3, f64::max) * 1.05;
    let area = SVGBackend::new(file, (860, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..most_x, 0.0..most_y)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()?;
    for (at, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        if points.len() < 20 {
            chart.draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 3, color.filled())),
            )?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_exponent_one_and_a_constant_zero() {
        let line = [(500.0, 5.0), (1000.0, 10.0), (5000.0, 50.0)];
        assert!((exponent(&line) - 1.0).abs() < 1e-9);
        assert!(exponent(&[(500.0, 3.0), (5000.0, 3.0)]).abs() < 1e-9);
    }

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let file =
            std::env::temp_dir().join(format!("kubefledged-report-{}.md", std::process::id()));
        std::fs::write(&file, "# Head\n<!-- a -->\nold\n<!-- /a -->\ntail\n").unwrap();
        insert(&file, "a", "new").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(text, "# Head\n<!-- a -->\nnew\n<!-- /a -->\ntail\n");
    }
}
