//! Draws what the dashboard's queries answered: `dashboard DATA.json PICTURE.svg`. Who has no Grafana
//! sees what it would show. `make test-dashboard`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use plotters::{coord::Shift, prelude::*};
use serde::Deserialize;

/// Panels beside each other.
const COLUMNS: usize = 3;
const WIDTH: u32 = 520;
const HEIGHT: u32 = 260;
/// Lines that a panel names.
const NAMED: usize = 8;

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

fn draw(panel: &Panel, cell: &DrawingArea<SVGBackend<'_>, Shift>, from: f64) -> anyhow::Result<()> {
    let curves = curves(panel, from);
    let points = || curves.iter().flat_map(|(_, points)| points);
    let last = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(1e-9, f64::max) * 1.1;
    let unit = match panel.unit.as_str() {
        "none" => String::new(),
        unit => format!(" ({unit})"),
    };
    let mut chart = ChartBuilder::on(cell)
        .caption(format!("{}{unit}", panel.title), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|at| format!("{at:.0} s"))
        .draw()?;
    for (at, (name, points)) in curves.into_iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let drawn = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        if at < NAMED {
            drawn.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 12, y)], color.stroke_width(2))
            });
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 11))
        .background_style(WHITE.mix(0.7))
        .draw()?;
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
}
