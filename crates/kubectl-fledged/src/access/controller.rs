//! The debug service of the leading controller. A call goes to whoever leads: after a change of the leader it is made
//! again.

use std::time::Duration;

use kubefledged_proto::debug::{
    CacheNodeImage, CacheSummary, ExplainPlanRequest, GetCacheRequest, GetCacheResponse,
    GetNodeRequest, GetNodeResponse, ListCachesRequest, ListNodesRequest, ListRegistriesRequest,
    ListRegistriesResponse, ListWorkloadsRequest, ListWorkloadsResponse, NodeSummary,
    PlanSpecRequest, PlannedStep, Registry, SpecNode, State, StreamCacheNodesRequest,
    StreamMatrixRequest, StreamMatrixResponse, WatchProgressRequest, WatchProgressResponse,
    controller_debug_service_client::ControllerDebugServiceClient,
};
use tokio::time::Instant;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use super::{Access, forward};
use crate::{exit::Failure, states::Shown};

/// Port of the debug endpoint.
const PORT: u16 = 7070;
/// A standby takes over within this time, even if the leader died without a word.
const TAKEOVER: Duration = Duration::from_secs(40);
/// Between two attempts to find the leader.
const PAUSE: Duration = Duration::from_millis(500);
/// Rows of a page.
const PAGE: u32 = 1000;

/// Generated client.
pub type Client = ControllerDebugServiceClient<Channel>;

/// A connection to the leader.
pub struct Controller {
    access: Access,
    client: Client,
}

impl Controller {
    /// Connects to the leader.
    pub async fn connect(access: &Access) -> Result<Self, Failure> {
        Ok(Self {
            access: access.clone(),
            client: leader(access).await?,
        })
    }

    /// Makes a call; again and with the new leader as long as there is none or the connection is broken.
    pub async fn call<T, F>(&mut self, what: &str, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let until = Instant::now() + TAKEOVER;
        loop {
            let status = match call(self.client.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let gone = matches!(status.code(), Code::Unavailable | Code::Unknown);
            if !gone || Instant::now() > until {
                return Err(Failure::of_status(what, &status));
            }
            self.reconnect(until).await?;
        }
    }

    async fn reconnect(&mut self, until: Instant) -> Result<(), Failure> {
        loop {
            tokio::time::sleep(PAUSE).await;
            match leader(&self.access).await {
                Ok(client) => {
                    self.client = client;
                    return Ok(());
                }
                Err(failure) if Instant::now() > until => return Err(failure),
                Err(_) => {}
            }
        }
    }

    /// One `ImageCache`.
    pub async fn cache(
        &mut self,
        namespace: &str,
        name: &str,
    ) -> Result<GetCacheResponse, Failure> {
        let request = GetCacheRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let call = async |mut client: Client| client.get_cache(request.clone()).await;
        let answer = self.call("cannot ask for the ImageCache", call).await;
        answer.map(Response::into_inner)
    }

    /// All `ImageCaches`.
    pub async fn caches(&mut self) -> Result<Vec<CacheSummary>, Failure> {
        let (mut caches, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListCachesRequest {
                page_size: PAGE,
                page_token: token,
                ..ListCachesRequest::default()
            };
            let call = async |mut client: Client| client.list_caches(request.clone()).await;
            let page = self
                .call("cannot list ImageCaches", call)
                .await?
                .into_inner();
            caches.extend(page.caches);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(caches);
            }
        }
    }

    /// One node.
    pub async fn node(&mut self, node: &str) -> Result<GetNodeResponse, Failure> {
        let request = GetNodeRequest {
            node: node.to_owned(),
        };
        let call = async |mut client: Client| client.get_node(request.clone()).await;
        let answer = self.call("cannot ask for the node", call).await;
        answer.map(Response::into_inner)
    }

    /// Pairs of node and image.
    pub async fn pairs(
        &mut self,
        request: StreamCacheNodesRequest,
    ) -> Result<Vec<CacheNodeImage>, Failure> {
        let call = async |mut client: Client| {
            let stream = client.stream_cache_nodes(request.clone()).await?;
            all(stream.into_inner(), |page| page.pairs).await
        };
        self.call("cannot ask for pairs of node and image", call)
            .await
    }

    /// The state of every image of an `ImageCache` on every node.
    pub async fn matrix(&mut self, namespace: &str, name: &str) -> Result<Matrix, Failure> {
        let request = StreamMatrixRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let call = async |mut client: Client| {
            let stream = client.stream_matrix(request.clone()).await?;
            let mut stream = stream.into_inner();
            let mut matrix = Matrix::default();
            while let Some(page) = stream.message().await? {
                matrix.add(page);
            }
            Ok(matrix)
        };
        self.call("cannot ask for the matrix", call).await
    }

