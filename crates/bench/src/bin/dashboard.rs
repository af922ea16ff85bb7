//! Draws what the dashboard's queries answered: `dashboard DATA.json PICTURE.svg`. Who has no Grafana
//! sees what it would show. `make test-dashboard`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use plotters::{coord::Shift, prelude::*};
use serde::Deserialize;

/// Panels beside each other.
const COLUMNS: usize = 3;
const WIDTH: u32 = 560;
const HEIGHT: u32 = 230;
/// Share of a panel's width for the names of its lines, in percent.
const LEGEND: u32 = 34;
/// Lines that a panel names.
const NAMED: usize = 9;

#[derive(Parser)]
struct Args {
    /// Written by the end-to-end test of the dashboard
    data: PathBuf,
    /// What is drawn
    picture: PathBuf,
}

#[derive(Deserialize)]
struct Data {
    from: f64,
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
struct Panel {
    title: String,
    #[serde(rename = "type")]
    kind: String,
    unit: String,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    legend: String,
    series: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: std::collections::BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

/// Name and points.
type Curve = (String, Vec<(f64, f64)>);

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let text = std::fs::read_to_string(&args.data)
        .with_context(|| format!("cannot read {}", args.data.display()))?;
    let data: Data = serde_json::from_str(&text)?;
    let panels: Vec<&Panel> = data
        .panels
        .iter()
        .filter(|panel| panel.kind == "timeseries")
        .collect();
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (
        WIDTH * u32::try_from(COLUMNS)?,
        HEIGHT * u32::try_from(rows)?,
    );
    let area = SVGBackend::new(&args.picture, size).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, cell) in panels.iter().zip(area.split_evenly((rows, COLUMNS))) {
        draw(panel, &cell, data.from)?;
    }
    area.present()?;
    Ok(())
}

fn curves(panel: &Panel, from: f64) -> Vec<Curve> {
    let lines = panel.lines.iter();
    let curves = lines.flat_map(|line| {
        line.series.iter().map(move |series| {
            let point = |(at, value): &(f64, String)| {
                let value: f64 = value.parse().ok()?;
                value.is_finite().then_some((at - from, value))
            };
            (
                name(&line.legend, series),
                series.values.iter().filter_map(point).collect(),
            )
        })
    });
    curves
        .filter(|(_, points): &Curve| !points.is_empty())
        .collect()
}

/// A legend with the labels' values in their places.
fn name(legend: &str, series: &Series) -> String {
    let filled = series
        .metric
        .iter()
        .fold(legend.to_owned(), |text, (label, value)| {
            text.replace(&format!("{{{{{label}}}}}"), value)
        });
    // Labels that the series does not have.
    let mut parts = filled.split("{{");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once("}}").map_or("", |(_, rest)| rest)
    })
}

/// What an axis up to this value counts in: so much of the panel's unit, called so.
fn scale(unit: &str, most: f64) -> (f64, &'static str) {
    match (unit, most) {
        ("percentunit", _) => (0.01, " %"),
        ("s", 172_800.0..) => (86_400.0, " d"),
        ("s", 1.0..) => (1.0, " s"),
        ("s", 1e-3..) => (1e-3, " ms"),
        ("s", _) => (1e-6, " µs"),
        ("bytes", _) => (1_048_576.0, " MiB"),
        ("Bps", _) => (1e6, " MB/s"),
        _ => (1.0, ""),
    }
}

fn label(value: f64, most: f64, suffix: &str) -> String {
    let digits = if most < 1.0 {
        2
    } else {
        usize::from(most < 10.0)
    };
    format!("{value:.digits$}{suffix}")
}

fn draw(panel: &Panel, cell: &DrawingArea<SVGBackend<'_>, Shift>, from: f64) -> anyhow::Result<()> {
    let curves = curves(panel, from);
    let points = || curves.iter().flat_map(|(_, points)| points);
    let last = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let (one, suffix) = scale(&panel.unit, most);
    // An axis has some length, also where nothing happened.
    let most = if most > 0.0 { most / one } else { 1.0 } * 1.1;
    let cell = cell.titled(&panel.title, ("sans-serif", 15))?;
    let (plot, legend) = cell.split_horizontally(WIDTH * (100 - LEGEND) / 100);
    let mut chart = ChartBuilder::on(&plot)
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, 0.0..most)?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|at| format!("{at:.0} s"))
        .y_label_formatter(&|value| label(*value, most, suffix))
        .draw()?;
    let unnamed = curves.len().saturating_sub(NAMED);
    for (at, (name, points)) in curves.into_iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let points = points.into_iter().map(|(at, value)| (at, value / one));
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        if at < NAMED {
            let y = 16 + 18 * i32::try_from(at)?;
            legend.draw(&PathElement::new([(0, y), (14, y)], color.stroke_width(3)))?;
            legend.draw(&Text::new(name, (20, y - 6), ("sans-serif", 12)))?;
        }
    }
    if unnamed > 0 {
        let y = 10 + 18 * i32::try_from(NAMED)?;
        legend.draw(&Text::new(
            format!("and {unnamed} more"),
            (20, y),
            ("sans-serif", 12),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legend_names_the_series() {
        let series = Series {
            metric: [("work".to_owned(), "pull".to_owned())].into(),
            values: Vec::new(),
        };
        assert_eq!(name("{{work}} of {{nothing}}!", &series), "pull of !");
    }

    #[test]
    fn an_axis_has_units_that_people_read() {
        let top = |unit, most| {
            let (one, suffix) = scale(unit, most);
            label(most / one, most / one, suffix)
        };
        assert_eq!(top("s", 31_536_000.0), "365 d");
        assert_eq!(top("s", 0.000_35), "350 µs");
        assert_eq!(top("percentunit", 0.5), "50 %");
        assert_eq!(top("bytes", 6.25 * 1_048_576.0), "6.2 MiB");
        assert_eq!(top("none", 0.25), "0.25");
    }
}
