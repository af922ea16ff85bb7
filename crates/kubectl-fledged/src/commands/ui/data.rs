//! What the page reads, made from the answers of the controller. Pure but for the stream.

use std::{convert::Infallible, time::Duration};

use axum::response::sse::Event;
use futures::{Stream, stream};
use kubefledged_proto::debug::{
    self, CacheSummary, ListRegistriesResponse, WatchProgressRequest, WatchProgressResponse,
};
use serde::Serialize;
use tonic::Streaming;

use crate::{access::controller, commands::watch::Step};

/// Namespace and name of each `ImageCache`.
pub fn names(caches: &[CacheSummary]) -> Vec<String> {
    let names = caches.iter();
    names
        .map(|cache| format!("{}/{}", cache.namespace, cache.name))
        .collect()
}

/// The matrix with one letter for each state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matrix {
    images: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    node: String,
    states: String,
}

impl Matrix {
    /// From the controller's.
    pub fn of(matrix: controller::Matrix) -> Self {
        let rows = matrix.rows.into_iter().map(|(node, states)| Row {
            node,
            states: states.iter().map(|state| state.letter()).collect(),
        });
        Self {
            images: matrix.images,
            rows: rows.collect(),
        }
    }
}

/// Registries, and what pulls moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registries {
    rows: Vec<Registry>,
    moved: Moved,
}

/// Bytes of layers of ended pulls, by source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Moved {
    peers: u64,
    registry: u64,
    wasted: u64,
}

impl Registries {
    /// From the controller's.
    pub fn of(list: &ListRegistriesResponse) -> Self {
        let moved = list.moved.unwrap_or_default();
        Self {
            rows: list.registries.iter().map(Registry::of).collect(),
            moved: Moved {
                peers: moved.peers,
                registry: moved.registry,
                wasted: moved.wasted,
            },
        }
    }
}

/// A registry and its budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    host: String,
    in_flight: u32,
    budget: u32,
    waiting_nodes: u32,
    /// Seconds since it last answered 429.
    limited_seconds: Option<i64>,
}

impl Registry {
    /// From the controller's.
    pub fn of(registry: &debug::Registry) -> Self {
        Self {
            host: registry.host.clone(),
            in_flight: registry.in_flight,
            budget: registry.budget,
            waiting_nodes: registry.waiting_nodes,
            limited_seconds: registry.last_rate_limited.map(|time| time.seconds),
        }
    }
}

/// The request for the changes of one `ImageCache`.
pub fn watched(namespace: String, name: String) -> WatchProgressRequest {
    WatchProgressRequest {
        namespace,
        name,
        interval: Duration::from_millis(500).try_into().ok(),
        until_settled: false,
        bytes: true,
    }
}

/// Each message as one event. The stream ends when the connection to the leader breaks; the browser then asks again.
pub fn steps(
    stream: Streaming<WatchProgressResponse>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((stream, Step::default()), async |(mut stream, mut step)| {
        let message = stream.message().await.ok().flatten()?;
        step.take(message);
        let event = Event::default().json_data(&step).unwrap_or_default();
        Some((Ok(event), (stream, step)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::states::Shown;

    #[test]
    fn a_row_of_the_matrix_is_a_text_of_letters() {
        let matrix = controller::Matrix {
            images: vec!["a:1".to_owned(), "b:1".to_owned()],
            rows: vec![("n1".to_owned(), vec![Shown::Ready, Shown::Failed])],
        };
        let json = serde_json::to_string(&Matrix::of(matrix)).expect("JSON");
        assert_eq!(
            json,
            r##"{"images":["a:1","b:1"],"rows":[{"node":"n1","states":"#F"}]}"##
        );
    }
}
