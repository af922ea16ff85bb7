//! `nodes`: all nodes with the sums of all `ImageCaches`.

use std::time::Duration;

use kubefledged_proto::debug::NodeSummary;
use serde::Serialize;

use crate::{
    access::{Access, Controller},
    args::Nodes,
    exit::{Exit, Failure},
    output::{
        Out, Row,
        quantities::{bytes, short},
    },
    states::Shown,
};

/// A node in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRow {
    node: String,
    state: Shown,
    /// Why it gets no images; empty: it gets some.
    reason: String,
    puller: String,
    ready_images: u32,
    desired_images: u32,
    failed_images: u32,
    bytes: u64,
}

impl Row for NodeRow {
    const HEAD: &'static [&'static str] = &[
        "NODE", "STATE", "REASON", "PULLER", "IMAGES", "FAILED", "SIZE",
    ];

    fn cells(&self) -> Vec<String> {
        let reason = if self.reason.is_empty() {
            "-"
        } else {
            &self.reason
        };
        vec![
            self.node.clone(),
            self.state.word().to_owned(),
            reason.to_owned(),
            self.puller.clone(),
            format!("{}/{}", self.ready_images, self.desired_images),
            self.failed_images.to_string(),
            bytes(self.bytes),
        ]
    }

    fn name(&self) -> String {
        format!("node/{}", self.node)
    }
}

/// Lists the nodes.
pub async fn run(access: &Access, out: Out, args: &Nodes) -> Result<Exit, Failure> {
    let mut controller = Controller::connect(access).await?;
    let nodes = controller.nodes().await?;
    let mut rows: Vec<NodeRow> = nodes.into_iter().map(row).collect();
    if args.unready {
        rows.retain(|row| {
            !(row.state == Shown::Ready || (row.reason.is_empty() && row.desired_images == 0))
        });
        rows.sort_by_key(|row| row.state);
    }
    out.rows(&rows)?;
    Ok(Exit::Good)
}

fn row(node: NodeSummary) -> NodeRow {
    let silent = node
        .puller_silent
        .and_then(|silent| Duration::try_from(silent).ok());
    let puller = match (node.puller, silent) {
        (true, None) if node.failed_calls == 0 => "ready".to_owned(),
        (true, None) => format!("{} calls failed", node.failed_calls),
        (_, Some(silent)) => format!("silent for {}", short(silent)),
        (false, None) => "none".to_owned(),
    };
    NodeRow {
        state: Shown::of(node.state()),
        node: node.node,
        reason: node.reason,
        puller,
        ready_images: node.ready_images,
        desired_images: node.desired_images,
        failed_images: node.failed_images,
        bytes: node.size_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_puller_that_is_silent_is_told_with_the_time() {
        let node = NodeSummary {
            node: "n2".to_owned(),
            eligible: true,
            puller_silent: Some(prost_types::Duration {
                seconds: 130,
                nanos: 0,
            }),
            desired_images: 3,
            ..NodeSummary::default()
        };
        let cells = row(node).cells();
        assert_eq!(cells[3], "silent for 2m10s");
        assert_eq!(cells[4], "0/3");
    }
}
