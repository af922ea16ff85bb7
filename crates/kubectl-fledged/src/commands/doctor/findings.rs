//! Findings, made from what was read. Pure.

mod kubelets;

use std::{fmt, time::Duration};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::ResourceExt;
use kubefledged_api_types::{
    Timestamp,
    conditions::{DEGRADED, STALLED},
};
use kubefledged_proto::debug::NodeSummary;
use serde::Serialize;
use x509_parser::pem::Pem;

use super::Facts;
use crate::{
    access::StoredCache,
    exit::Failure,
    output::{
        bad, command, good,
        quantities::{between, counted, short, some},
    },
};

/// This plugin's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A certificate that ends sooner is not being renewed: that happens after two thirds of its life.
const SOON: Duration = Duration::from_secs(7 * 86400);
/// A registry that refused requests so long ago is well again.
const LIMITED: Duration = Duration::from_secs(600);
/// Names in a sentence.
const NAMED: usize = 5;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Warning,
    /// Somebody must act.
    Failed,
    /// It may not be read.
    Unchecked,
}

/// One thing that was examined.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    level: Level,
    /// What was examined.
    subject: &'static str,
    /// What was found.
    text: String,
    /// The command that shows more or helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

/// All findings.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Must nobody act?
    pub fn is_well(&self) -> bool {
        self.0.iter().all(|finding| finding.level != Level::Failed)
    }
}

/// Examines everything.
pub fn all(facts: &Facts, now: Timestamp) -> Findings {
    let namespace = &facts.installation.namespace;
    let mut all = vec![definition(facts), leader(facts)];
    all.push(checked("Workloads", &facts.deployments, |list| {
        deployments(list, namespace)
    }));
    all.push(checked("Pullers", &facts.daemon_sets, |list| {
        daemon_set(list, namespace)
    }));
    all.push(checked("Versions", &facts.deployments, |list| {
        versions(list, &facts.daemon_sets)
    }));
    all.push(checked("Certificates", &facts.certificates, |list| {
        certificates(list, now)
    }));
    all.push(checked("Nodes", &facts.nodes, nodes));
    all.push(checked("Registries", &facts.registries, |list| {
        registries(list)
    }));
    all.push(match &facts.kubelets {
        Ok(kubelets) => kubelets::kubelets(kubelets),
        Err(failure) => unchecked("Kubelets", failure),
    });
    all.push(checked("ImageCaches", &facts.caches, caches));
    Findings(all)
}

fn ok(subject: &'static str, text: String) -> Finding {
    Finding {
        level: Level::Ok,
        subject,
        text,
        command: None,
    }
}

fn failed(subject: &'static str, text: String, command: &str) -> Finding {
    Finding {
        level: Level::Failed,
        subject,
        text,
        command: Some(command.to_owned()),
    }
}

fn warning(subject: &'static str, text: String, command: &str) -> Finding {
    Finding {
        level: Level::Warning,
        ..failed(subject, text, command)
    }
}

fn checked<T>(
    subject: &'static str,
    read: &Result<Vec<T>, Failure>,
    examine: impl FnOnce(&[T]) -> Finding,
) -> Finding {
    match read {
        Ok(list) => examine(list),
        Err(failure) => unchecked(subject, failure),
    }
}

fn unchecked(subject: &'static str, failure: &Failure) -> Finding {
    Finding {
        level: Level::Unchecked,
        ..ok(subject, failure.to_string())
    }
}

fn definition(facts: &Facts) -> Finding {
    let subject = "Definition";
    let definition = match &facts.definition {
        Ok(definition) => definition,
        Err(Failure::Failed(text)) => {
            return failed(
                subject,
                text.clone(),
                "helm upgrade --install kubefledged charts/kubefledged",
            );
        }
        Err(failure) => {
            return checked::<()>(
                subject,
                &Err(Failure::NoAccess(failure.to_string())),
                |_| ok(subject, String::new()),
            );
        }
    };
    let served = definition
        .spec
        .versions
        .iter()
        .filter(|version| version.served);
    let served: Vec<_> = served.map(|version| version.name.as_str()).collect();
    if served.contains(&"v1alpha2") {
        return ok(
            subject,
            format!("imagecaches.kubefledged.io serves {}", served.join(", ")),
        );
    }
    let text = format!(
        "imagecaches.kubefledged.io serves {} and not v1alpha2",
        served.join(", ")
    );
    failed(
        subject,
        text,
        "kubectl apply --server-side -f deploy/kubefledged-crd.yaml",
    )
}

