//! Pages over all nodes: their sums, the matrix of one `ImageCache`, and what a spec would mean.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, stream};
use kubefledged_api_types::{ImageCacheSpec, validation};
use kubefledged_engine::{
    CacheKey,
    view::{MOST_ROWS, NodeRow, PairQuery, PairRow, SpecRow},
};
use kubefledged_proto::debug::{
    HeldImage, MatrixRow, NodeSummary, PlanSpecResponse, SpecNode, State, StreamMatrixResponse,
};
use tonic::Status;

use super::{Answers, Debug, no_cache, rows, send, words};
use crate::effects::queries::{Holdings, PullerQueries};

/// Questions to pullers at the same time.
const AT_ONCE: usize = 64;

/// A node's row of [`NodeSummary`].
pub fn node(row: &NodeRow) -> NodeSummary {
    NodeSummary {
        node: row.node.to_string(),
        eligible: row.eligibility.is_ok(),
        reason: ineligible(row.eligibility.err()),
        puller: row.puller,
        failed_calls: row.failed_calls,
        puller_silent: row.silent.and_then(rows::duration),
        state: rows::state(row.state).into(),
        desired_images: rows::count(row.desired),
        ready_images: rows::count(row.present),
        failed_images: rows::count(row.failed),
        size_bytes: row.bytes,
    }
}

fn ineligible(why: Option<kubefledged_engine::Ineligible>) -> String {
    why.map_or_else(String::new, |why| words::ineligible(why).0.to_owned())
}

/// Parses the spec of a request, and validates it as the webhook does.
#[allow(clippy::result_large_err)] // tonic's own error
pub fn spec(json: &str) -> Result<ImageCacheSpec, Status> {
    let spec: ImageCacheSpec = serde_json::from_str(json)
        .map_err(|error| Status::invalid_argument(format!("spec: {error}")))?;
    match &validation::violations(&spec)[..] {
        [] => Ok(spec),
        [first, ..] => Err(Status::invalid_argument(format!("spec: {first}"))),
    }
}

impl Debug {
    /// Sends the matrix of a cache, page by page.
    pub(super) async fn stream_matrix(
        &self,
        cache: CacheKey,
        answers: &Answers<StreamMatrixResponse>,
    ) -> Result<(), Status> {
        let images = self.desired(&cache).await?;
        let first = StreamMatrixResponse {
            images: images.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
        };
        if !send(answers, first).await {
            return Ok(());
        }
        let columns: HashMap<Arc<str>, usize> = images.into_iter().zip(0..).collect();
        let query = Arc::new(PairQuery {
            cache,
            node: None,
            image: None,
            states: Vec::new(),
        });
        let mut after = None;
        loop {
            let asked = query.clone();
            let page = self.look(move |engine, now| engine.view_pairs(now, &asked, after.as_ref()));
            let page = page.await?.ok_or_else(|| no_cache(&query.cache))?;
            let rows = matrix(&page.rows, &columns);
            let images = Vec::new();
            if !send(answers, StreamMatrixResponse { images, rows }).await {
                return Ok(());
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// All images of a cache, each once.
    async fn desired(&self, cache: &CacheKey) -> Result<Vec<Arc<str>>, Status> {
        let asked = cache.clone();
        let detail = self.look(move |engine, now| engine.view_cache(now, &asked));
        let detail = detail.await?.ok_or_else(|| no_cache(cache))?;
        let mut images: Vec<_> = detail
            .desired
            .into_iter()
            .map(|row| row.reference)
            .collect();
        images.sort();
        images.dedup();
        Ok(images)
    }

    /// Sends what a spec would mean for each node, and asks the pullers for it.
    pub(super) async fn stream_spec(
        &self,
        spec: ImageCacheSpec,
        answers: &Answers<PlanSpecResponse>,
    ) -> Result<(), Status> {
        let (spec, mut after) = (Arc::new(spec), None);
        loop {
            let asked = spec.clone();
            let page = self.look(move |engine, _| engine.view_spec(&asked, after.as_ref()));
            let page = page.await?;
            let nodes = stream::iter(page.rows).map(|row| ask(self.pullers.clone(), row));
            let mut nodes = nodes.buffered(AT_ONCE).ready_chunks(MOST_ROWS);
            while let Some(nodes) = nodes.next().await {
                if !send(answers, PlanSpecResponse { nodes }).await {
                    return Ok(());
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

/// Rows of the matrix. A page has all pairs of its nodes, a node's behind one another.
fn matrix(pairs: &[PairRow], columns: &HashMap<Arc<str>, usize>) -> Vec<MatrixRow> {
    let nodes = pairs.chunk_by(|one, other| one.node == other.node);
    let row = |pairs: &[PairRow]| {
        let mut states = vec![byte(State::Out); columns.len()];
        for pair in pairs {
            if let Some(at) = columns.get(&pair.reference) {
                states[*at] = byte(rows::state(pair.state));
            }
        }
        let node = pairs.first().map(|pair| pair.node.to_string());
        MatrixRow {
            node: node.unwrap_or_default(),
            states,
        }
    };
    nodes.map(row).collect()
}

fn byte(state: State) -> u8 {
    u8::try_from(i32::from(state)).unwrap_or(0)
}

async fn ask(pullers: Arc<dyn PullerQueries>, row: SpecRow) -> SpecNode {
    let images: Vec<Arc<str>> = row.images.iter().cloned().collect();
    let held = match &row.puller {
        Some(puller) => pullers.holdings(&row.node, puller, &images).await,
        None => Err("no puller is ready on it".into()),
    };
    let node = SpecNode {
        node: row.node.to_string(),
        eligible: row.eligibility.is_ok(),
        reason: ineligible(row.eligibility.err()),
        architecture: row.architecture.as_deref().unwrap_or_default().to_owned(),
        ..SpecNode::default()
    };
    match held {
        Ok(held) => holding(node, &images, &held),
        Err(why) => SpecNode {
            unknown: why.to_string(),
            missing: images.iter().map(ToString::to_string).collect(),
            ..node
        },
    }
}

fn holding(node: SpecNode, images: &[Arc<str>], held: &Holdings) -> SpecNode {
    let present: HashMap<usize, u64> = held.present.iter().copied().collect();
    let all = || images.iter().enumerate();
    let missing = all().filter(|(at, _)| !present.contains_key(at));
    let here = all().filter_map(|(at, image)| {
        Some(HeldImage {
            image: image.to_string(),
            size_bytes: *present.get(&at)?,
        })
    });
    let disk = held.disk.unwrap_or_default();
    SpecNode {
        missing: missing.map(|(_, image)| image.to_string()).collect(),
        held: here.collect(),
        capacity_bytes: disk.capacity_bytes,
        available_bytes: disk.available_bytes,
        watermark_percent: disk.watermark_percent,
        ..node
    }
}
