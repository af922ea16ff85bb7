//! What every reason of the controller means, in a sentence, and the command that helps next. The reasons are those of
//! `status.failures`, of the conditions and of the debug service (docs/debug.md, docs/imagecache.md); a test holds this
//! table against those documents.

mod table;

use table::{CACHE, NODE, REGISTRY, REMOVAL, WAITS};

/// What a reason is told about. A text may be empty where it is not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// The node.
    pub node: &'a str,
    /// Name of the image.
    pub image: &'a str,
    /// Namespace of the `ImageCache`.
    pub namespace: &'a str,
    /// Name of the `ImageCache`.
    pub name: &'a str,
    /// Namespace of kubefledged.
    pub installation: &'a str,
}

/// A reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The cause: the end of a sentence that begins with the image or the node.
    pub cause: &'static str,
    /// The command that shows more or helps; `None`: there is nothing to do.
    pub next: Option<String>,
}

/// The command that shows more or helps.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// There is nothing to do.
    Nothing,
    Edit,
    Describe,
    Refresh,
    Watch,
    Secrets,
    DescribeNode,
    NodeLabels,
    Uncordon,
    /// Takes the label off that excludes a node.
    Include,
    Nodes,
    Unready,
    Doctor,
    /// Pods of the node.
    Pods,
    PullerPod,
    PullerLog,
}

impl Next {
    fn command(self, about: &About<'_>) -> Option<String> {
        let About {
            node,
            image: _,
            namespace,
            name,
            installation,
        } = about;
        let pullers = format!("-n {installation} -l app.kubernetes.io/component=puller");
        Some(match self {
            Self::Nothing => return None,
            Self::Edit => format!("kubectl edit imagecache {name} -n {namespace}"),
            Self::Describe => format!("kubectl describe imagecache {name} -n {namespace}"),
            Self::Refresh => format!("kubectl fledged refresh {name} -n {namespace}"),
            Self::Watch => format!("kubectl fledged watch {name} -n {namespace}"),
            Self::Secrets => format!("kubectl get secrets -n {namespace}"),
            Self::DescribeNode => format!("kubectl describe node {node}"),
            Self::NodeLabels => format!("kubectl get node {node} --show-labels"),
            Self::Uncordon => format!("kubectl uncordon {node}"),
            Self::Include => format!("kubectl label node {node} kubefledged.io/exclude-"),
            Self::Nodes => "kubectl get nodes --show-labels".to_owned(),
            Self::Unready => "kubectl fledged nodes --unready".to_owned(),
            Self::Doctor => "kubectl fledged doctor".to_owned(),
            Self::Pods => {
                format!("kubectl get pods -A -o wide --field-selector spec.nodeName={node}")
            }
            Self::PullerPod => {
                format!("kubectl get pods {pullers} -o wide --field-selector spec.nodeName={node}")
            }
            Self::PullerLog => format!("kubectl logs {pullers} --prefix --tail=50"),
        })
    }
}

/// A reason, its cause in words, and what to do next.
type Entry = (&'static str, &'static str, Next);

/// Explains a reason. A newer controller may have reasons that this table has not: they speak for themselves.
pub fn explain(reason: &str, about: &About<'_>) -> Explained {
    let all = [REGISTRY, NODE, WAITS, REMOVAL, CACHE];
    let known = all
        .into_iter()
        .flatten()
        .find(|(known, ..)| *known == reason);
    let unknown = (
        "",
        "it has a reason that this plugin does not know; a newer one may",
        Next::Describe,
    );
    let (_, cause, next) = known.copied().unwrap_or(unknown);
    Explained {
        cause,
        next: next.command(about),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DEBUG: &str = include_str!("../../../docs/debug.md");
    const IMAGECACHE: &str = include_str!("../../../docs/imagecache.md");

    /// Words in backticks that begin with a capital letter and have no other sign.
    fn words(text: &str) -> BTreeSet<&str> {
        let words = text.split('`').skip(1).step_by(2);
        words
            .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
            .filter(|word| word.chars().all(|c| c.is_ascii_alphabetic()))
            .filter(|word| word.chars().any(|c| c.is_ascii_lowercase()))
            .collect()
    }

    fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
        let (_, rest) = text.split_once(from).expect(from);
        rest.split_once(to).expect(to).0
    }

    #[test]
    fn every_reason_of_the_documents_is_explained() {
        let nodes = between(
            DEBUG,
            "| reason | why the node gets no images |",
            "### ListBatches",
        );
        let steps = between(DEBUG, "| action | reason | meaning |", "### WatchProgress");
        let (_, failures) = IMAGECACHE
            .split_once("### Reasons of failures")
            .expect("a heading");
        let all = words(nodes)
            .into_iter()
            .chain(words(steps))
            .chain(words(failures));
        for reason in all {
            let explained = explain(reason, &About::default());
            assert!(!explained.cause.contains("does not know"), "{reason}");
        }
    }

    #[test]
    fn every_bad_reason_of_a_condition_is_explained() {
        use kubefledged_api_types::conditions::{Degraded, Ready, Stalled};

        let ready = Ready::ALL
            .into_iter()
            .filter(|reason| reason.status() == "False");
        let degraded = Degraded::ALL
            .into_iter()
            .filter(|reason| reason.status() == "True");
        let reasons = ready.map(Ready::as_str);
        let reasons = reasons.chain(degraded.map(Degraded::as_str));
        for reason in reasons.chain(Stalled::ALL.into_iter().map(Stalled::as_str)) {
            let explained = explain(reason, &About::default());
            assert!(!explained.cause.contains("does not know"), "{reason}");
        }
    }

    #[test]
    fn the_next_command_names_what_it_is_about() {
        let about = About {
            node: "n2",
            namespace: "shop",
            name: "web",
            ..About::default()
        };
        let next = |reason| explain(reason, &about).next.expect("a command");
        assert_eq!(next("Cordoned"), "kubectl uncordon n2");
        assert_eq!(next("ImageNotFound"), "kubectl edit imagecache web -n shop");
    }
}
