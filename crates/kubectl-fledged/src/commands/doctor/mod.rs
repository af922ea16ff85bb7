//! `doctor`: is the installation well? Everything that may be read is read; what may not be read is told as not checked.

mod bundle;
mod findings;

use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Pod, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use kubefledged_proto::debug::{NodeSummary, Registry};

use crate::{
    access::{Access, Controller, Installation, StoredCache, kubelet},
    args::Doctor,
    exit::{Exit, Failure},
    output::{Out, note, quantities::now},
};

/// Everything of one installation.
const OURS: &str = "app.kubernetes.io/part-of=kubefledged";
/// Kubelets that are asked for their configuration.
const MOST_KUBELETS: usize = 20;
/// Pods that are read of one node.
const MOST_PODS: u32 = 500;

/// What was read; an error says why it was not.
pub struct Facts {
    installation: Installation,
    definition: Result<CustomResourceDefinition, Failure>,
    deployments: Result<Vec<Deployment>, Failure>,
    daemon_sets: Result<Vec<DaemonSet>, Failure>,
    /// Certificates as PEM, by the name of what holds them.
    certificates: Result<Vec<(String, Vec<u8>)>, Failure>,
    caches: Result<Vec<StoredCache>, Failure>,
    nodes: Result<Vec<NodeSummary>, Failure>,
    registries: Result<Vec<Registry>, Failure>,
    kubelets: Result<Kubelets, Failure>,
}

/// What the first kubelets ask of pods.
struct Kubelets {
    /// `imagePullCredentialsVerificationPolicy` by node.
    policies: Vec<(String, Option<String>)>,
    /// The pods of those nodes whose kubelet verifies.
    pods: Vec<Pod>,
}

impl Kubelets {
    /// The nodes whose kubelet verifies images that it did not pull.
    fn verifying(&self) -> impl Iterator<Item = &str> {
        let verify = |policy: &Option<String>| policy.as_deref().is_some_and(kubelet::verifies);
        let found = self
            .policies
            .iter()
            .filter(move |(_, policy)| verify(policy));
        found.map(|(node, _)| node.as_str())
    }
}

/// Examines the installation. The exit code says whether all is well.
pub async fn run(access: &Access, out: Out, args: &Doctor) -> Result<Exit, Failure> {
    let facts = gather(access).await?;
    let findings = findings::all(&facts, now());
    out.one(&findings, "doctor", &findings.to_string())?;
    if let Some(path) = &args.bundle {
        let bundle = bundle::write(access, &facts, &findings).await?;
        let written = std::fs::write(path, bundle);
        written.map_err(|error| {
            Failure::Failed(format!("cannot write {}: {error}", path.display()))
        })?;
        note(&format!(
            "{} holds what a bug report needs; look through it before you send it",
            path.display()
        ));
    }
    Ok(Exit::of(findings.is_well()))
}

async fn gather(access: &Access) -> Result<Facts, Failure> {
    let installation = access.installation().await?;
    let namespace = installation.namespace.clone();
    let client = || access.client.clone();
    let ours = ListParams::default().labels(OURS);
    let deployments: Api<Deployment> = Api::namespaced(client(), &namespace);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client(), &namespace);
    let definitions: Api<CustomResourceDefinition> = Api::all(client());
    let caches: Api<StoredCache> = Api::all(client());
    let definition = definitions.get("imagecaches.kubefledged.io").await;
    let failed = |error: &kube::Error| Failure::of_kube("not checked", error);
    let (nodes, registries) = inside(access).await;
    let kubelets = kubelets(access, &nodes).await;
    Ok(Facts {
        definition: definition.map_err(|error| failed(&error)),
        deployments: items(deployments.list(&ours).await),
        daemon_sets: items(daemon_sets.list(&ours).await),
        certificates: certificates(access, &namespace).await,
        caches: items(caches.list(&ListParams::default()).await),
        nodes,
        registries,
        kubelets,
        installation,
    })
}

async fn kubelets(
    access: &Access,
    nodes: &Result<Vec<NodeSummary>, Failure>,
) -> Result<Kubelets, Failure> {
    let nodes = match nodes {
        Ok(nodes) => nodes.iter().take(MOST_KUBELETS),
        Err(failure) => return Err(Failure::NoAccess(failure.to_string())),
    };
    let nodes: Vec<String> = nodes.map(|node| node.node.clone()).collect();
    let mut found = Kubelets {
        policies: kubelet::policies(&access.client, &nodes).await?,
        pods: Vec::new(),
    };
    let all: Api<Pod> = Api::all(access.client.clone());
    let mut pods = Vec::new();
    for node in found.verifying() {
        let of_node = format!("spec.nodeName={node}");
        let of_node = ListParams::default().fields(&of_node).limit(MOST_PODS);
        pods.extend(items(all.list(&of_node).await)?);
    }
    found.pods = pods;
    Ok(found)
}

fn items<T: Clone>(
    list: Result<kube::core::ObjectList<T>, kube::Error>,
) -> Result<Vec<T>, Failure> {
    let list = list.map(|list| list.items);
    list.map_err(|error| Failure::of_kube("not checked", &error))
}

/// What the leader tells.
async fn inside(
    access: &Access,
) -> (
    Result<Vec<NodeSummary>, Failure>,
    Result<Vec<Registry>, Failure>,
) {
    match Controller::connect(access).await {
        Ok(mut controller) => (controller.nodes().await, controller.registries().await),
        Err(failure) => {
            let again = Failure::Failed(failure.to_string());
            (Err(failure), Err(again))
        }
    }
}

/// From the Secrets, or without the right to read them from the webhook's configuration.
async fn certificates(access: &Access, namespace: &str) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), namespace);
    let tls = ListParams::default().fields("type=kubernetes.io/tls");
    if let Ok(list) = secrets.list(&tls).await {
        let certificate = |secret: Secret| {
            let pem = secret.data?.remove("tls.crt")?.0;
            Some((format!("Secret {}", secret.metadata.name?), pem))
        };
        return Ok(list.items.into_iter().filter_map(certificate).collect());
    }
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(access.client.clone());
    let list = configurations
        .list(&ListParams::default().labels(OURS))
        .await;
    let list = items(list)?.into_iter();
    let bundle = |configuration: ValidatingWebhookConfiguration| {
        let webhook = configuration.webhooks?.into_iter().next()?;
        let pem = webhook.client_config.ca_bundle?.0;
        Some((format!("caBundle of {}", configuration.metadata.name?), pem))
    };
    Ok(list.filter_map(bundle).collect())
}
