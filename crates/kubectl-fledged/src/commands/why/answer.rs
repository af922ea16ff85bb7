//! Sentences, made from what is known of a node. Pure.

use std::{collections::BTreeMap, fmt, time::Duration};

use kubefledged_proto::debug::{Action, CacheNodeImage, ListWorkloadsResponse, PlannedStep};
use serde::Serialize;

use super::Facts;
use crate::{
    access::kubelet,
    output::{
        bad, command, good,
        quantities::{bytes, counted, short, some},
    },
    reasons::{About, explain},
    states::Shown,
};

/// Images that a sentence names.
const NAMED: usize = 3;
/// A registry that refused requests so long ago is no cause any more.
const LIMITED: Duration = Duration::from_secs(600);

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The node.
    pub node: String,
    /// Nothing that was asked for is missing, and nothing stays that should go.
    pub good: bool,
    /// Causes, the most general one first.
    pub sentences: Vec<Sentence>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// One cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sentence {
    /// The reason, in one word.
    pub reason: String,
    /// It in words.
    pub text: String,
    /// What the registry, the runtime or the controller said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// The command that helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// Answers why a node lacks images: all, or those whose name has this part.
pub fn answer(facts: &Facts, image: Option<&str>) -> Answer {
    let mut sentences: Vec<Sentence> = of_node(facts).into_iter().collect();
    let blocked = !sentences.is_empty();
    let asked = |name: &str| image.is_none_or(|part| name.contains(part));
    if !blocked {
        sentences.extend(of_pairs(facts, asked));
    }
    sentences.extend(of_removals(facts, asked));
    let pairs = || facts.pairs.iter().filter(|(_, _, pair)| asked(&pair.image));
    let stays = facts
        .steps
        .iter()
        .any(|step| asked(&step.image) && is_removal(step));
    let nothing = image.is_some() && pairs().next().is_none() && !stays;
    if let Some(image) = image.filter(|_| nothing && !blocked) {
        sentences.push(not_desired(facts, image));
    }
    let good = sentences.is_empty();
    Answer {
        node: facts.node.node.clone(),
        good,
        sentences,
        notes: notes(facts, image.is_some(), good),
    }
}

/// Why the node as a whole gets nothing.
fn of_node(facts: &Facts) -> Option<Sentence> {
    let node = &facts.node;
    let about = About {
        node: &node.node,
        installation: &facts.installation,
        ..About::default()
    };
    if !node.eligible {
        let explained = explain(&node.reason, &about);
        return Some(Sentence {
            reason: node.reason.clone(),
            text: format!("{} gets no images: {}", node.node, explained.cause),
            said: node.message.clone(),
            command: explained.next,
        });
    }
    let silent = node
        .puller_silent
        .and_then(|time| Duration::try_from(time).ok());
    let calls = node.puller.as_ref().map_or(0, |puller| puller.failed_calls);
    if node.puller.is_some() && calls == 0 {
        return None;
    }
    let explained = explain("NoPuller", &about);
    let since = silent.map_or_else(String::new, |time| format!(" (for {} now)", short(time)));
    let said = match calls {
        0 => String::new(),
        calls => format!("{} in a row failed", counted(calls as usize, "call")),
    };
    Some(Sentence {
        reason: "NoPuller".to_owned(),
        text: format!("{} gets no images: {}{since}", node.node, explained.cause),
        said,
        command: explained.next,
    })
}

/// One sentence for each cause, with all images that have it.
fn of_pairs(facts: &Facts, asked: impl Fn(&str) -> bool) -> Vec<Sentence> {
    let mut causes: BTreeMap<(Shown, &str, &str, &str), Vec<&CacheNodeImage>> = BTreeMap::new();
    for (namespace, name, pair) in &facts.pairs {
        let state = Shown::of(pair.state());
        let bad = state != Shown::Ready || !pair.reason.is_empty();
        if bad && state != Shown::Out && asked(&pair.image) {
            let cause = (
                state,
                namespace.as_str(),
                name.as_str(),
                pair.reason.as_str(),
            );
            causes.entry(cause).or_default().push(pair);
        }
    }
    let sentences = causes
        .into_iter()
        .map(|((state, namespace, name, reason), pairs)| {
            let about = About {
                node: &facts.node.node,
                image: &pairs[0].image,
                namespace,
                name,
                installation: &facts.installation,
            };
            let explained = explain(reason, &about);
            let images = some(pairs.iter().map(|pair| pair.image.as_str()), NAMED);
            let state = state.word();
            Sentence {
                reason: reason.to_owned(),
                text: format!(
                    "{} lacks {images} of {namespace}/{name} ({state}): {}{}",
                    facts.node.node,
                    explained.cause,
                    when(&pairs)
                ),
                said: said(facts, reason, &pairs),
                command: explained.next,
            }
        });
    sentences.collect()
}

/// When it is tried again.
fn when(pairs: &[&CacheNodeImage]) -> String {
    let next = pairs
        .iter()
        .filter_map(|pair| Duration::try_from(pair.next_attempt?).ok());
    let attempts = pairs.iter().map(|pair| pair.attempts).max().unwrap_or(0);
    let tried = match attempts {
        0 => String::new(),
        tries => format!("; tried {}", counted(tries as usize, "time")),
    };
    let next = next
        .min()
        .map(|next| format!("; next attempt in {}", short(next)));
    tried + &next.unwrap_or_default()
}

