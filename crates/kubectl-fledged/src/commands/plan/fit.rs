//! What every node would pull, and whether it has the room. Pure. The rule is the puller's own: what arrives lies on the
//! disk twice, compressed and unpacked, and the watermark must not be crossed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kubefledged_proto::debug::SpecNode;
use kubefledged_queue::{Bytes, Disk, full, lacks_room};
use serde::Serialize;

use super::registry::Sizes;
use crate::{
    exit::Exit,
    output::{
        columns,
        quantities::{bytes, counted},
    },
};

/// Nodes that have a line; of more, those with trouble come first.
const MOST_LINES: usize = 50;

/// The whole plan.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    nodes: Vec<Line>,
    /// Bytes of all nodes together.
    bytes: u64,
    /// Nodes that do not get everything they lack.
    does_not_fit: usize,
    /// What could not be found out, in sentences.
    pub unknown: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    node: String,
    missing: Vec<String>,
    held: usize,
    /// Bytes that it would pull, compressed, as the registry counts them; at least so many if some size is not known.
    bytes: u64,
    /// What it would pull is known.
    known: bool,
    /// Available bytes of its disk; `None`: it does not tell.
    available: Option<u64>,
    /// The puller's sentence if it has no room; empty: it has.
    no_room: String,
    /// Why it gets nothing now; empty: it gets what it lacks.
    gets_nothing: String,
}

impl Plan {
    /// The exit code: something does not fit, or is not known, or all is well.
    pub fn exit(&self) -> Exit {
        match () {
            () if self.does_not_fit > 0 => Exit::NoRoom,
            () if !self.unknown.is_empty() || self.nodes.is_empty() => Exit::NotReady,
            () => Exit::Good,
        }
    }
}

/// Makes the plan.
pub fn plan(nodes: &[SpecNode], sizes: &Sizes) -> Plan {
    let held = sizes_on_nodes(nodes);
    let mut unknown = BTreeSet::new();
    let mut lines: Vec<Line> = nodes
        .iter()
        .map(|node| line(node, sizes, &held, &mut unknown))
        .collect();
    lines.sort_by(|one, other| {
        other
            .trouble()
            .cmp(&one.trouble())
            .then_with(|| one.node.cmp(&other.node))
    });
    if lines.is_empty() {
        unknown.insert("No node matches any list: nothing would be pulled.".to_owned());
    }
    Plan {
        bytes: lines.iter().map(|line| line.bytes).sum(),
        does_not_fit: lines.iter().filter(|line| !line.no_room.is_empty()).count(),
        nodes: lines,
        unknown: unknown.into_iter().collect(),
    }
}

/// Sizes as runtimes tell them: containerd counts compressed layers.
fn sizes_on_nodes(nodes: &[SpecNode]) -> BTreeMap<&str, u64> {
    let held = nodes.iter().flat_map(|node| &node.held);
    let known = held.filter(|held| held.size_bytes > 0);
    known
        .map(|held| (held.image.as_str(), held.size_bytes))
        .collect()
}

fn line(
    node: &SpecNode,
    sizes: &Sizes,
    held: &BTreeMap<&str, u64>,
    unknown: &mut BTreeSet<String>,
) -> Line {
    let of = |image: &str| sizes.get(&(image.to_owned(), node.architecture.clone()));
    // Layers of images that the node holds need no pull, and what two images share is pulled once.
    let here = node
        .held
        .iter()
        .filter_map(|held| of(&held.image)?.as_ref().ok());
    let mut here: BTreeSet<&str> = here
        .flat_map(|layers| layers.keys().map(String::as_str))
        .collect();
    let (mut bytes, mut known) = (0_u64, node.unknown.is_empty());
    for image in &node.missing {
        match of(image) {
            Some(Ok(layers)) => {
                let new = layers.iter().filter(|(digest, _)| here.insert(digest));
                bytes += new.map(|(_, size)| size).sum::<u64>();
            }
            other => {
                let why = other.and_then(|asked| asked.as_ref().err());
                let why = why.map_or("it was not asked for", String::as_str);
                if let Some(size) = held.get(image.as_str()) {
                    bytes += size;
                } else {
                    known = false;
                    unknown.insert(format!("The size of {image} is not known: {why}"));
                }
            }
        }
    }
    if node.eligible && !node.unknown.is_empty() {
        unknown.insert(format!(
            "What {} holds is not known: {}",
            node.node, node.unknown
        ));
    }
    let gets_nothing = node.reason.clone();
    Line {
        node: node.node.clone(),
        missing: node.missing.clone(),
        held: node.held.len(),
        bytes: if gets_nothing.is_empty() { bytes } else { 0 },
        known,
        available: (node.capacity_bytes > 0).then_some(node.available_bytes),
        no_room: if gets_nothing.is_empty() {
            no_room(node, bytes)
        } else {
            String::new()
        },
        gets_nothing,
    }
}

