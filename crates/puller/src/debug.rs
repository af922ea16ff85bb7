//! Implements `kubefledged.debug.v1.PullerDebugService`, which shows people what this puller knows.

use std::sync::Arc;

use kubefledged_process::debug::{page_size, report, with_standard_services};
use kubefledged_proto::{
    PULLER_DESCRIPTORS,
    debug::{
        GetDiskRequest, GetDiskResponse, GetQueueRequest, GetQueueResponse, GetRuntimeRequest,
        GetRuntimeResponse, ListImagesRequest, ListImagesResponse, ListUnknownErrorsRequest,
        ListUnknownErrorsResponse, Pull, PullState, RuntimeImage, UnknownError,
        puller_debug_service_server::{PullerDebugService, PullerDebugServiceServer},
    },
};
use kubefledged_queue::{self as queue, PullResult, PullRow, Totals};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, service::Routes};

use crate::{cri::Socket, disk, driver::Input, node::Node, unknown::UnknownErrors};

/// Maximum number of images in one message.
const IMAGES: usize = 200;
/// Number of rows that are read at once while a filter matches none.
const ROWS: usize = 1000;

/// The debug service.
#[derive(Clone)]
pub struct Debug {
    /// Name of the node.
    pub node_name: Arc<str>,
    /// Path of the runtime's socket.
    pub socket: Socket,
    /// Runtime and disk of the node.
    pub node: Node,
    /// Requests to the driver.
    pub inputs: mpsc::UnboundedSender<Input>,
    /// Error texts that the table of known texts does not have.
    pub unknown: UnknownErrors,
}

/// Returns the routes of the service with reflection and health.
pub async fn routes(debug: Debug) -> anyhow::Result<Routes> {
    type Server = PullerDebugServiceServer<Debug>;

    let routes = Routes::new(Server::new(debug));
    let (routes, health) = with_standard_services(routes, PULLER_DESCRIPTORS)?;
    report::<Server>(&health, true).await;
    Ok(routes)
}

impl Debug {
    /// Returns a page of the queue, and the totals.
    pub async fn view(&self, after: u64, limit: usize) -> Result<(Vec<PullRow>, Totals), Status> {
        let leaving = || Status::unavailable("this puller is shutting down");
        let (sender, answer) = oneshot::channel();
        let input = Input::View(after, limit, sender);
        self.inputs.send(input).map_err(|_| leaving())?;
        answer.await.map_err(|_| leaving())
    }