    /// All nodes.
    pub async fn nodes(&mut self) -> Result<Vec<NodeSummary>, Failure> {
        let (mut nodes, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListNodesRequest {
                page_size: PAGE,
                page_token: token,
            };
            let call = async |mut client: Client| client.list_nodes(request.clone()).await;
            let page = self.call("cannot list nodes", call).await?.into_inner();
            nodes.extend(page.nodes);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(nodes);
            }
        }
    }

    /// What a spec means for the nodes that it selects.
    pub async fn spec(&mut self, spec: &str) -> Result<Vec<SpecNode>, Failure> {
        let request = PlanSpecRequest {
            spec: spec.to_owned(),
        };
        let call = async |mut client: Client| {
            let stream = client.plan_spec(request.clone()).await?;
            all(stream.into_inner(), |page| page.nodes).await
        };
        self.call("cannot plan the spec", call).await
    }

    /// The counts whenever they change, with the bytes of running pulls. The stream does not survive the leader.
    pub async fn watch(
        &mut self,
        request: &WatchProgressRequest,
    ) -> Result<Streaming<WatchProgressResponse>, Failure> {
        let call = async |mut client: Client| client.watch_progress(request.clone()).await;
        let stream = self.call("cannot watch the progress", call).await?;
        Ok(stream.into_inner())
    }

    /// What the controller would do on a node, and why. Also what it leaves as it is.
    pub async fn plan(&mut self, node: &str) -> Result<Vec<PlannedStep>, Failure> {
        let request = ExplainPlanRequest {
            node: node.to_owned(),
            include_none: true,
            ..ExplainPlanRequest::default()
        };
        let call = async |mut client: Client| {
            let stream = client.explain_plan(request.clone()).await?;
            all(stream.into_inner(), |page| page.steps).await
        };
        self.call("cannot ask for the plan", call).await
    }

    /// The workloads because of which an `ImageCache` desires an image.
    pub async fn workloads(
        &mut self,
        namespace: &str,
        name: &str,
        image: &str,
    ) -> Result<ListWorkloadsResponse, Failure> {
        let request = ListWorkloadsRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            image: image.to_owned(),
        };
        let call = async |mut client: Client| client.list_workloads(request.clone()).await;
        let answer = self.call("cannot list workloads", call).await;
        answer.map(Response::into_inner)
    }

    /// Registries and their budgets.
    pub async fn registries(&mut self) -> Result<Vec<Registry>, Failure> {
        Ok(self.list_registries().await?.registries)
    }

    /// Registries and their budgets, and what pulls moved.
    pub async fn list_registries(&mut self) -> Result<ListRegistriesResponse, Failure> {
        let request = ListRegistriesRequest {
            page_size: PAGE,
            ..ListRegistriesRequest::default()
        };
        let call = async |mut client: Client| client.list_registries(request.clone()).await;
        let answer = self.call("cannot list registries", call).await?;
        Ok(answer.into_inner())
    }
}

/// The state of every image on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// The images.
    pub images: Vec<String>,
    /// Nodes, and the states of the images in their order.
    pub rows: Vec<(String, Vec<Shown>)>,
}

impl Matrix {
    fn add(&mut self, page: StreamMatrixResponse) {
        self.images.extend(page.images);
        let shown = |byte: u8| {
            let state = State::try_from(i32::from(byte));
            Shown::of(state.unwrap_or(State::Unspecified))
        };
        let rows = page.rows.into_iter();
        let rows = rows.map(|row| (row.node, row.states.into_iter().map(shown).collect()));
        self.rows.extend(rows);
    }
}

/// All rows of a stream.
async fn all<T, R>(mut stream: Streaming<T>, rows: impl Fn(T) -> Vec<R>) -> Result<Vec<R>, Status> {
    let mut read = Vec::new();
    while let Some(page) = stream.message().await? {
        read.extend(rows(page));
    }
    Ok(read)
}

async fn leader(access: &Access) -> Result<Client, Failure> {
    let channel = if let Some(address) = access.debug_address {
        forward::to_address(address).await?
    } else {
        let found = access.installation().await?;
        let pod = found.leader.ok_or_else(|| {
            Failure::Failed(format!(
                "no controller leads in {0}: kubectl get pods -n {0}",
                found.namespace
            ))
        })?;
        forward::to_pod(&access.client, &found.namespace, &pod, PORT).await?
    };
    Ok(Client::new(channel))
}