fn said(facts: &Facts, reason: &str, pairs: &[&CacheNodeImage]) -> String {
    let mut said = pairs[0].message.clone();
    if !matches!(reason, "RateLimited" | "RegistryBudget" | "BackOff") {
        return said;
    }
    for registry in &facts.registries {
        let limited = registry
            .last_rate_limited
            .and_then(|time| Duration::try_from(time).ok());
        if let Some(time) = limited.filter(|time| *time < LIMITED)
            && pairs
                .iter()
                .any(|pair| pair.image.starts_with(&registry.host))
        {
            let budget = counted(registry.budget as usize, "pull");
            said = format!(
                "{said}; {} answered 429 {} ago, and {budget} may run at the same time",
                registry.host,
                short(time)
            );
        }
    }
    said
}

/// Is the step about an image that was to be removed and is still there?
fn is_removal(step: &PlannedStep) -> bool {
    let kept = [
        "InUse",
        "Pinned",
        "SharedImage",
        "NotPulled",
        "ErrImageRemove",
    ];
    kept.contains(&&*step.reason) || step.action() == Action::Remove
}

fn of_removals(facts: &Facts, asked: impl Fn(&str) -> bool) -> Vec<Sentence> {
    let removals = facts
        .steps
        .iter()
        .filter(|step| is_removal(step) && asked(&step.image));
    let sentence = |step: &PlannedStep| {
        let about = About {
            node: &step.node,
            image: &step.image,
            namespace: &step.namespace,
            name: &step.name,
            installation: &facts.installation,
        };
        let explained = explain(&step.reason, &about);
        let (image, namespace, name) = (&step.image, &step.namespace, &step.name);
        Sentence {
            reason: step.reason.clone(),
            text: format!(
                "{image} of {namespace}/{name} is still on {}: {}",
                step.node, explained.cause
            ),
            said: String::new(),
            command: explained.next,
        }
    };
    removals.map(sentence).collect()
}

fn not_desired(facts: &Facts, image: &str) -> Sentence {
    let unselected = facts
        .node
        .caches
        .iter()
        .find(|cache| cache.reason == "NotSelected");
    let about = About {
        node: &facts.node.node,
        ..About::default()
    };
    let hint = unselected.map(|_| explain("NotSelected", &about));
    Sentence {
        reason: "NotDesired".to_owned(),
        text: format!(
            "No ImageCache desires an image called {image} on {}",
            facts.node.node
        ),
        said: hint.as_ref().map_or_else(String::new, |_| {
            "An ImageCache that does not select the node may: compare their labels".to_owned()
        }),
        command: hint.and_then(|hint| hint.next),
    }
}

fn notes(facts: &Facts, of_image: bool, good: bool) -> Vec<String> {
    let node = &facts.node.node;
    let mut notes = Vec::new();
    if good && !of_image {
        let desired: u32 = facts
            .node
            .caches
            .iter()
            .map(|cache| cache.desired_images)
            .sum();
        let images = counted(desired as usize, "image");
        let size = bytes(facts.node.size_bytes);
        notes.push(format!(
            "{node} holds all of the {images} that ImageCaches desire there ({size})"
        ));
    }
    if good && of_image {
        notes.push(format!("{node} holds it"));
        notes.push(verification(facts.verification.as_deref()));
    }
    notes.extend(facts.workloads.iter().filter_map(wanted_by));
    let Some(health) = &facts.health else {
        return notes;
    };
    let (disk, runtime) = (&health.disk, &health.runtime);
    if !runtime.answers {
        notes.push(format!(
            "The container runtime of {node} does not answer: {}",
            runtime.message
        ));
    }
    let named = format!("{node} runs {} {}", runtime.runtime, runtime.version);
    if disk.refuses_pulls {
        notes.push(format!("No pull begins on {node}: {}", disk.message));
    } else if disk.capacity_bytes > 0 {
        let (used, free) = (disk.used_percent, bytes(disk.available_bytes));
        notes.push(format!(
            "{named}; its image file system is {used} % full, {free} are free"
        ));
    } else if runtime.answers {
        notes.push(named);
    }
    notes
}

/// Which workloads name an image.
fn wanted_by(found: &ListWorkloadsResponse) -> Option<String> {
    let image = &found.images.first()?.image;
    let named = found.images.iter().map(|row| {
        format!(
            "{} {}/{} ({} {})",
            row.kind, row.namespace, row.name, row.place, row.container
        )
    });
    let named: Vec<String> = named.collect();
    let named = some(named.iter().map(String::as_str), NAMED);
    Some(format!("{image} is named by {named}"))
}

/// What the kubelet asks of a pod that uses an image which it did not pull itself (KEP-2535).
fn verification(policy: Option<&str>) -> String {
    match policy {
        Some(policy) if kubelet::verifies(policy) => format!("The kubelet verifies images that it did not pull (KEP-2535, {policy}): a pod needs a pull secret of its own, and the registry must answer; with imagePullPolicy Never it fails"),
        Some(_) => "The kubelet lets every pod use it without a pull secret, unless the pod's imagePullPolicy is Always".to_owned(),
        None => "If a pod still waits for it: its imagePullPolicy is Always, or the kubelet's imagePullCredentialsVerificationPolicy asks for a pull secret (KEP-2535, docs/security.md)".to_owned(),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sentence in &self.sentences {
            writeln!(f, "{}.", sentence.text)?;
            if !sentence.said.is_empty() {
                writeln!(f, "  {}: {}", bad(&sentence.reason), sentence.said)?;
            }
            if let Some(next) = &sentence.command {
                writeln!(f, "  {}", command(next))?;
            }
        }
        for note in &self.notes {
            let note = if self.good { good(note) } else { note.clone() };
            writeln!(f, "{note}.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