fn leader(facts: &Facts) -> Finding {
    let namespace = &facts.installation.namespace;
    match &facts.installation.leader {
        Some(pod) => ok("Leader", format!("pod {namespace}/{pod} leads")),
        None => failed(
            "Leader",
            format!("no controller leads in {namespace}"),
            &format!("kubectl get pods -n {namespace}"),
        ),
    }
}

fn deployments(list: &[Deployment], namespace: &str) -> Finding {
    let lacking = list.iter().filter_map(|deployment| {
        let wanted = deployment.spec.as_ref()?.replicas.unwrap_or(1);
        let ready = deployment
            .status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0);
        (ready < wanted).then(|| format!("{} has {ready} of {wanted} pods", deployment.name_any()))
    });
    let lacking: Vec<String> = lacking.collect();
    if !lacking.is_empty() || list.is_empty() {
        let text = if list.is_empty() {
            "there is no Deployment".to_owned()
        } else {
            lacking.join("; ")
        };
        return failed(
            "Workloads",
            text,
            &format!("kubectl get pods -n {namespace} -o wide"),
        );
    }
    let names = list.iter().map(ResourceExt::name_any);
    ok(
        "Workloads",
        format!(
            "all pods of {} are ready",
            names.collect::<Vec<_>>().join(" and ")
        ),
    )
}

fn daemon_set(list: &[DaemonSet], namespace: &str) -> Finding {
    let Some(status) = list.first().and_then(|set| set.status.as_ref()) else {
        return failed(
            "Pullers",
            "there is no DaemonSet".to_owned(),
            &format!("kubectl get daemonsets -n {namespace}"),
        );
    };
    let (ready, desired) = (status.number_ready, status.desired_number_scheduled);
    let text = format!("{ready} of {desired} pullers are ready");
    if ready < desired {
        let pods = format!(
            "kubectl get pods -n {namespace} -l app.kubernetes.io/component=puller -o wide"
        );
        return failed("Pullers", text, &pods);
    }
    ok("Pullers", text)
}

fn versions(deployments: &[Deployment], sets: &Result<Vec<DaemonSet>, Failure>) -> Finding {
    let label = "app.kubernetes.io/version";
    let of = |labels: &std::collections::BTreeMap<String, String>| labels.get(label).cloned();
    let sets = sets.iter().flatten().filter_map(|set| of(set.labels()));
    let mut found: Vec<String> = deployments
        .iter()
        .filter_map(|one| of(one.labels()))
        .chain(sets)
        .collect();
    found.sort();
    found.dedup();
    match &found[..] {
        [one] if one == VERSION => ok(
            "Versions",
            format!("everything is {VERSION}, and so is this plugin"),
        ),
        [one] => warning(
            "Versions",
            format!("the installation is {one}, and this plugin is {VERSION}"),
            "kubectl fledged --version",
        ),
        many => failed(
            "Versions",
            format!("the parts have different versions: {}", many.join(", ")),
            "helm history kubefledged",
        ),
    }
}

fn certificates(list: &[(String, Vec<u8>)], now: Timestamp) -> Finding {
    let mut first: Option<(i64, &str)> = None;
    for (name, pem) in list {
        for pem in Pem::iter_from_buffer(pem).flatten() {
            if let Ok(certificate) = pem.parse_x509() {
                let end = certificate.validity().not_after.timestamp();
                if first.is_none_or(|(known, _)| end < known) {
                    first = Some((end, name));
                }
            }
        }
    }
    let page = "kubectl logs -n kube-fledged deploy/kubefledged-controller | grep -i certificate";
    let Some((end, name)) = first else {
        return failed("Certificates", "there is none".to_owned(), page);
    };
    let left = between(now, Timestamp(end));
    match left {
        Duration::ZERO => failed("Certificates", format!("that of {name} has ended"), page),
        left if left < SOON => failed(
            "Certificates",
            format!("that of {name} ends in {} and was not renewed", short(left)),
            page,
        ),
        left => ok(
            "Certificates",
            format!(
                "{} hold; the first ends in {}",
                counted(list.len(), "certificate"),
                short(left)
            ),
        ),
    }
}

