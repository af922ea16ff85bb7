//! `why`: why a node lacks images, in sentences, each with the next command.

mod answer;

pub use answer::Answer;

use kubefledged_proto::debug::{
    CacheNodeImage, GetNodeResponse, ListWorkloadsResponse, PlannedStep, Registry, State,
    StreamCacheNodesRequest,
};

use crate::{
    access::{Access, Controller, Puller, kubelet, puller::Health},
    args::Why,
    exit::{Exit, Failure},
    output::Out,
};

/// Images whose workloads are asked for.
const MOST_NAMED: usize = 5;

/// Everything that is known of a node.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node as the controller sees it.
    pub node: GetNodeResponse,
    /// Pairs of the node, each with namespace and name of its `ImageCache`.
    pub pairs: Vec<(String, String, CacheNodeImage)>,
    /// Images that workloads name, of those that were asked about, with these workloads.
    pub workloads: Vec<ListWorkloadsResponse>,
    /// What the controller would do there, and why.
    pub steps: Vec<PlannedStep>,
    /// Registries that ask for fewer requests.
    pub registries: Vec<Registry>,
    /// Disk and runtime; `None`: the puller was not reached.
    pub health: Option<Health>,
    /// `imagePullCredentialsVerificationPolicy` of the kubelet; `None`: it may not be read.
    pub verification: Option<String>,
    /// Namespace of kubefledged.
    pub installation: String,
}

/// Answers. The exit code says whether the node holds what was asked for.
pub async fn run(access: &Access, out: Out, args: &Why) -> Result<Exit, Failure> {
    let mut controller = Controller::connect(access).await?;
    let image = args.image.as_deref();
    let answer = ask(access, &mut controller, &args.node, image).await?;
    out.one(&answer, &format!("node/{}", args.node), &answer.to_string())?;
    Ok(Exit::of(answer.good))
}

/// Answers why a node lacks images: all, or those whose name has this part.
pub async fn ask(
    access: &Access,
    controller: &mut Controller,
    node: &str,
    image: Option<&str>,
) -> Result<Answer, Failure> {
    let mut facts = gather(access, controller, node, image.is_some()).await?;
    facts.workloads = named(controller, &facts, image).await;
    Ok(answer::answer(&facts, image))
}

async fn gather(
    access: &Access,
    controller: &mut Controller,
    name: &str,
    of_image: bool,
) -> Result<Facts, Failure> {
    let node = controller.node(name).await?;
    let mut pairs = Vec::new();
    for cache in &node.caches {
        let whole = cache.state() == State::Ready && cache.reason.is_empty();
        if cache.desired_images == 0 || (whole && !of_image) {
            continue;
        }
        let request = StreamCacheNodesRequest {
            namespace: cache.namespace.clone(),
            name: cache.name.clone(),
            node: name.to_owned(),
            ..StreamCacheNodesRequest::default()
        };
        let found = controller.pairs(request).await?.into_iter();
        pairs.extend(found.map(|pair| (cache.namespace.clone(), cache.name.clone(), pair)));
    }
    let steps = controller.plan(name).await?;
    let registries = controller.registries().await?;
    let installation = access.installation().await.map(|found| found.namespace);
    let installation = installation.unwrap_or_else(|_| "kube-fledged".to_owned());
    let health = health(access, &installation, name).await;
    Ok(Facts {
        node,
        pairs,
        workloads: Vec::new(),
        steps,
        registries,
        health: health.ok(),
        verification: kubelet::policy(&access.client, name).await.ok().flatten(),
        installation,
    })
}

/// The workloads that name the images that were asked about. A controller of an earlier version does not tell.
async fn named(
    controller: &mut Controller,
    facts: &Facts,
    image: Option<&str>,
) -> Vec<ListWorkloadsResponse> {
    let Some(image) = image else {
        return Vec::new();
    };
    let asked = facts.pairs.iter();
    let asked = asked.filter(|(_, _, pair)| pair.image.contains(image));
    let mut found = Vec::new();
    for (namespace, name, pair) in asked.take(MOST_NAMED) {
        if let Ok(workloads) = controller.workloads(namespace, name, &pair.image).await
            && !workloads.images.is_empty()
        {
            found.push(workloads);
        }
    }
    found
}

async fn health(access: &Access, installation: &str, node: &str) -> Result<Health, Failure> {
    let mut puller = Puller::connect(access, installation, node).await?;
    puller.health(node).await
}
