//! The screen, made from the object and from what the controller knows. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use kubefledged_api_types::{
    Failure as NodeFailure, Timestamp,
    conditions::{READY, STALLED},
    status::{KeptCounts, SourceStatus},
};
use kubefledged_proto::debug::CacheNodeImage;
use serde::Serialize;

use super::Inside;
use crate::{
    access::StoredCache,
    exit::Failure,
    output::{
        bad, columns, command, good,
        quantities::{between, counted, short, some},
    },
    reasons::{About, explain},
    states::Shown,
};

/// Nodes that a cause names.
const NAMED: usize = 3;

/// One `ImageCache` on one screen.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Screen {
    namespace: String,
    name: String,
    ready: bool,
    /// "purged" or "suspended": nothing is pulled, and that is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    resting: Option<&'static str>,
    /// Nodes and images, with their size.
    summary: String,
    operation: String,
    conditions: Vec<Condition>,
    causes: Vec<Cause>,
    slowest_nodes: Vec<Slow>,
    /// Workloads that name images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    /// What happens by itself.
    next: Vec<String>,
    /// Why something is not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    since: String,
    reason: String,
    message: String,
}

/// Why it is not ready, and the command that helps.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cause {
    /// The image; empty: the whole `ImageCache`.
    image: String,
    reason: String,
    sentence: String,
    /// What the registry, the runtime or the controller said.
    message: String,
    nodes: usize,
    command: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Slow {
    node: String,
    lacking: usize,
    desired: usize,
    /// The worst image in words.
    worst: String,
}

impl Screen {
    /// Is the `ImageCache` as it should be? One that is purged or suspended is, if that is done.
    pub fn is_good(&self) -> bool {
        self.ready
    }
}

/// Makes the screen.
pub fn screen(cache: &StoredCache, inside: &Result<Inside, Failure>, now: Timestamp) -> Screen {
    let status = &cache.status;
    let images = status.images.clone().unwrap_or_default();
    let nodes = status.nodes.unwrap_or_default();
    let size = Some(images.size.as_str()).filter(|size| !size.is_empty());
    let size = size.map_or_else(String::new, |size| format!(", {size}"));
    let resting = resting(cache);
    Screen {
        namespace: cache.namespace(),
        name: cache.name(),
        ready: cache.is_observed()
            && !cache.is(STALLED)
            && (cache.is(READY) || (resting.is_some() && status.completion_time.is_some())),
        resting,
        summary: format!(
            "{}/{} nodes, {}/{} images{size}",
            nodes.ready, nodes.desired, images.ready, images.desired
        ),
        operation: operation(cache, now),
        conditions: conditions(cache, now),
        causes: causes(cache),
        slowest_nodes: inside
            .as_ref()
            .map_or_else(|_| Vec::new(), |inside| slow(cache, inside)),
        sources: status.sources.iter().map(source).collect(),
        next: next(cache, inside.as_ref().ok()),
        note: inside
            .as_ref()
            .err()
            .map(|failure| format!("The slowest nodes and what is next are not shown: {failure}")),
    }
}

fn resting(cache: &StoredCache) -> Option<&'static str> {
    let status = &cache.status;
    let rests = cache.condition(READY).is_none() && !status.reason.is_empty();
    let word = if status.purge.is_some() {
        "purged"
    } else {
        "suspended"
    };
    rests.then_some(word)
}

/// What a source names, or why it is not read.
fn source(source: &SourceStatus) -> String {
    let field = format!("cacheSpec[{}].imagesFrom[{}]", source.list, source.source);
    let named = format!(
        "{field}: {} selected, which name {}",
        counted(usize::try_from(source.workloads).unwrap_or(0), "workload"),
        counted(usize::try_from(source.images).unwrap_or(0), "image")
    );
    match &*source.error {
        "" => named,
        error => format!("{named}; {error}"),
    }
}

