//! Why nodes lack images, in a sentence: `2 of 48 nodes lack registry.example/web:1.3: ImageNotFound (n7, n12)`.

use std::{collections::BTreeMap, fmt};

use crate::{model::node::Node, vocabulary::Ineligible};

/// How many nodes a sentence names.
const NAMED: usize = 3;

/// Nodes that have something in common.
#[derive(Default)]
pub struct Group<'a> {
    count: usize,
    first: Vec<&'a str>,
    /// The highest fill level of an image file system among them, in per cent.
    fullest: Option<u8>,
}

impl<'a> Group<'a> {
    /// Adds a node.
    pub fn note(&mut self, node: &'a Node) {
        self.count += 1;
        self.fullest = self.fullest.max(node.runtime.used_percent());
        if self.first.len() < NAMED {
            self.first.push(node.hostname());
        }
    }

    /// The share of all nodes: "2 of 48 nodes".
    fn of(&self, nodes: i64) -> String {
        format!("{} of {}", self.count, plural(nodes, "node"))
    }
}

/// The first nodes by name, and whether there are more.
impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.count > self.first.len() {
            ", …"
        } else {
            ""
        };
        write!(f, "{}{more}", self.first.join(", "))
    }
}

/// Why images are absent from nodes.
#[derive(Default)]
pub struct Causes<'a> {
    /// Nodes that lack an image, by image and reason.
    pub lacks: BTreeMap<(&'a str, &'a str), Group<'a>>,
    /// Nodes whose puller does not answer.
    pub silent: Group<'a>,
    /// Nodes that are unfit for a moment.
    pub unfit: Group<'a>,
    /// Nodes that lose images.
    pub losing: Group<'a>,
}

impl Causes<'_> {
    /// The failure that most nodes have, of so many nodes; `None`: no pull failed.
    pub fn pulls(&self, nodes: i64) -> Option<String> {
        let mut lacks = self.lacks.iter();
        let mut worst = lacks.next()?;
        for next in lacks {
            if next.1.count > worst.1.count {
                worst = next;
            }
        }
        let ((image, reason), group) = worst;
        let lack = if group.count == 1 { "lacks" } else { "lack" };
        let more = match self.lacks.len() - 1 {
            0 => String::new(),
            more => format!("; {} in status.failures", plural(more, "more cause")),
        };
        let of = group.of(nodes);
        Some(format!("{of} {lack} {image}: {reason} ({group}){more}"))
    }

    /// Nodes whose puller does not answer; `None`: all answer.
    pub fn silence(&self, nodes: i64) -> Option<String> {
        let silent = &self.silent;
        let of = silent.of(nodes);
        let text = || {
            format!(
                "the puller of {of} does not answer ({silent}): see the DaemonSet kubefledged-puller"
            )
        };
        (silent.count > 0).then(text)
    }

    /// Nodes that are unfit for a moment; `None`: there are none.
    pub fn unfitness(&self) -> Option<String> {
        let unfit = &self.unfit;
        let text = || {
            format!(
                "{} not ready or tainted since the operation began ({unfit})",
                plural(unfit.count, "node")
            )
        };
        (unfit.count > 0).then(text)
    }

    /// Nodes that lose images; `None`: there are none.
    pub fn losses(&self, nodes: i64) -> Option<String> {
        let losing = &self.losing;
        let fill = losing
            .fullest
            .map(|percent| format!(", whose image file system is up to {percent} % full"));
        let text = || {
            format!(
                "{} lost images ({losing}){}: the kubelet's garbage collection removes images that no pod has used (imageMaximumGCAge, imageGCHighThresholdPercent); set spec.retention to Pinned or change the kubelet's configuration",
                losing.of(nodes),
                fill.unwrap_or_default()
            )
        };
        (losing.count > 0).then(text)
    }

    /// The first of all causes; `None`: nothing is known to be wrong.
    pub fn first(&self, nodes: i64) -> Option<String> {
        let pulls = self.pulls(nodes);
        pulls
            .or_else(|| self.silence(nodes))
            .or_else(|| self.unfitness())
    }
}

/// Why nodes that match are not eligible, with the first of them by name.
pub fn ineligible(groups: &BTreeMap<Ineligible, Group<'_>>) -> String {
    let kinds = groups.iter().map(|(why, group)| {
        let why = match why {
            Ineligible::NotReady => "not ready",
            Ineligible::Cordoned => "cordoned",
            Ineligible::Tainted => "with a taint for disk pressure, shutdown or removal",
            Ineligible::NoPullerPlanned => {
                "without a planned puller, because the pullers' DaemonSet does not select the node or does not tolerate its taints"
            }
            Ineligible::Unknown
            | Ineligible::Excluded
            | Ineligible::Virtual
            | Ineligible::OtherSystem => "barred",
        };
        format!("{} {why} ({group})", group.count)
    });
    let kinds: Vec<String> = kinds.collect();
    kinds.join("; ")
}

/// A number and a noun: "1 node", "2 nodes".
pub fn plural(count: impl fmt::Display, noun: &str) -> String {
    let count = count.to_string();
    let s = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{s}")
}
