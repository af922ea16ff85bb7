//! The contract of `proto/kubefledged/puller/v1`, answered for every node of the fleet.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use kubefledged_contract::SEEN_TERM;
use kubefledged_proto::puller::{
    Accepted, Authority, CancelPullsRequest, CancelPullsResponse, CheckImagesRequest,
    CheckImagesResponse, GetInfoRequest, GetInfoResponse, Heartbeat, ImagePull, ListImagesRequest,
    ListImagesResponse, NodeImage, PullImagesRequest, PullImagesResponse, PullOutcome,
    PullOutcomes, RemoveImagesRequest, RemoveImagesResponse, RemoveOutcomes,
    SetPeerIdentityRequest, SetPeerIdentityResponse, Support, Transfer, Transfers,
    pull_images_response, puller_service_server::PullerService, remove_images_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status};

use crate::{
    fleet::{self, Fleet},
    model::Model,
};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// Outcomes that are ready together go in one message.
const COALESCE: Duration = Duration::from_millis(50);

/// Which address of ours a connection came to: the node's.
#[derive(Clone, Copy, Debug)]
pub struct Local(pub SocketAddr);

/// See the module. It has a request for the certificate of every node.
#[derive(Clone)]
pub struct Service(pub Arc<Fleet>, pub Arc<[u8]>);

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Whether nodes take layers from each other.
    fn shares(&self) -> Support {
        if self.0.model().peers {
            Support::Yes
        } else {
            Support::No
        }
    }

    /// What a node's puller says of itself.
    fn info(&self, node: usize) -> GetInfoResponse {
        GetInfoResponse {
            node_name: fleet::name(node),
            puller_instance: self.0.instance(node),
            runtime_name: "simulated".to_owned(),
            max_parallel_pulls: 2,
            pin_support: Support::No.into(),
            progress_support: Support::No.into(),
            peer_support: self.shares().into(),
            peer_certificate_request: self.1.to_vec(),
            ..GetInfoResponse::default()
        }
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn node(&self, extensions: &Extensions, asked: &str) -> Result<usize, Status> {
        let local = extensions
            .get::<Local>()
            .ok_or_else(|| Status::internal("the connection has no local address"))?;
        let node = fleet::node_at(local.0.ip())
            .filter(|node| *node < self.0.len())
            .ok_or_else(|| Status::internal("no node has this address"))?;
        if fleet::name(node) != asked {
            return Err(Status::invalid_argument(format!(
                "this is the puller of node {}, not of {asked}",
                fleet::name(node)
            )));
        }
        Ok(node)
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn admit(
        &self,
        extensions: &Extensions,
        authority: Option<Authority>,
    ) -> Result<(usize, Authority), Status> {
        let authority =
            authority.ok_or_else(|| Status::invalid_argument("authority is missing"))?;
        let node = self.node(extensions, &authority.node_name)?;
        self.0.admit(node, authority.term).map_err(|seen| {
            let mut status = Status::failed_precondition(format!("term {seen} was seen"));
            status.metadata_mut().insert(SEEN_TERM, seen.into());
            status
        })?;
        Ok((node, authority))
    }
}

fn pulled(event: pull_images_response::Event) -> PullImagesResponse {
    PullImagesResponse { event: Some(event) }
}

fn outcomes(outcomes: Vec<PullOutcome>) -> PullImagesResponse {
    pulled(pull_images_response::Event::Outcomes(PullOutcomes {
        outcomes,
    }))
}

/// The nodes from which an image is taken.
fn peers(image: &ImagePull) -> Vec<usize> {
    let number = |name: &str| name.strip_prefix("sim-")?.parse().ok();
    let names = image.peers.iter();
    names.filter_map(|peer| number(&peer.node_name)).collect()
}

/// How large the images of a request are.
fn sizes(model: &Model, images: usize) -> PullImagesResponse {
    let transfer = |index: usize| Transfer {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        total_bytes: model.own_bytes + model.base_bytes,
        ..Transfer::default()
    };
    let transfers = (0..images).map(transfer).collect();
    pulled(pull_images_response::Event::Transfers(Transfers {
        transfers,
    }))
}

/// Goes on when nobody listens any more: a pull belongs to the puller.
async fn pull_all(
    fleet: Arc<Fleet>,
    node: usize,
    batch: (u64, u64),
    images: Vec<ImagePull>,
    sender: mpsc::Sender<Result<PullImagesResponse, Status>>,
) {
    let peers: Vec<Vec<usize>> = images.iter().map(peers).collect();
    let pulls = images.iter().zip(&peers).enumerate();
    let mut pulls: FuturesUnordered<_> = pulls
        .map(|(index, (image, peers))| fleet.pull(node, batch, index, &image.reference, peers))
        .collect();
    if fleet.model().peers {
        let _ = sender.send(Ok(sizes(&fleet.model(), images.len()))).await;
    }
    let mut ready = Vec::new();
    let mut send_at = None;
    loop {
        let wait = async {
            match send_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => tokio::time::sleep(HEARTBEAT).await,
            }
        };
        tokio::select! {
            outcome = pulls.next() => match outcome {
                Some(outcome) => {
                    ready.push(outcome);
                    send_at.get_or_insert(tokio::time::Instant::now() + COALESCE);
                }
                None => break,
            },
            () = wait => {
                let message = if send_at.take().is_some() {
                    outcomes(std::mem::take(&mut ready))
                } else {
                    pulled(pull_images_response::Event::Heartbeat(Heartbeat {}))
                };
                let _ = sender.send(Ok(message)).await;
            }
        }
    }
    if !ready.is_empty() {
        let _ = sender.send(Ok(outcomes(ready))).await;
    }
}

