//! `purge`: says what it will remove, what stays and why, and asks before it requests the purge.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use kubefledged_api_types::{
    RemovalPolicy,
    names::{PURGE_ANNOTATION, reason},
};
use kubefledged_proto::debug::{CacheNodeImage, State, StreamCacheNodesRequest};
use serde::Serialize;

use super::request::{self, Before};
use crate::{
    access::{Access, Controller, StoredCache},
    args::Purge,
    exit::{Exit, Failure},
    output::{
        Out, note,
        quantities::{bytes, counted, some},
        text,
    },
};

/// Nodes, pods or objects that a line names.
const NAMED: usize = 3;

/// What a purge will do with one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fate {
    image: String,
    /// Nodes that hold it.
    nodes: BTreeSet<String>,
    bytes: u64,
    /// Why it stays on nodes; empty: it is removed.
    stays: Vec<String>,
}

/// Everything that decides.
#[derive(Clone, Debug, Default)]
struct Facts {
    pairs: Vec<CacheNodeImage>,
    /// Other `ImageCaches` by the images that they list.
    others: BTreeMap<String, BTreeSet<String>>,
    /// Pods by node and image.
    pods: BTreeMap<(String, String), BTreeSet<String>>,
    only_pulled: bool,
}

/// Tells, asks, requests, and waits if told to.
pub async fn run(access: &Access, out: Out, args: &Purge) -> Result<Exit, Failure> {
    let name = &args.request.name;
    let cache = access.cache(name).await?;
    match gather(access, &cache).await {
        Ok(facts) => note(&shown(&fates(&facts), &facts)),
        Err(failure) => note(&format!("What will be removed is not known: {failure}")),
    }
    if !args.yes && !confirmed(out, &format!("Purge {}/{name}?", access.namespace)).await? {
        note("Nothing was purged.");
        return Ok(Exit::NotReady);
    }
    let before = Before::of(&cache, PURGE_ANNOTATION, reason::PURGE);
    request::purge(access, name).await?;
    request::said(out, access, &args.request, "purge requested")?;
    if !args.request.wait {
        return Ok(Exit::Good);
    }
    request::ended(access, &args.request, reason::PURGE, before).await
}

/// Asks on the terminal. Without one nobody can answer.
pub async fn confirmed(out: Out, question: &str) -> Result<bool, Failure> {
    if !out.is_terminal() || !console::user_attended_stderr() {
        return Err(Failure::Usage(
            "nobody can be asked without a terminal: write --yes".to_owned(),
        ));
    }
    text(&format!("{question} [y/N] "))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer
        .await
        .map_err(|error| Failure::Failed(error.to_string()))?;
    let answer = answer.map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn gather(access: &Access, cache: &StoredCache) -> Result<Facts, Failure> {
    let mut controller = Controller::connect(access).await?;
    let request = StreamCacheNodesRequest {
        namespace: cache.namespace(),
        name: cache.name(),
        states: vec![State::Ready.into()],
        ..StreamCacheNodesRequest::default()
    };
    let pairs = controller.pairs(request).await?;
    let all: Api<StoredCache> = Api::all(access.client.clone());
    let others = all.list(&ListParams::default()).await;
    let pods: Api<Pod> = Api::all(access.client.clone());
    let pods = pods.list(&ListParams::default()).await;
    // Without these rights less can be said beforehand; the controller knows it anyway.
    let others = others.map_or_else(|_| BTreeMap::new(), |list| listed(&list.items, cache));
    let spec = cache.parsed().unwrap_or_default();
    Ok(Facts {
        pairs,
        others,
        pods: pods.map_or_else(|_| BTreeMap::new(), |list| used(&list.items)),
        only_pulled: spec.removal_policy == Some(RemovalPolicy::OnlyPulled),
    })
}

/// Images of all other objects that are not purged.
fn listed(caches: &[StoredCache], but: &StoredCache) -> BTreeMap<String, BTreeSet<String>> {
    let mut images: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let others = caches.iter().filter(|cache| {
        (cache.namespace(), cache.name()) != (but.namespace(), but.name())
            && cache.status.purge.is_none()
    });
    for cache in others {
        let key = format!("{}/{}", cache.namespace(), cache.name());
        let lists = cache.parsed().unwrap_or_default().cache_spec;
        for image in lists.into_iter().flat_map(|list| list.images) {
            images.entry(image).or_default().insert(key.clone());
        }
    }
    images
}

/// Pods that have a container, by node and the image as the pod writes it.
fn used(pods: &[Pod]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut users: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let Some(node) = &spec.node_name else {
            continue;
        };
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let init = spec.init_containers.iter().flatten();
        for image in spec
            .containers
            .iter()
            .chain(init)
            .filter_map(|c| c.image.clone())
        {
            users
                .entry((node.clone(), image))
                .or_default()
                .insert(name.clone());
        }
    }
    users
}

