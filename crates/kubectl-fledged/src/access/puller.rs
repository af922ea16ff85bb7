//! The debug service of the puller of one node. It is a help and no need: whoever may not reach it gets the other answers.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use kubefledged_proto::debug::{
    GetDiskRequest, GetDiskResponse, GetRuntimeRequest, GetRuntimeResponse, ListImagesRequest,
    RuntimeImage, puller_debug_service_client::PullerDebugServiceClient,
};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

use super::{Access, PATIENCE, forward};
use crate::exit::Failure;

/// Port of the debug endpoint.
const PORT: u16 = 7071;

/// A connection to one puller.
pub struct Puller(PullerDebugServiceClient<Channel>);

/// What a puller tells of its node.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The image file system.
    pub disk: GetDiskResponse,
    /// The container runtime.
    pub runtime: GetRuntimeResponse,
}

impl Puller {
    /// Connects to the puller of a node.
    pub async fn connect(access: &Access, namespace: &str, node: &str) -> Result<Self, Failure> {
        let pods: Api<Pod> = Api::namespaced(access.client.clone(), namespace);
        let ours = "app.kubernetes.io/part-of=kubefledged,app.kubernetes.io/component=puller";
        let on_node = ListParams::default()
            .labels(ours)
            .fields(&format!("spec.nodeName={node}"));
        let list = pods.list_metadata(&on_node).await;
        let list = list.map_err(|error| Failure::of_kube("cannot list pullers", &error))?;
        let pod = list
            .items
            .first()
            .ok_or_else(|| Failure::Failed(format!("no pod of a puller is on {node}")))?;
        let pod = pod.name_any();
        let connect = forward::to_pod(&access.client, namespace, &pod, PORT);
        let channel = timeout(PATIENCE, connect).await.map_err(|_| silent(node))?;
        Ok(Self(PullerDebugServiceClient::new(channel?)))
    }

    /// Disk and runtime.
    pub async fn health(&mut self, node: &str) -> Result<Health, Failure> {
        let asked = async {
            let disk = self.0.get_disk(GetDiskRequest {}).await?.into_inner();
            let runtime = self.0.get_runtime(GetRuntimeRequest {}).await?.into_inner();
            Ok::<_, Status>(Health { disk, runtime })
        };
        let answer = timeout(PATIENCE, asked).await.map_err(|_| silent(node))?;
        answer.map_err(|status| Failure::of_status("the puller does not tell its health", &status))
    }

    /// All images that its runtime holds.
    pub async fn images(&mut self, node: &str) -> Result<Vec<RuntimeImage>, Failure> {
        let asked = async {
            let stream = self.0.list_images(ListImagesRequest::default()).await?;
            let (mut stream, mut images) = (stream.into_inner(), Vec::new());
            while let Some(page) = stream.message().await? {
                images.extend(page.images);
            }
            Ok::<_, Status>(images)
        };
        let answer = timeout(PATIENCE, asked).await.map_err(|_| silent(node))?;
        answer.map_err(|status| Failure::of_status("the puller does not list its images", &status))
    }
}

fn silent(node: &str) -> Failure {
    Failure::Failed(format!(
        "the puller of {node} does not answer within {PATIENCE:?}"
    ))
}