/// The puller's sentence, if it would not pull so much.
fn no_room(node: &SpecNode, bytes: u64) -> String {
    let watermark = u8::try_from(node.watermark_percent).unwrap_or(100);
    if node.capacity_bytes == 0 || bytes == 0 {
        return String::new();
    }
    let disk = Disk {
        capacity: node.capacity_bytes,
        available: node.available_bytes,
        ..Disk::default()
    };
    let pull = Bytes {
        done: 0,
        total: bytes,
        active: false,
    };
    // Without a watermark the disk itself is the limit.
    let limit = if watermark == 0 { 100 } else { watermark };
    let above = if watermark == 0 {
        None
    } else {
        full(disk, watermark)
    };
    above
        .or_else(|| lacks_room(disk, limit, pull, 0))
        .unwrap_or_default()
}

impl Line {
    fn trouble(&self) -> (bool, bool, u64) {
        (
            !self.no_room.is_empty(),
            !self.gets_nothing.is_empty(),
            self.bytes,
        )
    }

    /// What it would pull. A size that is not known is none.
    fn pulls(&self) -> String {
        match (self.known, self.bytes) {
            (true, known) => bytes(known),
            (false, 0) => "?".to_owned(),
            (false, some) => format!("> {}", bytes(some)),
        }
    }

