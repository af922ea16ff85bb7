//! What it costs to look inside a controller of 5,000 nodes with 100 images each: the debug endpoint
//! over real gRPC, and a scrape. The fleet is made up, the engine and its loop are the real ones; the
//! client is in this process, and its memory is in the figures. `make bench-inside`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a measure that cannot be taken says where; counts are small"
)]

#[path = "../tests/fleet/mod.rs"]
mod fleet;

use std::time::{Duration, Instant};

use fleet::{Fleet, key};
use kubefledged_engine::{ImageResult, view::PairQuery};
use kubefledged_proto::debug::{
    ExplainPlanRequest, State, StreamCacheNodesRequest, WatchProgressRequest,
};

const NODES: usize = 5000;
const IMAGES: usize = 100;
/// Each figure is the median of so many.
const ROUNDS: usize = 5;
const WATCHERS: u32 = 10;
const WATCHED: Duration = Duration::from_secs(5);

fn pulled(image: &str) -> Option<ImageResult> {
    (!image.is_empty()).then_some(ImageResult::Pulled)
}

fn main() {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(measure());
}

async fn measure() {
    let fleet = Fleet::start(NODES, pulled).await;
    let name = |image: usize| format!("registry.example.com/team/application-{image}:1.0");
    let images: Vec<String> = (0..IMAGES).map(name).collect();
    fleet.create("all", &images).await;
    let all = i64::try_from(NODES * IMAGES).unwrap();
    let row = async || {
        let row = fleet.engine.ask(|engine, _| engine.view_row(&key("all")));
        row.await.flatten()
    };
    while row().await.is_none_or(|row| row.images.ready < all) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "| what | time | memory above {:.0} MiB | |",
        status("VmRSS:")
    );
    println!("|---|---|---|---|");

    let everything = StreamCacheNodesRequest {
        namespace: "team".to_owned(),
        name: "all".to_owned(),
        ..StreamCacheNodesRequest::default()
    };
    let failed = StreamCacheNodesRequest {
        states: vec![State::Failed.into()],
        ..everything.clone()
    };
    stream(&fleet, "StreamCacheNodes, all pairs", everything).await;
    stream(
        &fleet,
        "StreamCacheNodes, failed ones (there are none)",
        failed,
    )
    .await;
    plan(&fleet).await;
    page(&fleet).await;
    watch(&fleet).await;
    scrape(&fleet).await;
}

async fn stream(fleet: &Fleet, what: &str, request: StreamCacheNodesRequest) {
    let mut client = fleet.client().await;
    let (mut took, mut peak, mut pairs) = (Vec::new(), 0.0_f64, 0);
    for _ in 0..ROUNDS {
        let before = reset();
        let began = Instant::now();
        let stream = client.stream_cache_nodes(request.clone()).await.unwrap();
        let mut stream = stream.into_inner();
        pairs = 0;
        while let Some(message) = stream.message().await.unwrap() {
            pairs += message.pairs.len();
        }
        took.push(began.elapsed());
        peak = peak.max(status("VmHWM:") - before);
    }
    println!(
        "| {what} | {} ms | {peak:.1} MiB | {pairs} pairs |",
        median(took)
    );
}

async fn plan(fleet: &Fleet) {
    let mut client = fleet.client().await;
    let (mut took, mut peak) = (Vec::new(), 0.0_f64);
    for _ in 0..ROUNDS {
        let before = reset();
        let began = Instant::now();
        let stream = client.explain_plan(ExplainPlanRequest::default()).await;
        let mut stream = stream.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
        took.push(began.elapsed());
        peak = peak.max(status("VmHWM:") - before);
    }
    println!(
        "| ExplainPlan, whole fleet | {} ms | {peak:.1} MiB | nothing is to be done |",
        median(took)
    );
}

/// What one question keeps the engine from its own work.
async fn page(fleet: &Fleet) {
    let query = PairQuery {
        cache: key("all"),
        node: None,
        image: None,
        states: Vec::new(),
    };
    let mut took = Vec::new();
    for _ in 0..100 {
        let query = query.clone();
        let answer = fleet.engine.ask(move |engine, now| {
            let began = Instant::now();
            let page = engine.view_pairs(now, &query, None).unwrap();
            (began.elapsed(), page.rows.len())
        });
        let (elapsed, rows) = answer.await.unwrap();
        assert_eq!(rows, 1000);
        took.push(elapsed);
    }
    took.sort_unstable();
    println!(
        "| one page of 1,000 pairs, in the engine's own thread | {:.2} ms | | longest of 100: {:.2} ms |",
        took[50].as_secs_f64() * 1000.0,
        took[99].as_secs_f64() * 1000.0
    );
}

async fn watch(fleet: &Fleet) {
    let before = reset();
    let cpu = cpu();
    let began = Instant::now();
    let watchers = (0..WATCHERS).map(|_| async {
        let mut client = fleet.client().await;
        let request = WatchProgressRequest {
            interval: Some(prost_types::Duration {
                seconds: 0,
                nanos: 250_000_000,
            }),
            ..WatchProgressRequest::default()
        };
        let mut stream = client.watch_progress(request).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let first = began.elapsed();
        // Nothing changes: nothing is sent, and looks go on.
        let more = tokio::time::timeout(WATCHED, stream.message()).await;
        assert!(more.is_err(), "{more:?}");
        first
    });
    let first = futures::future::join_all(watchers).await;
    let looks = f64::from(WATCHERS) * WATCHED.as_secs_f64() * 4.0;
    println!(
        "| WatchProgress, first message | {} ms | {:.1} MiB | {WATCHERS} watchers at once, four looks a second each: {:.2} ms CPU a look |",
        median(first),
        status("VmHWM:") - before,
        (self::cpu() - cpu) * 1000.0 / looks
    );
}

async fn scrape(fleet: &Fleet) {
    let standing = fleet.standing.subscribe();
    let before = reset();
    let (mut took, mut size) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        fleet.metrics.measure(&fleet.engine, &standing).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &fleet.registry).unwrap();
        took.push(began.elapsed());
        size = text.len();
    }
    println!(
        "| a scrape of /metrics | {} ms | {:.1} MiB | {:.1} KiB |",
        median(took),
        status("VmHWM:") - before,
        size as f64 / 1024.0
    );
}

fn median(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    format!("{:.1}", all[all.len() / 2].as_secs_f64() * 1000.0)
}

/// Peak memory counts from now on; what there is now, MiB.
fn reset() -> f64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    status("VmRSS:")
}

fn status(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<f64>()
        .unwrap()
        / 1024.0
}

/// Seconds of CPU of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}
