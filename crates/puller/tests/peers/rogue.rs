//! A node whose puller does what it likes. It has the key with which all pullers serve.

use std::{pin::Pin, sync::Arc, time::Duration};

use kubefledged_process::tls::{self, Failures, Identity};
use kubefledged_proto::peer::{
    GetBlobRequest, GetBlobResponse, GetManifestRequest, GetManifestResponse,
    get_blob_response::Part,
    peer_service_server::{PeerService, PeerServiceServer},
};
use kubefledged_testkit::{Ca, Plain, Published};
use tokio::{net::TcpListener, sync::mpsc, sync::watch, time::sleep};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::common::puller_leaf;

/// What it does when it is asked for a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All bytes, and all wrong.
    Lies,
    /// Half of the bytes, wrong, and then it is silent.
    LiesAndStalls,
    /// Nothing, for ever.
    Stalls,
    /// A byte a second.
    Drips,
    /// Half of the bytes, and the end.
    IsShort,
    /// More than the layer has.
    IsEndless,
    /// Bytes of another offset.
    SendsElsewhere,
    /// Empty messages.
    SendsNothing,
    /// It has no place, ever.
    Refuses,
    /// It has nothing.
    LacksIt,
    /// It fails.
    Fails,
    /// It sends another image's manifest.
    SendsAnotherImage,
    /// Half of the bytes, and it breaks.
    Breaks,
}

#[derive(Clone)]
struct Rogue {
    way: Way,
    image: Arc<Published>,
}

/// Starts it. Returns its port; it ends with the token.
pub async fn start(way: Way, image: &Published, ca: &Ca) -> (u16, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let leaf = puller_leaf(ca);
    let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
    let identity = Identity::from_pem(certificate, key, ca.pem().as_bytes()).unwrap();
    let served = Arc::new(identity.mutual_server().unwrap());
    let (keeps, current) = watch::channel(Some(served));
    let ends = CancellationToken::new();
    let incoming = tls::incoming(listener, current, Failures::default(), ends.clone());
    let incoming = ReceiverStream::new(incoming).map(|stream| stream.map(Plain));
    let image = Arc::new(image.clone());
    let rogue = PeerServiceServer::new(Rogue { way, image });
    let until = ends.clone();
    tokio::spawn(async move {
        let _keeps = keeps;
        let router = tonic::transport::Server::builder().add_service(rogue);
        let ended = until.cancelled_owned();
        router.serve_with_incoming_shutdown(incoming, ended).await
    });
    (port, ends)
}

#[tonic::async_trait]
impl PeerService for Rogue {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn get_manifest(
        &self,
        _: Request<GetManifestRequest>,
    ) -> Result<Response<GetManifestResponse>, Status> {
        let documents = match self.way {
            Way::SendsAnotherImage => Published::new(vec![vec![1; 10]]).documents,
            _ => self.image.documents.clone(),
        };
        Ok(Response::new(GetManifestResponse { documents }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let GetBlobRequest { digest, offset, .. } = request.into_inner();
        match self.way {
            Way::Refuses => return Err(Status::resource_exhausted("no place")),
            Way::LacksIt => return Err(Status::not_found("not here")),
            Way::Fails => return Err(Status::internal("a bug")),
            _ => {}
        }
        let layer = self.image.layers.iter().find(|(known, _)| *known == digest);
        let layer = layer.unwrap().1.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(send(
            self.way,
            layer,
            usize::try_from(offset).unwrap(),
            sender,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Parts = mpsc::Sender<Result<GetBlobResponse, Status>>;

async fn send(way: Way, layer: Vec<u8>, offset: usize, parts: Parts) {
    let rest = &layer[offset..];
    let wrong: Vec<u8> = rest.iter().map(|byte| !byte).collect();
    let half = rest.len() / 2;
    let said: Vec<(usize, &[u8])> = match way {
        Way::Lies => vec![(offset, &wrong)],
        Way::LiesAndStalls => vec![(offset, &wrong[..half])],
        Way::IsShort | Way::Breaks => vec![(offset, &rest[..half])],
        Way::IsEndless => vec![(offset, &rest[..half]), (offset + half, &layer)],
        Way::SendsElsewhere => vec![(offset + 1, &rest[1..])],
        Way::SendsNothing => vec![(offset, &[])],
        _ => vec![],
    };
    for (offset, data) in said {
        say(&parts, offset, data).await;
    }
    match way {
        Way::Stalls | Way::LiesAndStalls => sleep(Duration::from_secs(3600)).await,
        Way::Drips => {
            for (at, byte) in rest.iter().enumerate() {
                say(&parts, offset + at, &[*byte]).await;
                sleep(Duration::from_secs(1)).await;
                if parts.is_closed() {
                    return;
                }
            }
        }
        Way::Breaks => drop(parts.send(Err(Status::internal("it broke"))).await),
        _ => {}
    }
}

async fn say(parts: &Parts, offset: usize, data: &[u8]) {
    let message = GetBlobResponse {
        offset: offset as u64,
        part: Some(Part::Data(data.to_vec().into())),
    };
    let _ = parts.send(Ok(message)).await;
}
