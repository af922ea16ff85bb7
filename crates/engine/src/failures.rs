//! `status.failures`: a hundred entries at most, whatever the cluster's size, spread over the images.
//! Where there are more they are a sample, and a short one: who describes the object wants to see what
//! is wrong and not the same sentence of a hundred nodes.

use std::collections::BTreeMap;

use kubefledged_api_types::{
    Failure, ImageCacheStatus,
    names::failure,
    status::{MAX_FAILURE_MESSAGE, MAX_FAILURES},
};

use crate::{
    Engine, Tick,
    cache::Cache,
    cell::CellState,
    node::{Node, NodeIdx},
};

/// What is said of every image of a node that does not answer.
pub(crate) const SILENT: &str =
    "the puller of this node does not answer: see the DaemonSet kubefledged-puller";

/// Nodes that a sample names of each image and reason.
const SAMPLE: usize = 3;

/// What was found: the first of each image, and how many in all.
#[derive(Default)]
struct Found<'a> {
    by_image: BTreeMap<&'a str, Image<'a>>,
    total: usize,
}

#[derive(Default)]
struct Image<'a> {
    first: Vec<Failure>,
    /// The first few of each reason.
    sample: Vec<Failure>,
    reasons: BTreeMap<&'a str, usize>,
}

impl<'a> Found<'a> {
    fn note(
        &mut self,
        image: &'a str,
        node: &Node,
        reason: &'a str,
        text: impl FnOnce() -> String,
    ) {
        self.total += 1;
        let image = self.by_image.entry(image).or_default();
        let same = image.reasons.entry(reason).or_default();
        *same += 1;
        let (first, sampled) = (self.total <= MAX_FAILURES, *same <= SAMPLE);
        if !first && !sampled {
            return;
        }
        let failure = Failure {
            node: node.hostname().to_owned(),
            reason: reason.to_owned(),
            message: cut(&text(), MAX_FAILURE_MESSAGE),
        };
        if sampled {
            image.sample.push(failure.clone());
        }
        if first {
            image.first.push(failure);
        }
    }

    /// All of them, if they are few enough.
    fn shown(self) -> BTreeMap<String, Vec<Failure>> {
        let all = self.total <= MAX_FAILURES;
        let lists = self.by_image.into_iter();
        let lists =
            lists.map(|(image, found)| (image, if all { found.first } else { found.sample }));
        spread(lists.collect())
    }
}

/// Lists them.
pub fn list(engine: &Engine, cache: &Cache, now: Tick, status: &mut ImageCacheStatus) {
    let mut found = Found::default();
    for (idx, cell) in cache.cells.iter().enumerate() {
        if cell.state == CellState::Out {
            continue;
        }
        if cell.state == CellState::Unreachable && found.total > 100 * cell.want as usize {
            // A dead zone of thousands of nodes: its first hundred are enough for any sample.
            found.total += cell.want as usize;
        } else if cell.failing > 0 || cell.state == CellState::Unreachable {
            of_node(engine, cache, idx, now, &mut found);
        }
    }
    for owed in cache.owed.values() {
        for (node, failed) in &owed.failed {
            let text = || failed.message.clone();
            found.note(&owed.reference, &engine.nodes[*node], &failed.reason, text);
        }
    }
    let total = found.total;
    if total > 0 {
        status.failure_count = i64::try_from(total).ok();
        status.failures = found.shown();
        let shown: usize = status.failures.values().map(Vec::len).sum();
        status.failures_truncated = (shown != total).then_some(true);
    }
}

fn of_node<'a>(
    engine: &'a Engine,
    cache: &'a Cache,
    idx: NodeIdx,
    now: Tick,
    found: &mut Found<'a>,
) {
    let node = &engine.nodes[idx];
    let unreachable = cache.cells[idx].state == CellState::Unreachable;
    let trouble = engine.names.scopes.trouble(cache.scope);
    let blamed = trouble.filter(|t| t.since.after(engine.settings.puller_grace) <= now);
    for want in &cache.pattern(idx).wants {
        let reference = &want.reference;
        if let Some(why) = &engine.names.images.get(want.image).invalid {
            found.note(reference, node, failure::INVALID_IMAGE_NAME, || why.clone());
        } else if unreachable {
            found.note(reference, node, failure::PULLER_UNAVAILABLE, || {
                SILENT.to_owned()
            });
        } else if let Some(attempt) = engine.failure(cache, idx, want) {
            let text = || with(&attempt.message, &bad_secrets(cache));
            found.note(reference, node, &attempt.reason, text);
        } else if let Some(trouble) = blamed.filter(|_| !node.looks.holds(want.image)) {
            let text = || trouble.message.clone();
            found.note(reference, node, failure::CREDENTIALS_UNAVAILABLE, text);
        }
    }
}

fn bad_secrets(cache: &Cache) -> String {
    if cache.bad_secrets.is_empty() {
        return String::new();
    }
    let secrets = cache.bad_secrets.iter();
    let secrets: Vec<String> = secrets
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    format!(" (tried without imagePullSecrets {})", secrets.join(", "))
}

/// A message that goes on with what must not be cut off: a runtime's message alone may be too long.
fn with(message: &str, end: &str) -> String {
    let end = cut(end, MAX_FAILURE_MESSAGE / 2);
    format!("{}{end}", cut(message, MAX_FAILURE_MESSAGE - end.len()))
}

/// At most [`MAX_FAILURES`] in all, one of each image before a second of any.
fn spread(found: BTreeMap<&str, Vec<Failure>>) -> BTreeMap<String, Vec<Failure>> {
    let mut left = MAX_FAILURES;
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    let longest = found.values().map(Vec::len).max().unwrap_or(0);
    for round in 0..longest {
        for (image, list) in &found {
            if left > 0 && list.len() > round {
                *taken.entry(image).or_default() += 1;
                left -= 1;
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(image, mut list)| {
            list.truncate(*taken.get(image)?);
            Some((image.to_owned(), list))
        })
        .collect()
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_has_a_first_failure_before_any_has_a_second() {
        let failure = || Failure {
            node: "n".into(),
            reason: "r".into(),
            message: "m".into(),
        };
        let names: Vec<String> = (0..60).map(|image| format!("i{image:02}")).collect();
        let found = names
            .iter()
            .map(|name| (name.as_str(), vec![failure(), failure()]));
        let shown = spread(found.collect());
        assert_eq!(shown.values().map(Vec::len).sum::<usize>(), MAX_FAILURES);
        assert_eq!(shown.len(), 60);
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        let cut = cut(&"é".repeat(200), MAX_FAILURE_MESSAGE);
        assert!(cut.len() <= MAX_FAILURE_MESSAGE && cut.ends_with('…'));
    }

    #[test]
    fn a_long_message_leaves_room_for_the_secrets_it_was_tried_without() {
        let end = " (tried without imagePullSecrets nowhere: not found)";
        let message = with(&"é".repeat(200), end);
        assert!(message.len() <= MAX_FAILURE_MESSAGE, "{message}");
        assert!(
            message.starts_with('é') && message.ends_with(end),
            "{message}"
        );
        assert_eq!(with("short", end), format!("short{end}"));
        let both = with(&"a".repeat(300), &"b".repeat(300));
        assert!(both.len() <= MAX_FAILURE_MESSAGE && both.contains('a') && both.contains('b'));
    }
}
