//! From the arguments to the tables.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    controller::Program,
    fleet::Fleet,
    report::{self, Row},
    scenario::{GROWTH, JOINERS, Scenario},
    serve, soak,
    world::World,
};

const PULLER_PORT: u16 = 7443;

/// Runs scenarios against the API server of KUBECONFIG, in a network namespace where 10.100.0.0/16
/// is local. `hack/bench-fleet` makes both.
#[derive(Debug, Parser)]
pub struct Args {
    /// What to run, in this order
    #[arg(required = true)]
    pub scenarios: Vec<Scenario>,
    /// Nodes in the fleet
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub nodes: u32,
    /// Images of the cache; without it what the scenario says
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub images: Option<u32>,
    /// The controller's binary
    #[arg(long)]
    pub controller: PathBuf,
    /// More flags for it, each with its value
    #[arg(long = "controller-flag", allow_hyphen_values = true)]
    pub controller_flags: Vec<String>,
    /// Folder for the logs of controllers
    #[arg(long)]
    pub logs: PathBuf,
    /// Markdown file whose tables are replaced
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Longest time for one scenario, in seconds
    #[arg(long, default_value_t = 300)]
    pub limit: u64,
    /// How long `soak` churns, in minutes
    #[arg(long, default_value_t = 60)]
    pub minutes: u64,
}

/// Runs what the arguments say and prints the table.
pub async fn run(args: Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.logs)?;
    let most = if args.scenarios.contains(&Scenario::Growth) {
        GROWTH.into_iter().max().unwrap_or(0)
    } else {
        args.nodes as usize + JOINERS
    };
    let fleet = Arc::new(Fleet::new(most));
    let cluster = Cluster::connect().await?;
    cluster.prepare().await?;
    cluster.clear().await?;
    let program = Program {
        path: args.controller.clone(),
        logs: args.logs.clone(),
        flags: args.controller_flags.clone(),
    };
    let (identity, served) = watch::channel(None);
    let limit = Duration::from_secs(args.limit);
    let mut world = World::new(cluster, identity, fleet, program, limit);
    let serving = serve::serve(world.fleet.clone(), PULLER_PORT, served);
    let measuring = async {
        for scenario in &args.scenarios {
            let text = one(&mut world, *scenario, &args)
                .await
                .with_context(|| format!("scenario {scenario:?}"))?;
            println!("{text}");
        }
        world.stop().await
    };
    tokio::select! {
        result = measuring => result,
        ended = serving => ended,
    }
}

async fn one(world: &mut World, scenario: Scenario, args: &Args) -> anyhow::Result<String> {
    let images = args.images.map(|images| images as usize);
    if scenario == Scenario::Soak {
        let time = Duration::from_secs(args.minutes * 60);
        let samples = soak::soak(world, args.nodes as usize, time).await?;
        return soak::publish(&samples, args.report.as_deref());
    }
    let rows = world.play(scenario, args.nodes as usize, images).await?;
    publish(scenario, &rows, args.report.as_deref())
}

fn publish(
    scenario: Scenario,
    rows: &[Row],
    file: Option<&std::path::Path>,
) -> anyhow::Result<String> {
    let name = format!("fleet-{scenario:?}").to_lowercase();
    let nodes = rows.first().map_or(0, |row| row.nodes);
    let mut text = format!(
        "`make bench-{} NODES={nodes}`. {}.\n\n{}",
        format!("{scenario:?}").to_lowercase(),
        report::machine(),
        report::table(rows)
    );
    let Some(file) = file else {
        return Ok(text);
    };
    let folder = file.with_extension("");
    let plot = folder.join(format!("{name}.svg"));
    if scenario == Scenario::Growth {
        text = format!("{text}\n{}", report::growth(rows));
        #[allow(clippy::cast_precision_loss)]
        let line = |name: &str, value: fn(&Row) -> f64| {
            (
                name.to_owned(),
                rows.iter()
                    .map(|row| (row.nodes as f64, value(row)))
                    .collect(),
            )
        };
        let lines = [
            line("wall s", |row| row.seconds),
            line("controller CPU s", |row| row.controller_cpu),
        ];
        report::plot(&plot, "growth with the fleet", "nodes", "seconds", &lines)?;
    } else {
        let lines: Vec<_> = rows
            .iter()
            .filter(|row| row.curve.len() > 1)
            .map(|row| (row.scenario.clone(), row.curve.clone()))
            .collect();
        report::plot(
            &plot,
            &name,
            "seconds",
            "pairs of node and image present",
            &lines,
        )?;
    }
    let shown = format!(
        "performance/{}",
        plot.file_name().unwrap_or_default().to_string_lossy()
    );
    report::insert(file, &name, &format!("{text}\n![{name}]({shown})"))?;
    Ok(text)
}