    /// Brings the bytes of running pulls up to date. The queue itself looks only as often as its time limits need.
    async fn refresh_bytes(&self, pulls: &mut [Pull]) -> Result<(), Status> {
        let pulling = |pull: &&mut Pull| pull.state() == PullState::Pulling;
        if !pulls.iter_mut().any(|pull| pulling(&pull)) {
            return Ok(());
        }
        // Of all pulls: those that are left out are forgotten there.
        let (rows, _) = self.view(0, ROWS).await?;
        let names = rows
            .into_iter()
            .filter_map(|row| (row.state == queue::PullState::Pulling).then_some(row.image));
        // What cannot be seen now was seen before, or is unknown.
        let seen = self.node.progress(&names.collect::<Vec<_>>()).await;
        let seen = seen.unwrap_or_default();
        for pull in pulls.iter_mut().filter(pulling) {
            if let Some(progress) = seen.get(&pull.image) {
                let bytes = progress.bytes;
                (pull.done_bytes, pull.total_bytes) = (bytes.done, bytes.total);
                pull.peer_bytes = progress.peers;
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl PullerDebugService for Debug {
    type ListImagesStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<ListImagesResponse, Status>>>;

    async fn get_queue(
        &self,
        request: Request<GetQueueRequest>,
    ) -> Result<Response<GetQueueResponse>, Status> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let mut after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                Status::invalid_argument("page_token is not one that GetQueue gave")
            })?,
        };
        let mut pulls = Vec::new();
        let (more, totals) = loop {
            let (rows, totals) = self.view(after, ROWS).await?;
            let last = rows.len() < ROWS;
            let mut rows = rows.into_iter();
            for row in rows.by_ref() {
                let pull = pull(row, &mut after);
                if request.states.is_empty() || request.states.contains(&pull.state) {
                    pulls.push(pull);
                }
                if pulls.len() == limit {
                    break;
                }
            }
            let more = rows.len() > 0 || !last;
            if pulls.len() == limit || !more {
                break (more, totals);
            }
        };
        self.refresh_bytes(&mut pulls).await?;
        Ok(Response::new(GetQueueResponse {
            pulls,
            next_page_token: if more {
                after.to_string()
            } else {
                String::new()
            },
            node: self.node_name.to_string(),
            waiting: count(totals.waiting),
            running: count(totals.running),
            removals: count(totals.removals),
            max_parallel_pulls: count(totals.max_parallel_pulls),
            term: totals.term,
        }))
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<Self::ListImagesStream>, Status> {
        let name = request.into_inner().name;
        let images: Vec<RuntimeImage> = self
            .node
            .cri
            .list_images()
            .await?
            .into_iter()
            .filter(|image| {
                let mut names = image.repo_tags.iter().chain(&image.repo_digests);
                name.is_empty() || names.any(|known| known.contains(&name))
            })
            .map(|image| RuntimeImage {
                id: image.id,
                tags: image.repo_tags,
                digests: image.repo_digests,
                size_bytes: image.size,
                pinned: image.pinned,
            })
            .collect();
        let page = |page: &[RuntimeImage]| {
            Ok(ListImagesResponse {
                images: page.to_vec(),
            })
        };
        let pages: Vec<_> = images.chunks(IMAGES).map(page).collect();
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn get_runtime(
        &self,
        _: Request<GetRuntimeRequest>,
    ) -> Result<Response<GetRuntimeResponse>, Status> {
        let mut response = GetRuntimeResponse {
            node: self.node_name.to_string(),
            socket: self.socket.path().display().to_string(),
            ..GetRuntimeResponse::default()
        };
        match self.node.cri.version().await {
            Ok(version) => {
                response.runtime = version.runtime_name;
                response.version = version.runtime_version;
                response.answers = true;
            }
            Err(status) => status.message().clone_into(&mut response.message),
        }
        if let Ok(facts) = self.node.facts().await {
            response.sandbox_image = facts.sandbox_image.unwrap_or_default();
            response.pins = format!("{:?}", facts.pins);
            response.progress = facts.progress;
        }
        Ok(Response::new(response))
    }

    async fn list_unknown_errors(
        &self,
        _: Request<ListUnknownErrorsRequest>,
    ) -> Result<Response<ListUnknownErrorsResponse>, Status> {
        let errors = self.unknown.list().into_iter().map(|error| UnknownError {
            image: error.image,
            code: error.code,
            message: error.message,
            count: error.count,
            age: error.last.elapsed().try_into().ok(),
        });
        Ok(Response::new(ListUnknownErrorsResponse {
            node: self.node_name.to_string(),
            errors: errors.collect(),
        }))
    }

    async fn get_disk(
        &self,
        _: Request<GetDiskRequest>,
    ) -> Result<Response<GetDiskResponse>, Status> {
        let (_, totals) = self.view(0, 0).await?;
        let watermark = totals.disk_watermark;
        let mut response = GetDiskResponse {
            node: self.node_name.to_string(),
            watermark_percent: watermark.unwrap_or_default().into(),
            ..GetDiskResponse::default()
        };
        let Some(path) = &self.node.disk else {
            "the root of this container does not tell how full the file system of the images is: \
             set --image-fs-path"
                .clone_into(&mut response.message);
            return Ok(Response::new(response));
        };
        response.path = path.display().to_string();
        match disk::usage(path) {
            Ok(disk) => {
                let used = disk.capacity.saturating_sub(disk.available);
                let percent = u128::from(used) * 100 / u128::from(disk.capacity.max(1));
                response.capacity_bytes = disk.capacity;
                response.available_bytes = disk.available;
                response.used_percent = u32::try_from(percent).unwrap_or(100);
                let full = watermark.and_then(|watermark| queue::full(disk, watermark));
                response.refuses_pulls = full.is_some();
                response.message = full.unwrap_or_default();
            }
            Err(error) => response.message = error.message,
        }
        Ok(Response::new(response))
    }
}

fn pull(row: PullRow, after: &mut u64) -> Pull {
    *after = row.number;
    let mut pull = Pull {
        image: row.image,
        priority: row.priority,
        attempts: row.attempts,
        age: row.age.and_then(|age| age.try_into().ok()),
        deadline: row.deadline.and_then(|left| left.try_into().ok()),
        interests: count(row.interests),
        done_bytes: row.bytes.map_or(0, |bytes| bytes.done),
        total_bytes: row.bytes.map_or(0, |bytes| bytes.total),
        peer_bytes: row.peers,
        ..Pull::default()
    };
    let state = match row.state {
        queue::PullState::Waiting => PullState::Waiting,
        queue::PullState::Inspecting => PullState::Inspecting,
        queue::PullState::Pulling => PullState::Pulling,
        queue::PullState::Credentials => PullState::Credentials,
        queue::PullState::Verifying => PullState::Verifying,
        queue::PullState::Pinning => PullState::Pinning,
        queue::PullState::Finished(result) => {
            let word = match result {
                PullResult::Present => "Present",
                PullResult::Pulled => "Pulled",
                PullResult::Cancelled => "Cancelled",
                PullResult::Superseded => "Superseded",
                PullResult::Failed { reason, message } => {
                    (pull.reason, pull.message) = (reason, message);
                    "Failed"
                }
            };
            word.clone_into(&mut pull.result);
            PullState::Finished
        }
    };
    pull.set_state(state);
    pull
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
