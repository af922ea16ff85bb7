//! A puller of an earlier version: it knows no `with_info`, and does not tell of itself with a check.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::stream::{self, BoxStream, StreamExt as _};
use kubefledged_engine::Puller;
use kubefledged_process::tls::{self, Failures, Identity, names};
use kubefledged_proto::puller::{
    CancelPullsRequest, CancelPullsResponse, CheckImagesRequest, CheckImagesResponse, CheckedImage,
    GetInfoRequest, GetInfoResponse, ImageState, ListImagesRequest, ListImagesResponse,
    PullImagesRequest, PullImagesResponse, RemoveImagesRequest, RemoveImagesResponse,
    RemoveOutcome, RemoveOutcomes, RemoveResult, SetPeerIdentityRequest, SetPeerIdentityResponse,
    puller_service_server::{PullerService, PullerServiceServer},
    remove_images_response,
};
use kubefledged_testkit::{Ca, Plain, Usage};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use super::nodes::NAMESPACE;

fn absent(index: u32) -> CheckedImage {
    CheckedImage {
        index,
        state: ImageState::Absent.into(),
        ..CheckedImage::default()
    }
}

fn removed(index: u32) -> RemoveOutcome {
    RemoveOutcome {
        index,
        result: RemoveResult::Removed.into(),
        ..RemoveOutcome::default()
    }
}

type Outgoing<T> = BoxStream<'static, Result<T, Status>>;

/// What was asked of it.
#[derive(Clone, Default)]
pub struct Earlier {
    instance: String,
    infos: Arc<AtomicU32>,
    removals: Arc<AtomicU32>,
}

impl Earlier {
    /// Starts it on a node.
    pub async fn start(ca: &Ca, shutdown: &CancellationToken) -> (Self, Puller) {
        let puller = Self {
            instance: "pod-earlier".to_owned(),
            ..Self::default()
        };
        let leaf = ca.issue(&[&names::puller(NAMESPACE)], Usage::Server);
        let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
        let identity = Identity::from_pem(certificate, key, ca.pem().as_bytes()).unwrap();
        let served = Some(Arc::new(identity.mutual_server().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, current) = watch::channel(served);
        let incoming = tls::incoming(listener, current, Failures::default(), shutdown.clone());
        let service = PullerServiceServer::new(puller.clone());
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(incoming).map(|stream| stream.map(Plain)));
        tokio::spawn(async move {
            serve.await.unwrap();
            drop(sender);
        });
        let instance = puller.instance.as_str().into();
        (puller, Puller { instance, address })
    }

    /// How often it was asked which puller it is.
    pub fn infos(&self) -> u32 {
        self.infos.load(Ordering::Relaxed)
    }

    /// Removals that it was asked for.
    pub fn removals(&self) -> u32 {
        self.removals.load(Ordering::Relaxed)
    }
}

#[tonic::async_trait]
impl PullerService for Earlier {
    type PullImagesStream = Outgoing<PullImagesResponse>;
    type RemoveImagesStream = Outgoing<RemoveImagesResponse>;
    type ListImagesStream = Outgoing<ListImagesResponse>;

    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        self.infos.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(GetInfoResponse {
            node_name: request.into_inner().node_name,
            puller_instance: self.instance.clone(),
            max_parallel_pulls: 3,
            ..GetInfoResponse::default()
        }))
    }

    async fn check_images(
        &self,
        request: Request<CheckImagesRequest>,
    ) -> Result<Response<CheckImagesResponse>, Status> {
        let references = request.into_inner().references;
        Ok(Response::new(CheckImagesResponse {
            images: (0..)
                .zip(&references)
                .map(|(index, _)| absent(index))
                .collect(),
            ..CheckImagesResponse::default()
        }))
    }

    async fn remove_images(
        &self,
        request: Request<RemoveImagesRequest>,
    ) -> Result<Response<Self::RemoveImagesStream>, Status> {
        self.removals.fetch_add(1, Ordering::Relaxed);
        let references = request.into_inner().references;
        let outcomes = (0..).zip(&references).map(|(index, _)| removed(index));
        let outcomes = RemoveOutcomes {
            outcomes: outcomes.collect(),
        };
        let event = Some(remove_images_response::Event::Outcomes(outcomes));
        let message = RemoveImagesResponse { event };
        Ok(Response::new(stream::iter([Ok(message)]).boxed()))
    }

    async fn pull_images(
        &self,
        _request: Request<PullImagesRequest>,
    ) -> Result<Response<Self::PullImagesStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn cancel_pulls(
        &self,
        _request: Request<CancelPullsRequest>,
    ) -> Result<Response<CancelPullsResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_images(
        &self,
        _request: Request<ListImagesRequest>,
    ) -> Result<Response<Self::ListImagesStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn set_peer_identity(
        &self,
        _request: Request<SetPeerIdentityRequest>,
    ) -> Result<Response<SetPeerIdentityResponse>, Status> {
        Err(Status::unimplemented("an earlier version"))
    }
}