fn operation(cache: &StoredCache, now: Timestamp) -> String {
    let status = &cache.status;
    if !cache.is_observed() {
        return "No controller has seen the newest spec yet".to_owned();
    }
    let took = match (status.start_time, status.completion_time) {
        (Some(start), Some(end)) => format!(
            ", {} ago, took {}",
            short(between(end, now)),
            short(between(start, end))
        ),
        (Some(start), None) => format!(" for {}", short(between(start, now))),
        _ => String::new(),
    };
    format!(
        "{} {}{took}: {}",
        status.reason, status.status, status.message
    )
}

fn conditions(cache: &StoredCache, now: Timestamp) -> Vec<Condition> {
    let conditions = cache.status.conditions.iter();
    let shown = conditions.map(|condition| Condition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        since: short(between(condition.last_transition_time, now)),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    });
    shown.collect()
}

/// Failures by image and reason, then conditions that no failure explains, then images that were kept.
fn causes(cache: &StoredCache) -> Vec<Cause> {
    let (namespace, name) = (cache.namespace(), cache.name());
    let about = |image, node| About {
        node,
        image,
        namespace: &namespace,
        name: &name,
        installation: "kube-fledged",
    };
    let mut causes = Vec::new();
    for (image, failures) in &cache.status.failures {
        let mut by_reason: BTreeMap<&str, Vec<&NodeFailure>> = BTreeMap::new();
        for failure in failures {
            by_reason.entry(&failure.reason).or_default().push(failure);
        }
        for (reason, failures) in by_reason {
            let explained = explain(reason, &about(image, &failures[0].node));
            let nodes = some(failures.iter().map(|failure| failure.node.as_str()), NAMED);
            causes.push(Cause {
                image: image.clone(),
                reason: reason.to_owned(),
                sentence: format!("{image} on {nodes}: {}", explained.cause),
                message: failures[0].message.clone(),
                nodes: failures.len(),
                command: explained.next,
            });
        }
    }
    let failing: BTreeSet<String> = causes.iter().map(|cause| cause.reason.clone()).collect();
    for condition in &cache.status.conditions {
        let bad = match condition.type_.as_str() {
            "Ready" => condition.status == "False",
            "Degraded" | "Stalled" => condition.status == "True",
            "Progressing" => matches!(&*condition.reason, "Throttled" | "WaitingForNodes"),
            _ => false,
        };
        let told = failing.contains(&condition.reason)
            || (!failing.is_empty()
                && matches!(&*condition.reason, "ImagesMissing" | "PullFailed"));
        let twice = causes.iter().any(|cause| cause.reason == condition.reason);
        if bad && !told && !twice {
            let explained = explain(&condition.reason, &about("", ""));
            causes.push(Cause {
                image: String::new(),
                reason: condition.reason.clone(),
                sentence: explained.cause.to_owned(),
                message: condition.message.clone(),
                nodes: 0,
                command: explained.next,
            });
        }
    }
    causes.extend(kept(cache));
    causes
}

/// Images that were to be removed and stayed.
fn kept(cache: &StoredCache) -> Option<Cause> {
    let KeptCounts {
        in_use,
        pinned,
        shared,
    } = cache.status.images.as_ref()?.kept?;
    let counts = [
        ("InUse", in_use),
        ("Pinned", pinned),
        ("SharedImage", shared),
    ];
    let (reason, _) = counts.into_iter().find(|(_, count)| *count > 0)?;
    let explained = explain(reason, &About::default());
    Some(Cause {
        image: String::new(),
        reason: reason.to_owned(),
        sentence: format!(
            "Of the images that were to be removed, {in_use} are in use, {pinned} pinned by somebody else and {shared} have another name: {}",
            explained.cause
        ),
        message: String::new(),
        nodes: 0,
        command: Some("kubectl fledged why NODE IMAGE # for one of them".to_owned()),
    })
}

fn slow(cache: &StoredCache, inside: &Inside) -> Vec<Slow> {
    let rows = inside.slowest.iter();
    let row = rows.map(|(node, lacking, desired, worst)| Slow {
        node: node.clone(),
        lacking: *lacking,
        desired: *desired,
        worst: worst
            .as_ref()
            .map_or_else(String::new, |pair| in_words(cache, pair)),
    });
    row.collect()
}

