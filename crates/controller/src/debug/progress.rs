//! Counts, whenever they have changed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubefledged_engine::{
    CacheKey,
    view::{CacheRow, MOST_ROWS},
};
use kubefledged_proto::debug::{
    CacheSummary, PulledBytes, RunningPull, WatchProgressRequest, WatchProgressResponse,
};
use tonic::Status;

use super::{Answers, Debug, bytes::Meter, rows, send};

/// What was sent last.
pub struct Watch {
    only: Option<CacheKey>,
    until_settled: bool,
    sent: BTreeMap<CacheKey, CacheSummary>,
    /// Pairs that were ready, and when.
    ready: Option<(i64, Instant)>,
    /// Bytes of running pulls; `None`: nobody asked for them.
    meter: Option<Meter>,
    /// The bytes that were sent last.
    arrived: Arrived,
}

/// The part of a message about bytes.
type Arrived = (Option<PulledBytes>, Vec<RunningPull>);

impl Watch {
    pub fn new(only: Option<CacheKey>, request: &WatchProgressRequest) -> Self {
        Self {
            only,
            until_settled: request.until_settled,
            sent: BTreeMap::new(),
            ready: None,
            meter: request.bytes.then(Meter::default),
            arrived: Arrived::default(),
        }
    }

    /// What is new since the last look, in messages of bounded size.
    fn changes(
        &mut self,
        caches: &[CacheRow],
        arrived: Arrived,
        wall: i64,
        now: Instant,
    ) -> Vec<WatchProgressResponse> {
        let mut changed = Vec::new();
        for row in caches {
            let summary = rows::summary(row);
            if self.sent.get(&row.key) != Some(&summary) {
                changed.push(summary.clone());
                self.sent.insert(row.key.clone(), summary);
            }
        }
        let ready: i64 = caches.iter().map(|row| row.images.ready).sum();
        let desired: i64 = caches.iter().map(|row| row.images.desired).sum();
        let speed = self.ready.map_or(0.0, |(before, at)| {
            let seconds = now.duration_since(at).as_secs_f64();
            number(ready - before).max(0.0) / seconds.max(f64::EPSILON)
        });
        self.ready = Some((ready, now));
        let left = number(desired - ready);
        let remaining = (speed > 0.0 && left > 0.0)
            .then(|| Duration::try_from_secs_f64(left / speed).ok())
            .flatten();
        let bytes_arrived = arrived.1 != self.arrived.1;
        let message = |caches: &[CacheSummary]| WatchProgressResponse {
            time: Some(prost_types::Timestamp {
                seconds: wall,
                nanos: 0,
            }),
            caches: caches.to_vec(),
            images_per_second: speed,
            remaining: remaining.and_then(rows::duration),
            bytes: arrived.0,
            pulls: arrived.1.clone(),
        };
        let messages = if changed.is_empty() && bytes_arrived {
            vec![message(&[])]
        } else {
            changed.chunks(MOST_ROWS).map(message).collect()
        };
        self.arrived = arrived;
        messages
    }

    fn settled(&self, caches: &[CacheRow]) -> bool {
        let settled = |row: &CacheRow| {
            row.operation.is_none() && row.nodes.pulling == 0 && row.nodes.pending == 0
        };
        self.until_settled && caches.iter().all(settled)
    }
}

/// Counts of images are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn number(count: i64) -> f64 {
    count as f64
}

impl Debug {
    pub(super) async fn watch(
        &self,
        mut watch: Watch,
        interval: Duration,
        answers: &Answers<WatchProgressResponse>,
    ) -> Result<(), Status> {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = answers.closed() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let (caches, wall) = self.all_caches(watch.only.clone()).await?;
            let mut arrived = Arrived::default();
            if let Some(meter) = &mut watch.meter {
                let (bytes, pulls) = self.bytes(meter, watch.only.clone()).await?;
                arrived = (Some(bytes), pulls);
            }
            for message in watch.changes(&caches, arrived, wall, Instant::now()) {
                if !send(answers, message).await {
                    return Ok(());
                }
            }
            if watch.settled(&caches) {
                return Ok(());
            }
        }
    }

    async fn all_caches(&self, only: Option<CacheKey>) -> Result<(Vec<CacheRow>, i64), Status> {
        if let Some(only) = only {
            let asked = only.clone();
            let look = self.look(move |engine, now| (engine.view_row(&asked), now.wall.0));
            let (row, wall) = look.await?;
            let row = row.ok_or_else(|| super::no_cache(&only))?;
            return Ok((vec![row], wall));
        }
        let (mut caches, mut after) = (Vec::new(), None);
        loop {
            let look = self.look(move |engine, now| {
                let page = engine.view_caches(None, after.as_ref(), MOST_ROWS);
                (page, now.wall.0)
            });
            let (page, wall) = look.await?;
            caches.extend(page.rows);
            after = page.next;
            if after.is_none() {
                return Ok((caches, wall));
            }
        }
    }
}
