//! Metrics of the engine's state. Each scrape replaces the whole snapshot at once, so that concurrent scrapes do
//! not see a part of it, and series disappear with their object.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kubefledged_engine::view::{
    BatchKind, Budget, CacheRow, MOST_ROWS, PeerSums, RegistryRow, Sums, TrueConditions,
};
use kubefledged_process::metrics::registry_label;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::driver::Asking;

/// The state of the engine at the last scrape.
#[derive(Debug, Default)]
pub struct Snapshot(Mutex<Option<Arc<Seen>>>);

#[derive(Debug, Default)]
struct Seen {
    caches: Vec<CacheRow>,
    registries: Vec<RegistryRow>,
    sums: Sums,
}

impl Snapshot {
    /// Reads the engine page by page.
    pub async fn take(&self, engine: &Asking) {
        let Some((sums, registries)) = engine
            .ask(|engine, now| {
                (
                    engine.view_sums(),
                    engine.view_registries(now, None, MOST_ROWS),
                )
            })
            .await
        else {
            return;
        };
        let (mut caches, mut after) = (Vec::new(), None);
        loop {
            let page = engine
                .ask(move |engine, _| engine.view_caches(None, after.as_ref(), MOST_ROWS))
                .await;
            let Some(page) = page else { return };
            caches.extend(page.rows);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.set(Some(Seen {
            caches,
            registries: registries.rows,
            sums,
        }));
    }

    /// Clears the snapshot.
    pub fn clear(&self) {
        self.set(None);
    }

    fn set(&self, seen: Option<Seen>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen.map(Arc::new);
    }

    /// Returns a snapshot with at least one series of each metric.
    #[cfg(test)]
    pub fn example(&self) {
        use kubefledged_api_types::{Timestamp, status::KeptCounts};

        let row = CacheRow {
            key: kubefledged_engine::CacheKey {
                namespace: "ns".into(),
                name: "a".into(),
            },
            nodes: kubefledged_api_types::status::NodeCounts::default(),
            images: kubefledged_api_types::status::ImageCounts {
                kept: Some(KeptCounts::default()),
                ..Default::default()
            },
            status: String::new(),
            reason: String::new(),
            started: None,
            completed: None,
            operation: None,
            refreshed: Some(Timestamp(7)),
            conditions: TrueConditions {
                ready: true,
                ..TrueConditions::default()
            },
            lists_without_nodes: 0,
        };
        let registry = RegistryRow {
            host: "docker.io".into(),
            budget: Budget {
                limit: 64,
                used: 0,
                long: 0,
            },
            waiting: 0,
            limited: None,
        };
        self.set(Some(Seen {
            caches: vec![row],
            registries: vec![registry],
            sums: Sums {
                nodes: BTreeMap::from([(None, 1)]),
                ..Sums::default()
            },
        }));
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seen = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(seen) = seen else { return Ok(()) };
        caches(&seen.caches, &mut encoder)?;
        registries(&seen.registries, &mut encoder)?;
        sums(&seen.sums, &mut encoder)
    }
}

/// Encodes one gauge with many series.
fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, unit, help): (&str, Option<Unit>, &str),
    series: impl IntoIterator<Item = ([(&'static str, String); N], i64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn of(row: &CacheRow, label: &'static str, value: &str) -> [(&'static str, String); 3] {
    [
        ("namespace", row.key.namespace.to_string()),
        ("imagecache", row.key.name.to_string()),
        (label, value.to_owned()),
    ]
}

fn caches(rows: &[CacheRow], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let nodes = rows.iter().flat_map(|row| {
        let nodes = &row.nodes;
        [
            ("desired", nodes.desired),
            ("ready", nodes.ready),
            ("pulling", nodes.pulling),
            ("failed", nodes.failed),
            ("pending", nodes.pending),
            ("unreachable", nodes.unreachable),
        ]
        .map(|(state, count)| (of(row, "state", state), count))
    });
    let help = "Eligible nodes of an ImageCache by state; desired is the sum of the other states.";
    gauges(encoder, ("imagecache_nodes", None, help), nodes)?;
    let images = rows.iter().flat_map(|row| {
        let kept = row.images.kept.unwrap_or_default();
        [
            ("desired", row.images.desired),
            ("ready", row.images.ready),
            ("kept", kept.in_use + kept.pinned + kept.shared),
        ]
        .map(|(state, count)| (of(row, "state", state), count))
    });
    let help = "Pairs of node and image by state: desired, ready, and kept although removal was requested.";
    gauges(encoder, ("imagecache_images", None, help), images)?;
    let conditions = rows.iter().flat_map(|row| {
        let TrueConditions {
            ready,
            progressing,
            degraded,
            reconciling,
            stalled,
        } = row.conditions;
        [
            ("Ready", ready),
            ("Progressing", progressing),
            ("Degraded", degraded),
            ("Reconciling", reconciling),
            ("Stalled", stalled),
        ]
        .map(|(condition, holds)| (of(row, "condition", condition), i64::from(holds)))
    });
    let help =
        "1 if the condition is True in the status of the ImageCache that was written last, else 0.";
    gauges(encoder, ("imagecache_condition", None, help), conditions)?;
    plain(rows, encoder)
}

/// Gauges with no label beside the name of the `ImageCache`.
fn plain(rows: &[CacheRow], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let bytes = rows.iter().map(|row| {
        let [namespace, imagecache, _] = of(row, "", "");
        ([namespace, imagecache], row.images.bytes)
    });
    let help = "Bytes that the images of an ImageCache take on their nodes, as the container runtimes count them.";
    gauges(
        encoder,
        ("imagecache_image", Some(Unit::Bytes), help),
        bytes,
    )?;
    let unmatched = rows.iter().map(|row| {
        let [namespace, imagecache, _] = of(row, "", "");
        let count = i64::try_from(row.lists_without_nodes).unwrap_or(i64::MAX);
        ([namespace, imagecache], count)
    });
    let help = "Lists of an ImageCache that no node has matched since they were written.";
    let name = "imagecache_lists_without_nodes";
    gauges(encoder, (name, None, help), unmatched)?;
    let refreshed = rows.iter().filter_map(|row| {
        let [namespace, imagecache, _] = of(row, "", "");
        Some(([namespace, imagecache], row.refreshed?.0))
    });
    let help = "Time of the last refresh of an ImageCache, in seconds since the epoch.";
    let name = "imagecache_last_refresh_timestamp";
    gauges(encoder, (name, Some(Unit::Seconds), help), refreshed)
}

fn registries(rows: &[RegistryRow], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    // Of those without a name of their own: the tightest budget, and the sum of what runs and waits.
    let mut known: BTreeMap<&str, (u32, u32, usize)> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.host.is_empty()) {
        let Budget { limit, used, long } = row.budget;
        let sum = known.entry(registry_label(&row.host));
        let sum = sum.or_insert((u32::MAX, 0, 0));
        *sum = (sum.0.min(limit), sum.1 + used + long, sum.2 + row.waiting);
    }
    let series = |value: fn(&(u32, u32, usize)) -> i64| {
        let series = |(host, sum): (&&str, &(u32, u32, usize))| {
            ([("registry", (*host).to_owned())], value(sum))
        };
        known.iter().map(series).collect::<Vec<_>>()
    };
    let help = "Maximum number of pulls from a registry that may run at the same time in the cluster; for other, the smallest of its registries.";
    let budgets = series(|sum| sum.0.into());
    gauges(encoder, ("registry_budget_pulls", None, help), budgets)?;
    let help = "Pulls from a registry that are running.";
    let running = series(|sum| sum.1.into());
    gauges(encoder, ("registry_running_pulls", None, help), running)?;
    let help = "Nodes whose pulls wait for the budget of a registry.";
    let waiting = series(|sum| i64::try_from(sum.2).unwrap_or(i64::MAX));
    gauges(encoder, ("registry_waiting_nodes", None, help), waiting)
}

fn sums(sums: &Sums, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let nodes = sums.nodes.iter().map(|(why, nodes)| {
        let state = why.map_or("eligible", |why| crate::debug::ineligible(why).0);
        ([("state", state.to_owned())], count(*nodes))
    });
    let help = "Nodes by state: eligible, or the reason why a node is not eligible.";
    gauges(encoder, ("nodes", None, help), nodes)?;
    let help = "Nodes that should have a puller but have none that answers.";
    let metric =
        encoder.encode_descriptor("nodes_without_puller", help, None, MetricType::Gauge)?;
    ConstGauge::new(count(sums.silent)).encode(metric)?;
    let help =
        "Nodes that wait for images of ImageCaches with nodeGate Required before pods may come.";
    let metric = encoder.encode_descriptor("held_nodes", help, None, MetricType::Gauge)?;
    ConstGauge::new(count(sums.held)).encode(metric)?;
    let batches = [
        ("pull", BatchKind::Pull),
        ("remove", BatchKind::Remove),
        ("check", BatchKind::Check),
    ]
    .map(|(work, kind)| {
        let batches = sums.batches.get(&kind).copied().unwrap_or_default();
        ([("work", work.to_owned())], count(batches))
    });
    let help = "gRPC calls to pullers in flight, by kind of work.";
    gauges(encoder, ("batches", None, help), batches)?;
    let lost = ConstCounter::new(sums.lost);
    let help = "Images that disappeared from nodes although an ImageCache desired them, for example by the kubelet's garbage collection.";
    let metric = encoder.encode_descriptor("images_lost", help, None, MetricType::Counter)?;
    lost.encode(metric)?;
    peers(&sums.peers, encoder)
}

fn peers(sums: &PeerSums, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let PeerSums {
        waiting,
        seeding,
        taking,
        serving,
        moved,
    } = sums;
    let nodes = [
        ("waiting", waiting),
        ("seeding", seeding),
        ("taking", taking),
        ("serving", serving),
    ]
    .map(|(role, nodes)| {
        let nodes = i64::try_from(*nodes).unwrap_or(i64::MAX);
        ([("role", role.to_owned())], nodes)
    });
    let help = "Nodes that wait for an image of another node, fetch one for others (seeding), take one from others, or hand one on (serving).";
    gauges(encoder, ("peer_nodes", None, help), nodes)?;
    let help = "Bytes of compressed layers that ended pulls moved, by source: registry, peers, and wasted for bytes of peers that were of no use.";
    let mut metric =
        encoder.encode_descriptor("layer", help, Some(&Unit::Bytes), MetricType::Counter)?;
    for (source, bytes) in [
        ("registry", moved.registry),
        ("peers", moved.peers),
        ("wasted", moved.wasted),
    ] {
        ConstCounter::new(bytes).encode(metric.encode_family(&[("source", source)])?)?;
    }
    Ok(())
}
