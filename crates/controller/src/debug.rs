//! Implements `kubefledged.debug.v1.ControllerDebugService`, which shows people what the engine knows and would
//! do. Each page is one question to the driver.

mod bytes;
mod fleet;
mod progress;
mod rows;
mod words;

use std::{sync::Arc, time::Duration};

use kubefledged_engine::{
    BatchId, CacheKey, Engine, NodeName, Now,
    view::{MOST_ROWS, PairQuery, PlanQuery},
};
use kubefledged_process::debug::{page_size, report, with_standard_services};
use kubefledged_proto::{
    CONTROLLER_DESCRIPTORS,
    debug::{
        ExplainPlanRequest, ExplainPlanResponse, GetCacheRequest, GetCacheResponse, GetNodeRequest,
        GetNodeResponse, ListBatchesRequest, ListBatchesResponse, ListCachesRequest,
        ListCachesResponse, ListNodesRequest, ListNodesResponse, ListRegistriesRequest,
        ListRegistriesResponse, ListWorkloadsRequest, ListWorkloadsResponse, PlanSpecRequest,
        PlanSpecResponse, StreamCacheNodesRequest, StreamCacheNodesResponse, StreamMatrixRequest,
        StreamMatrixResponse, WatchProgressRequest, WatchProgressResponse,
        controller_debug_service_server::{ControllerDebugService, ControllerDebugServiceServer},
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};

use crate::{driver::Asking, effects::queries::PullerQueries, lease::Term};

pub(crate) use words::ineligible;

/// Time between two checks of a stream whether this process still leads.
const LOOK: Duration = Duration::from_millis(250);

type Server = ControllerDebugServiceServer<Debug>;
type Answers<T> = mpsc::Sender<Result<T, Status>>;
type Answered<T> = Result<Response<T>, Status>;
type Streamed<T> = Answered<ReceiverStream<Result<T, Status>>>;

/// The debug service. Clones ask the same engine.
#[derive(Clone)]
pub struct Debug {
    /// Asks the engine.
    pub engine: Asking,
    /// Asks the pullers.
    pub pullers: Arc<dyn PullerQueries>,
    /// The term while this process leads.
    pub standing: watch::Receiver<Option<Term>>,
    /// Holder of the Lease. Empty if there is none, or it is unknown.
    pub holder: watch::Receiver<String>,
    /// Namespace of the installation.
    pub namespace: Arc<str>,
}

/// Returns the routes of the service with reflection and health. Only the leader's service is healthy; the
/// returned future updates this, and ends at the shutdown.
pub async fn routes(debug: Debug) -> anyhow::Result<(Routes, impl Future<Output = ()>)> {
    let mut standing = debug.standing.clone();
    let routes = Routes::new(Server::new(debug));
    let (routes, health) = with_standard_services(routes, CONTROLLER_DESCRIPTORS)?;
    report::<Server>(&health, standing.borrow_and_update().is_some()).await;
    let follow = async move {
        while standing.changed().await.is_ok() {
            let leads = standing.borrow_and_update().is_some();
            report::<Server>(&health, leads).await;
        }
    };
    Ok((routes, follow))
}

impl Debug {
    #[allow(clippy::result_large_err)] // tonic's own error
    fn leads(&self) -> Result<(), Status> {
        if self.standing.borrow().is_some() {
            return Ok(());
        }
        let holder = self.holder.borrow();
        let pod = holder.rsplit_once('_').map_or(&**holder, |(pod, _)| pod);
        if pod.is_empty() {
            return Err(Status::unavailable(
                "no controller leads yet: try again in some seconds",
            ));
        }
        Err(Status::unavailable(format!(
            "this controller is a standby, pod {pod} leads: kubectl port-forward -n {} pod/{pod} 7070",
            self.namespace
        )))
    }

    /// Returns the answer of the leader's engine.
    async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine, Now) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.leads()?;
        let answer = self.engine.ask(question).await;
        answer.ok_or_else(|| Status::unavailable("this controller is shutting down"))
    }

    async fn stream_pairs(
        &self,
        query: PairQuery,
        answers: &Answers<StreamCacheNodesResponse>,
    ) -> Result<(), Status> {
        let (query, mut after) = (Arc::new(query), None);
        loop {
            let (asked, from) = (query.clone(), after.clone());
            let page = self.look(move |engine, now| {
                let page = engine.view_pairs(now, &asked, from.as_ref());
                page.map(|page| (page, now))
            });
            let (page, now) = page.await?.ok_or_else(|| no_cache(&query.cache))?;
            for rows in page.rows.chunks(MOST_ROWS) {
                let pairs = rows.iter().map(|row| rows::pair(row, now)).collect();
                if !send(answers, StreamCacheNodesResponse { pairs }).await {
                    return Ok(());
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn stream_plan(
        &self,
        query: PlanQuery,
        answers: &Answers<ExplainPlanResponse>,
    ) -> Result<(), Status> {
        let (query, mut after) = (Arc::new(query), None);
        loop {
            let (asked, from) = (query.clone(), after.clone());
            let page =
                self.look(move |engine, now| (engine.explain(now, &asked, from.as_ref()), now));
            let (page, now) = page.await?;
            for rows in page.rows.chunks(MOST_ROWS) {
                let steps = rows.iter().map(|row| rows::step(row, now)).collect();
                if !send(answers, ExplainPlanResponse { steps }).await {
                    return Ok(());
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Fails if the ImageCache or node of a filter is unknown. An empty answer would look as if nothing were to be
    /// done.
    async fn known(&self, cache: Option<CacheKey>, node: Option<NodeName>) -> Result<(), Status> {
        let missing = self.look(move |engine, _| {
            let cache = cache.filter(|key| engine.view_row(key).is_none());
            let node = node.filter(|name| !engine.knows(name));
            (cache, node)
        });
        match missing.await? {
            (Some(key), _) => Err(no_cache(&key)),
            (_, Some(node)) => Err(no_node(&node)),
            (None, None) => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl ControllerDebugService for Debug {
    type StreamCacheNodesStream = ReceiverStream<Result<StreamCacheNodesResponse, Status>>;
    type StreamMatrixStream = ReceiverStream<Result<StreamMatrixResponse, Status>>;
    type PlanSpecStream = ReceiverStream<Result<PlanSpecResponse, Status>>;
    type ExplainPlanStream = ReceiverStream<Result<ExplainPlanResponse, Status>>;
    type WatchProgressStream = ReceiverStream<Result<WatchProgressResponse, Status>>;

    async fn list_caches(
        &self,
        request: Request<ListCachesRequest>,
    ) -> Answered<ListCachesResponse> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_key(token).ok_or_else(|| bad_token("ListCaches"))?),
        };
        let page = self.look(move |engine, _| {
            let namespace = Some(&*request.namespace).filter(|name| !name.is_empty());
            engine.view_caches(namespace, after.as_ref(), limit)
        });
        let page = page.await?;
        Ok(Response::new(ListCachesResponse {
            caches: page.rows.iter().map(rows::summary).collect(),
            next_page_token: page.next.map_or_else(String::new, |key| key.to_string()),
        }))
    }

    async fn get_cache(&self, request: Request<GetCacheRequest>) -> Answered<GetCacheResponse> {
        let request = request.into_inner();
        let key = key(&request.namespace, &request.name);
        let asked = key.clone();
        let detail = self.look(move |engine, now| engine.view_cache(now, &asked));
        let detail = detail.await?.ok_or_else(|| no_cache(&key))?;
        Ok(Response::new(rows::cache(detail)))
    }

    async fn stream_cache_nodes(
        &self,
        request: Request<StreamCacheNodesRequest>,
    ) -> Streamed<StreamCacheNodesResponse> {
        let request = request.into_inner();
        let states = request.states().map(rows::state_of).collect::<Option<_>>();
        let query = PairQuery {
            cache: key(&request.namespace, &request.name),
            node: node(&request.node),
            image: Some(request.image).filter(|image| !image.is_empty()),
            states: states.ok_or_else(|| Status::invalid_argument("states: unknown state"))?,
        };
        self.known(Some(query.cache.clone()), query.node.clone())
            .await?;
        let debug = self.clone();
        Ok(stream(|answers| async move {
            debug.stream_pairs(query, &answers).await
        }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Answered<GetNodeResponse> {
        let name = NodeName(request.into_inner().node.into());
        let asked = name.clone();
        let detail = self.look(move |engine, now| {
            let detail = engine.view_node(now, &asked);
            detail.map(|detail| (detail, now))
        });
        let (detail, now) = detail.await?.ok_or_else(|| no_node(&name))?;
        Ok(Response::new(rows::node(&name, detail, now)))
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answered<ListNodesResponse> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let after = node(&request.page_token);
        let page = self.look(move |engine, now| engine.view_nodes(now, after.as_ref(), limit));
        let page = page.await?;
        Ok(Response::new(ListNodesResponse {
            nodes: page.rows.iter().map(fleet::node).collect(),
            next_page_token: page.next.map_or_else(String::new, |name| name.to_string()),
        }))
    }

    async fn stream_matrix(
        &self,
        request: Request<StreamMatrixRequest>,
    ) -> Streamed<StreamMatrixResponse> {
        let request = request.into_inner();
        let cache = key(&request.namespace, &request.name);
        self.known(Some(cache.clone()), None).await?;
        let debug = self.clone();
        Ok(stream(|answers| async move {
            debug.stream_matrix(cache, &answers).await
        }))
    }

    async fn plan_spec(&self, request: Request<PlanSpecRequest>) -> Streamed<PlanSpecResponse> {
        let spec = fleet::spec(&request.into_inner().spec)?;
        self.leads()?;
        let debug = self.clone();
        Ok(stream(|answers| async move {
            debug.stream_spec(spec, &answers).await
        }))
    }

    async fn list_batches(
        &self,
        request: Request<ListBatchesRequest>,
    ) -> Answered<ListBatchesResponse> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(BatchId(
                token.parse().map_err(|_| bad_token("ListBatches"))?,
            )),
        };
        let cache = optional_key(&request.namespace, &request.name)?;
        let node = node(&request.node);
        let page = self.look(move |engine, now| {
            engine.view_batches(now, node.as_ref(), cache.as_ref(), after, limit)
        });
        let page = page.await?;
        Ok(Response::new(ListBatchesResponse {
            batches: page.rows.iter().map(rows::batch).collect(),
            next_page_token: page.next.map_or_else(String::new, |id| id.0.to_string()),
        }))
    }

    async fn list_registries(
        &self,
        request: Request<ListRegistriesRequest>,
    ) -> Answered<ListRegistriesResponse> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let page = self.look(move |engine, now| {
            let after = Some(&*request.page_token).filter(|token| !token.is_empty());
            (
                engine.view_registries(now, after, limit),
                engine.view_moved(),
            )
        });
        let (page, moved) = page.await?;
        Ok(Response::new(ListRegistriesResponse {
            registries: page.rows.iter().map(rows::registry).collect(),
            next_page_token: page.next.map_or_else(String::new, |host| host.to_string()),
            moved: Some(rows::moved(moved)),
        }))
    }

    async fn list_workloads(
        &self,
        request: Request<ListWorkloadsRequest>,
    ) -> Answered<ListWorkloadsResponse> {
        let request = request.into_inner();
        let (key, image) = (key(&request.namespace, &request.name), request.image);
        let asked = key.clone();
        let found = self.look(move |engine, _| {
            let image = Some(&*image).filter(|image| !image.is_empty());
            engine.view_workloads(&asked, image)
        });
        let found = found.await?.ok_or_else(|| no_cache(&key))?;
        Ok(Response::new(rows::workloads(found)))
    }

    async fn explain_plan(
        &self,
        request: Request<ExplainPlanRequest>,
    ) -> Streamed<ExplainPlanResponse> {
        let request = request.into_inner();
        let query = PlanQuery {
            cache: optional_key(&request.namespace, &request.name)?,
            node: node(&request.node),
            all: request.include_none,
        };
        self.known(query.cache.clone(), query.node.clone()).await?;
        let debug = self.clone();
        Ok(stream(|answers| async move {
            debug.stream_plan(query, &answers).await
        }))
    }

    async fn watch_progress(
        &self,
        request: Request<WatchProgressRequest>,
    ) -> Streamed<WatchProgressResponse> {
        let request = request.into_inner();
        let cache = optional_key(&request.namespace, &request.name)?;
        let interval = match request.interval {
            None => Duration::from_secs(1),
            Some(interval) => Duration::try_from(interval)
                .ok()
                .filter(|interval| *interval >= LOOK)
                .ok_or_else(|| Status::invalid_argument("interval is at least 250ms"))?,
        };
        self.known(cache.clone(), None).await?;
        let debug = self.clone();
        Ok(stream(|answers| async move {
            let watch = progress::Watch::new(cache, &request);
            debug.watch(watch, interval, &answers).await
        }))
    }
}

/// Runs until everything is sent or the client is gone.
fn stream<T, W>(work: impl FnOnce(Answers<T>) -> W) -> Response<ReceiverStream<Result<T, Status>>>
where
    T: Send + 'static,
    W: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (answers, stream) = mpsc::channel(1);
    let work = work(answers.clone());
    tokio::spawn(async move {
        if let Err(status) = work.await {
            let _ = answers.send(Err(status)).await;
        }
    });
    Response::new(ReceiverStream::new(stream))
}

/// Returns false if the client is gone.
async fn send<T>(answers: &Answers<T>, answer: T) -> bool {
    answers.send(Ok(answer)).await.is_ok()
}

fn key(namespace: &str, name: &str) -> CacheKey {
    CacheKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn parse_key(token: &str) -> Option<CacheKey> {
    token
        .split_once('/')
        .map(|(namespace, name)| key(namespace, name))
}

#[allow(clippy::result_large_err)] // tonic's own error
fn optional_key(namespace: &str, name: &str) -> Result<Option<CacheKey>, Status> {
    match (namespace, name) {
        ("", "") => Ok(None),
        ("", _) | (_, "") => Err(Status::invalid_argument(
            "set both namespace and name, or none of them for all",
        )),
        _ => Ok(Some(key(namespace, name))),
    }
}

fn node(name: &str) -> Option<NodeName> {
    (!name.is_empty()).then(|| NodeName(name.into()))
}

fn no_cache(key: &CacheKey) -> Status {
    Status::not_found(format!("there is no ImageCache {key}"))
}

fn no_node(name: &NodeName) -> Status {
    Status::not_found(format!("there is no node {name}"))
}

fn bad_token(method: &str) -> Status {
    Status::invalid_argument(format!("page_token is not one that {method} gave"))
}