    fn cells(&self) -> Vec<String> {
        let verdict = match (self.no_room.is_empty(), self.gets_nothing.is_empty()) {
            (false, _) => format!("does not fit: {}", self.no_room),
            (true, false) => format!("gets nothing now: {}", self.gets_nothing),
            (true, true) if self.missing.is_empty() => "holds everything".to_owned(),
            (true, true) if !self.known => "not known".to_owned(),
            (true, true) if self.available.is_none() => "the disk is not known".to_owned(),
            (true, true) => "fits".to_owned(),
        };
        vec![
            self.node.clone(),
            format!("{}/{}", self.missing.len(), self.missing.len() + self.held),
            self.pulls(),
            self.available.map_or_else(|| "-".to_owned(), bytes),
            verdict,
        ]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.nodes.iter().take(MOST_LINES).map(Line::cells);
        write!(
            f,
            "{}",
            columns(&["NODE", "MISSING", "PULLS", "FREE", "VERDICT"], lines)
        )?;
        let more = self.nodes.len().saturating_sub(MOST_LINES);
        if more > 0 {
            writeln!(f, "{}, none of them worse", counted(more, "more node"))?;
        }
        let pulling = self.nodes.iter();
        let pulling =
            pulling.filter(|line| !line.missing.is_empty() && line.gets_nothing.is_empty());
        let pulling: Vec<&Line> = pulling.collect();
        let all = match (pulling.iter().all(|line| line.known), self.bytes) {
            (true, known) => bytes(known),
            (false, 0) => "images of unknown size".to_owned(),
            (false, some) => format!("more than {}", bytes(some)),
        };
        writeln!(
            f,
            "{} would pull {all} in all; {} of them lack the room.",
            counted(pulling.len(), "node"),
            self.does_not_fit
        )
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_proto::debug::HeldImage;

    use super::*;

    const MB: u64 = 1_000_000;

    fn node(name: &str, missing: &[&str]) -> SpecNode {
        SpecNode {
            node: name.to_owned(),
            eligible: true,
            architecture: "amd64".to_owned(),
            missing: missing.iter().map(ToString::to_string).collect(),
            capacity_bytes: 1000 * MB,
            available_bytes: 700 * MB,
            watermark_percent: 80,
            ..SpecNode::default()
        }
    }

    fn sizes() -> Sizes {
        let image = |name: &str, layers: &[(&str, u64)]| {
            let layers = layers
                .iter()
                .map(|(digest, size)| ((*digest).to_owned(), *size));
            ((name.to_owned(), "amd64".to_owned()), Ok(layers.collect()))
        };
        [
            image("a:1", &[("base", 50 * MB), ("a", 10 * MB)]),
            image("b:1", &[("base", 50 * MB), ("b", 20 * MB)]),
            image("big:1", &[("big", 300 * MB)]),
        ]
        .into()
    }

    #[test]
    fn a_shared_layer_is_pulled_once_and_not_at_all_where_it_is_present() {
        let mut holding = node("n2", &["b:1"]);
        holding.held = vec![HeldImage {
            image: "a:1".to_owned(),
            size_bytes: 60 * MB,
        }];
        let plan = plan(&[node("n1", &["a:1", "b:1"]), holding], &sizes());
        let expected = "\
NODE   MISSING   PULLS      FREE        VERDICT
n1     2/2       80.00 MB   700.00 MB   fits
n2     1/2       20.00 MB   700.00 MB   fits
2 nodes would pull 100.00 MB in all; 0 of them lack the room.
";
        assert_eq!(plan.to_string(), expected);
        assert_eq!(plan.exit(), Exit::Good);
    }

    #[test]
    fn an_image_that_needs_more_than_the_watermark_leaves_does_not_fit() {
        let plan = plan(&[node("n1", &["big:1"])], &sizes());
        assert_eq!(plan.exit(), Exit::NoRoom);
        assert!(
            plan.to_string()
                .contains("does not fit: the image does not fit: it needs at least 572 MiB more")
        );
    }

    #[test]
    fn a_size_that_no_registry_tells_is_taken_from_a_node_or_told_as_unknown() {
        let mut holding = node("n2", &[]);
        holding.held = vec![HeldImage {
            image: "c:1".to_owned(),
            size_bytes: 30 * MB,
        }];
        let mut sizes = sizes();
        sizes.insert(
            ("d:1".to_owned(), "amd64".to_owned()),
            Err("unauthorized".to_owned()),
        );
        let plan = plan(&[node("n1", &["c:1", "d:1"]), holding], &sizes);
        assert_eq!(plan.bytes, 30 * MB);
        assert_eq!(plan.unknown, ["The size of d:1 is not known: unauthorized"]);
        assert_eq!(plan.exit(), Exit::NotReady);
        let said = plan.to_string();
        assert!(said.contains("> 30.00 MB"), "{said}");
        assert!(
            said.contains("1 node would pull more than 30.00 MB in all"),
            "{said}"
        );

        let said = super::plan(&[node("n1", &["d:1"])], &sizes).to_string();
        assert!(said.contains("1/1"), "{said}");
        assert!(said.contains(" ? "), "{said}");
        assert!(
            said.contains("1 node would pull images of unknown size in all"),
            "{said}"
        );
    }

    #[test]
    fn a_cordoned_node_pulls_nothing_now() {
        let mut cordoned = node("n1", &["big:1"]);
        cordoned.eligible = false;
        cordoned.reason = "Cordoned".to_owned();
        let plan = plan(&[cordoned], &sizes());
        assert_eq!((plan.bytes, plan.exit()), (0, Exit::Good));
        assert!(plan.to_string().contains("gets nothing now: Cordoned"));
    }
}
