//! The other node: it serves images from memory, as fast as it can.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use kubefledged_process::tls::{self, Failures, Identity};
use kubefledged_proto::{
    Bytes,
    peer::{
        GetBlobRequest, GetBlobResponse, GetManifestRequest, GetManifestResponse,
        get_blob_response::Part,
        peer_service_server::{PeerService, PeerServiceServer},
    },
};
use kubefledged_testkit::{Ca, Plain};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{PART, common::puller_leaf};

/// An image of one platform.
pub struct Image {
    pub name: String,
    pub digest: String,
    pub manifest: Vec<u8>,
    /// By digest.
    pub layers: Vec<(String, Bytes)>,
}

#[derive(Clone)]
struct Service {
    images: [Arc<Image>; 2],
    began: Arc<Mutex<Option<Instant>>>,
}

pub struct Other {
    pub port: u16,
    service: Service,
}

impl Other {
    pub async fn start(images: &[Arc<Image>; 2], ca: &Ca) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let leaf = puller_leaf(ca);
        let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
        let identity = Identity::from_pem(certificate, key, ca.pem().as_bytes())?;
        let (keeps, current) = watch::channel(Some(Arc::new(identity.mutual_server()?)));
        let ends = CancellationToken::new();
        let incoming = tls::incoming(listener, current, Failures::default(), ends);
        let incoming = ReceiverStream::new(incoming).map(|stream| stream.map(Plain));
        let service = Service {
            images: images.clone(),
            began: Arc::default(),
        };
        let server = PeerServiceServer::new(service.clone());
        tokio::spawn(async move {
            let _keeps = keeps;
            let router = tonic::transport::Server::builder().add_service(server);
            router.serve_with_incoming(incoming).await
        });
        Ok(Self { port, service })
    }

    /// When the first layer was asked for.
    pub fn began(&self) -> Option<Instant> {
        *self.service.lock()
    }

    pub fn forget(&self) {
        *self.service.lock() = None;
    }
}

impl Service {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl PeerService for Service {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn get_manifest(
        &self,
        request: Request<GetManifestRequest>,
    ) -> Result<Response<GetManifestResponse>, Status> {
        let claims = request.into_inner().ticket.unwrap_or_default().claims;
        let named = |image: &&Arc<Image>| {
            let digest = image.digest.as_bytes();
            claims.windows(digest.len()).any(|part| part == digest)
        };
        let image = self.images.iter().find(named);
        let image = image.ok_or_else(|| Status::not_found("not here"))?;
        let documents = vec![image.manifest.clone()];
        Ok(Response::new(GetManifestResponse { documents }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        self.lock().get_or_insert_with(Instant::now);
        let GetBlobRequest { digest, offset, .. } = request.into_inner();
        let mut layers = self.images.iter().flat_map(|image| &image.layers);
        let layer = layers.find(|(known, _)| *known == digest);
        let (_, bytes) = layer.ok_or_else(|| Status::not_found("not here"))?;
        let mut rest = bytes.slice(usize::try_from(offset).unwrap_or_default()..);
        let mut at = offset;
        let parts = std::iter::from_fn(move || {
            let data = rest.split_to(rest.len().min(PART));
            let offset = at;
            at += data.len() as u64;
            let part = Some(Part::Data(data.clone()));
            (!data.is_empty()).then_some(Ok(GetBlobResponse { offset, part }))
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }
}