fn nodes(list: &[NodeSummary]) -> Finding {
    let silent = list
        .iter()
        .filter(|node| node.eligible && node.puller_silent.is_some());
    let silent: Vec<&str> = silent.map(|node| node.node.as_str()).collect();
    let out = list.iter().filter(|node| !node.eligible).count();
    if !silent.is_empty() {
        let text = format!(
            "{} without a puller that answers: {}",
            counted(silent.len(), "node"),
            some(silent.iter().copied(), NAMED)
        );
        return failed("Nodes", text, &format!("kubectl fledged why {}", silent[0]));
    }
    let text = format!(
        "{} get images, {out} get none",
        counted(list.len() - out, "node")
    );
    if out > 0 {
        return warning("Nodes", text, "kubectl fledged nodes --unready");
    }
    ok("Nodes", text)
}

fn registries(list: &[kubefledged_proto::debug::Registry]) -> Finding {
    let limited = list.iter().filter_map(|registry| {
        let since = Duration::try_from(registry.last_rate_limited?).ok()?;
        (since < LIMITED).then(|| {
            let (host, budget) = (&registry.host, counted(registry.budget as usize, "pull"));
            format!(
                "{host} answered 429 {} ago ({budget} may run, {} wait)",
                short(since),
                counted(registry.waiting_nodes as usize, "node")
            )
        })
    });
    let limited: Vec<String> = limited.collect();
    if limited.is_empty() {
        return ok(
            "Registries",
            format!("of {}, none limits requests", counted(list.len(), "host")),
        );
    }
    warning(
        "Registries",
        limited.join("; "),
        "kubectl get imagecaches -A # a login, a mirror or spec.maxConcurrentNodes helps",
    )
}

fn caches(list: &[StoredCache]) -> Finding {
    let key = |cache: &StoredCache| format!("{}/{}", cache.namespace(), cache.name());
    let stalled = list.iter().filter(|cache| cache.is(STALLED));
    let unmatched = list
        .iter()
        .filter(|cache| !cache.status.lists_without_nodes.is_empty());
    let degraded = list.iter().filter(|cache| cache.is(DEGRADED));
    let unseen = list
        .iter()
        .filter(|cache| cache.status.observed_generation.is_none());
    let names = |caches: Vec<&StoredCache>| {
        let names: Vec<String> = caches.iter().map(|cache| key(cache)).collect();
        some(names.iter().map(String::as_str), NAMED)
    };
    let kinds = [
        (
            "match no node with some list",
            unmatched.collect::<Vec<_>>(),
        ),
        ("cannot become ready by waiting", stalled.collect()),
        ("were not seen by a controller", unseen.collect()),
        ("are degraded", degraded.collect()),
    ];
    let told = kinds.into_iter().filter(|(_, caches)| !caches.is_empty());
    let told: Vec<String> = told
        .map(|(what, caches)| format!("{} {what}", names(caches)))
        .collect();
    if told.is_empty() {
        return ok(
            "ImageCaches",
            format!("of {}, none has a problem", counted(list.len(), "object")),
        );
    }
    failed(
        "ImageCaches",
        told.join("; "),
        "kubectl fledged status NAME -n NAMESPACE",
    )
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            let level = match finding.level {
                Level::Ok => good("ok       "),
                Level::Warning => bad("warning  "),
                Level::Failed => bad("failed   "),
                Level::Unchecked => "unchecked".to_owned(),
            };
            writeln!(f, "{level}  {:<12}  {}", finding.subject, finding.text)?;
            if let Some(next) = &finding.command {
                writeln!(f, "                         {}", command(next))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