fn fates(facts: &Facts) -> Vec<Fate> {
    let mut images: BTreeMap<&str, Fate> = BTreeMap::new();
    for pair in &facts.pairs {
        let fate = images.entry(&pair.image).or_insert_with(|| Fate {
            image: pair.image.clone(),
            nodes: BTreeSet::new(),
            bytes: 0,
            stays: Vec::new(),
        });
        fate.nodes.insert(pair.node.clone());
        fate.bytes += pair.size_bytes;
    }
    for (image, fate) in &mut images {
        if let Some(others) = facts.others.get(*image) {
            let others = some(others.iter().map(String::as_str), NAMED);
            fate.stays
                .push(format!("on nodes where {others} desires it"));
        }
        let users = facts.pods.iter().filter(|((_, used), _)| used == image);
        for ((node, _), pods) in users {
            let pods = some(pods.iter().map(String::as_str), NAMED);
            fate.stays
                .push(format!("on {node} as long as {pods} uses it"));
        }
    }
    images.into_values().collect()
}

fn shown(fates: &[Fate], facts: &Facts) -> String {
    let mut shown = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(shown, "A purge removes:");
    for fate in fates {
        let nodes = counted(fate.nodes.len(), "node");
        let _ = writeln!(
            shown,
            "  {} from {nodes}, {}",
            fate.image,
            bytes(fate.bytes)
        );
        for why in &fate.stays {
            let _ = writeln!(shown, "    It stays {why}.");
        }
    }
    if fates.is_empty() {
        let _ = writeln!(shown, "  nothing: no node holds an image of it");
    }
    let policy = if facts.only_pulled {
        "With removalPolicy OnlyPulled an image stays where kubefledged did not pull it."
    } else {
        "Images that were on a node before go too (removalPolicy All); pinned ones stay."
    };
    shown + policy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(node: &str, image: &str) -> CacheNodeImage {
        CacheNodeImage {
            node: node.to_owned(),
            image: image.to_owned(),
            size_bytes: 2_000_000,
            ..CacheNodeImage::default()
        }
    }

    #[test]
    fn what_is_removed_and_what_stays_is_told_with_the_cause() {
        let facts = Facts {
            pairs: vec![
                pair("n1", "r/a:1"),
                pair("n2", "r/a:1"),
                pair("n1", "r/b:1"),
            ],
            others: [("r/b:1".to_owned(), ["shop/api".to_owned()].into())].into(),
            pods: [(
                ("n1".to_owned(), "r/a:1".to_owned()),
                ["shop/user".to_owned()].into(),
            )]
            .into(),
            only_pulled: false,
        };
        let expected = "\
A purge removes:
  r/a:1 from 2 nodes, 4.00 MB
    It stays on n1 as long as shop/user uses it.
  r/b:1 from 1 node, 2.00 MB
    It stays on nodes where shop/api desires it.
Images that were on a node before go too (removalPolicy All); pinned ones stay.";
        assert_eq!(shown(&fates(&facts), &facts), expected);
    }
}