fn in_words(cache: &StoredCache, pair: &CacheNodeImage) -> String {
    let (namespace, name) = (cache.namespace(), cache.name());
    let about = About {
        node: &pair.node,
        image: &pair.image,
        namespace: &namespace,
        name: &name,
        installation: "",
    };
    let state = Shown::of(pair.state()).word();
    let mut text = format!("{}: {state}", pair.image);
    if !pair.reason.is_empty() {
        text = format!(
            "{text} ({}), {}",
            pair.reason,
            explain(&pair.reason, &about).cause
        );
    }
    if let Some(next) = seconds(pair.next_attempt.as_ref()) {
        text = format!("{text}; next attempt in {}", short(next));
    }
    text
}

fn next(cache: &StoredCache, inside: Option<&Inside>) -> Vec<String> {
    let mut next = Vec::new();
    let Some(inside) = inside else { return next };
    let pulling = inside
        .cache
        .summary
        .as_ref()
        .and_then(|summary| summary.nodes);
    if let Some(nodes) = pulling.filter(|nodes| nodes.pulling > 0) {
        let (name, namespace) = (cache.name(), cache.namespace());
        let nodes = counted(nodes.pulling as usize, "node");
        next.push(format!(
            "{nodes} are pulling now: kubectl fledged watch {name} -n {namespace}"
        ));
    }
    for removal in &inside.cache.pending_removals {
        let reason = explain(&removal.reason, &About::default());
        let kept = counted(removal.kept_nodes as usize, "node");
        if removal.kept_nodes > 0 {
            next.push(format!(
                "{} is to be removed and stays on {kept}: {}",
                removal.reference, reason.cause
            ));
        } else {
            next.push(format!("{} is being removed", removal.reference));
        }
    }
    for secret in &inside.cache.missing_secrets {
        next.push(format!("The pull secret {secret}; pulls go on without it"));
    }
    if resting(cache).is_none()
        && let Some(refresh) = seconds(inside.cache.next_refresh.as_ref())
    {
        next.push(format!("The next refresh is in {}", short(refresh)));
    }
    next
}

fn seconds(time: Option<&prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(*time?).ok()
}

impl fmt::Display for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match (self.ready, self.resting) {
            (true, resting) => good(resting.unwrap_or("ready")),
            (false, _) => bad("not ready"),
        };
        writeln!(
            f,
            "{}/{} is {word}: {}",
            self.namespace, self.name, self.summary
        )?;
        writeln!(f, "{}\n", self.operation)?;
        let conditions = self.conditions.iter().map(Condition::cells);
        let head = ["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"];
        write!(f, "{}", columns(&head, conditions))?;
        section(f, "Causes", &self.causes)?;
        section(f, "Slowest nodes", &self.slowest_nodes)?;
        let sources = self.sources.iter();
        let sources: Vec<String> = sources.map(|source| format!("  {source}.")).collect();
        section(f, "Workloads", &sources)?;
        let next: Vec<String> = self.next.iter().map(|next| format!("  {next}.")).collect();
        section(f, "Next", &next)?;
        match &self.note {
            Some(note) => writeln!(f, "\n{note}"),
            None => Ok(()),
        }
    }
}

/// A heading and its lines, if there are any.
fn section<T: fmt::Display>(f: &mut fmt::Formatter<'_>, title: &str, lines: &[T]) -> fmt::Result {
    if !lines.is_empty() {
        writeln!(f, "\n{title}")?;
    }
    lines.iter().try_for_each(|line| writeln!(f, "{line}"))
}

impl Condition {
    fn cells(&self) -> Vec<String> {
        let Self {
            type_,
            status,
            since,
            reason,
            message,
        } = self;
        [type_, status, since, reason, message]
            .map(Clone::clone)
            .to_vec()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}.", self.sentence)?;
        if !self.message.is_empty() {
            write!(f, "\n    {}: {}", self.reason, self.message)?;
        }
        match &self.command {
            Some(next) => write!(f, "\n    {}", command(next)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = counted(self.desired, "image");
        write!(
            f,
            "  {} lacks {} of {images}; {}",
            self.node, self.lacking, self.worst
        )
    }
}

#[cfg(test)]
mod tests;
