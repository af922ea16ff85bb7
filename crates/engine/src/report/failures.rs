//! `status.failures`: at most a hundred entries, whatever the cluster's size. If there are more failures, it lists a
//! short sample: whoever describes the object wants to see what is wrong, not the same sentence of a hundred nodes.

use std::collections::BTreeMap;

use kubefledged_api_types::{
    Failure, ImageCacheStatus,
    status::{MAX_FAILURE_MESSAGE, MAX_FAILURES},
};

use super::causes::Causes;
use crate::{
    ids::{Index, NodeIdx},
    model::{Model, cache::Cache, node::Node, node_status::Flags},
    plan::{context::NodeView, pairs::Fault},
    vocabulary::{PullState, Tick},
};

/// How many nodes a sample lists for each image and reason.
const SAMPLE: usize = 3;

/// Failures that were found: the first of each image, and how many in all.
#[derive(Default)]
struct Found<'a> {
    by_image: BTreeMap<&'a str, Image<'a>>,
    total: usize,
    causes: Causes<'a>,
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

/// Lists the failures of a cache in its status, and returns why images are absent.
pub fn list<'a>(
    model: &'a Model,
    cache: &'a Cache,
    now: Tick,
    status: &mut ImageCacheStatus,
) -> Causes<'a> {
    let mut found = Found::default();
    for (idx, row) in cache.nodes.rows.iter().enumerate() {
        let unreachable = match row.state {
            PullState::NotDesired => continue,
            state => state == PullState::Unreachable,
        };
        let node = &model.nodes[NodeIdx::from_index(idx)];
        if unreachable {
            found.causes.silent.note(node);
        }
        if row.flags.has(Flags::UNFIT) {
            found.causes.unfit.note(node);
        }
        if row.flags.has(Flags::LOSING) {
            found.causes.losing.note(node);
        }
        if unreachable && found.total > 100 * row.desired as usize {
            // A zone with thousands of dead nodes: its first hundred nodes are enough for any sample.
            found.total += row.desired as usize;
        } else if row.failing > 0 || unreachable {
            of_node(model, cache, NodeIdx::from_index(idx), now, &mut found);
        }
    }
    for pending in cache.applied.pending.values() {
        for (node, failed) in &pending.failed {
            let text = || failed.message.clone();
            let node = &model.nodes[*node];
            found.note(&pending.reference, node, &failed.reason, text);
        }
    }
    let total = found.total;
    let causes = std::mem::take(&mut found.causes);
    if total > 0 {
        status.failure_count = i64::try_from(total).ok();
        status.failures = found.shown();
        let shown: usize = status.failures.values().map(Vec::len).sum();
        status.failures_truncated = (shown != total).then_some(true);
    }
    causes
}

fn of_node<'a>(model: &'a Model, cache: &'a Cache, idx: NodeIdx, now: Tick, found: &mut Found<'a>) {
    let view = NodeView::new(model, idx, now);
    let silent = cache.row(idx).state == PullState::Unreachable;
    for desired in &cache.set(idx).desired {
        let pair = view.pair(desired, silent);
        let Some(fault) = pair.fault else {
            continue;
        };
        if !silent && pair.is_missing() {
            let key = (&*desired.reference, fault.reason());
            found.causes.lacks.entry(key).or_default().note(view.node);
        }
        let text = || match fault {
            Fault::Pull(attempt) => with(&attempt.message, &bad_secrets(cache)),
            _ => fault.message().to_owned(),
        };
        found.note(&desired.reference, view.node, fault.reason(), text);
    }
}

fn bad_secrets(cache: &Cache) -> String {
    if cache.bad_secrets.is_empty() {
        return String::new();
    }
    let secrets = cache.bad_secrets.values().flatten();
    let secrets: Vec<String> = secrets
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    format!(" (tried without imagePullSecrets {})", secrets.join(", "))
}

/// A message with an end that is not cut off, although the message alone may be too long.
fn with(message: &str, end: &str) -> String {
    let end = cut(end, MAX_FAILURE_MESSAGE / 2);
    format!("{}{end}", cut(message, MAX_FAILURE_MESSAGE - end.len()))
}

/// At most [`MAX_FAILURES`] in all. Every image has one before any image has a second.
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