#[tonic::async_trait]
impl PullerService for Service {
    type PullImagesStream = Outgoing<PullImagesResponse>;
    type RemoveImagesStream = Outgoing<RemoveImagesResponse>;
    type ListImagesStream = Outgoing<ListImagesResponse>;

    async fn set_peer_identity(
        &self,
        _request: Request<SetPeerIdentityRequest>,
    ) -> Result<Response<SetPeerIdentityResponse>, Status> {
        // Nobody verifies it here.
        Ok(Response::new(SetPeerIdentityResponse {}))
    }

    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let node = self.node(request.extensions(), &request.get_ref().node_name)?;
        Ok(Response::new(self.info(node)))
    }

    async fn pull_images(
        &self,
        request: Request<PullImagesRequest>,
    ) -> Result<Response<Self::PullImagesStream>, Status> {
        let (_, extensions, request) = request.into_parts();
        let (node, authority) = self.admit(&extensions, request.authority)?;
        let fleet = self.0.clone();
        fleet.counters.pull_calls.fetch_add(1, Ordering::Relaxed);
        let accepted = pulled(pull_images_response::Event::Accepted(Accepted::default()));
        if fleet.model().is_instant() {
            let images = request.images.into_iter();
            let references: Vec<String> = images.map(|image| image.reference).collect();
            let all = outcomes(fleet.pull_at_once(node, &references));
            let stream = tokio_stream::iter([Ok(accepted), Ok(all)]);
            return Ok(Response::new(Box::pin(stream)));
        }
        let (sender, receiver) = mpsc::channel(16);
        let _ = sender.try_send(Ok(accepted));
        let batch = (authority.term, authority.batch_id);
        tokio::spawn(pull_all(fleet, node, batch, request.images, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn remove_images(
        &self,
        request: Request<RemoveImagesRequest>,
    ) -> Result<Response<Self::RemoveImagesStream>, Status> {
        let (_, extensions, request) = request.into_parts();
        let (node, _) = self.admit(&extensions, request.authority)?;
        self.0.counters.remove_calls.fetch_add(1, Ordering::Relaxed);
        let outcomes = self.0.remove(node, &request.references);
        let event = remove_images_response::Event::Outcomes(RemoveOutcomes { outcomes });
        let message = RemoveImagesResponse { event: Some(event) };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(message)]))))
    }

    async fn check_images(
        &self,
        request: Request<CheckImagesRequest>,
    ) -> Result<Response<CheckImagesResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let node = self.node(&extensions, &request.node_name)?;
        self.0.counters.check_calls.fetch_add(1, Ordering::Relaxed);
        let images = self.0.look(node, &request.references);
        Ok(Response::new(CheckImagesResponse {
            images,
            highest_term: self.0.term(node),
            peer_support: self.shares().into(),
            info: request.with_info.then(|| self.info(node)),
            ..CheckImagesResponse::default()
        }))
    }

    async fn cancel_pulls(
        &self,
        request: Request<CancelPullsRequest>,
    ) -> Result<Response<CancelPullsResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let (node, authority) = self.admit(&extensions, request.authority)?;
        for cancel in &request.cancels {
            self.0.cancel(node, authority.term, cancel.batch_id);
        }
        let ended = u32::try_from(request.cancels.len()).unwrap_or(u32::MAX);
        Ok(Response::new(CancelPullsResponse { ended }))
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<Self::ListImagesStream>, Status> {
        let node = self.node(request.extensions(), &request.get_ref().node_name)?;
        let image = |name: String| NodeImage {
            repo_tags: vec![name],
            ..NodeImage::default()
        };
        let images = self.0.images_of(node).into_iter().map(image).collect();
        let message = ListImagesResponse { images };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(message)]))))
    }
}
