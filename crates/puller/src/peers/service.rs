//! Implements `kubefledged.peer.v1.PeerService`: hands layers to other nodes that have a ticket for them.

use std::{pin::Pin, time::Duration};

use kubefledged_proto::{
    Bytes,
    containerd::content::ReadContentResponse,
    peer::{
        GetBlobRequest, GetBlobResponse, GetManifestRequest, GetManifestResponse,
        get_blob_response, peer_service_server::PeerService,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Peers, image::Layer, places::Place, window::Next};

/// Bytes in one message.
const PART: usize = 256 << 10;
/// Whoever takes nothing for this time loses the place.
const STUCK: Duration = Duration::from_secs(10);
/// Whoever reads along waits so long for the next bytes, and then asks elsewhere.
const QUIET: Duration = Duration::from_secs(20);

type Parts = mpsc::Sender<Result<GetBlobResponse, Status>>;

#[tonic::async_trait]
impl PeerService for Peers {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn get_manifest(
        &self,
        request: Request<GetManifestRequest>,
    ) -> Result<Response<GetManifestResponse>, Status> {
        let GetManifestRequest {
            node_name,
            ticket,
            ticket_signer,
        } = request.get_ref();
        let access = self.access();
        let digest = access.check(&request, node_name, ticket.as_ref(), ticket_signer)?;
        let image = self.image(&digest).await?;
        let documents = image.documents.clone();
        Ok(Response::new(GetManifestResponse { documents }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let GetBlobRequest {
            node_name,
            ticket,
            ticket_signer,
            digest,
            offset,
            // No build answers with ranges of them yet.
            held: _,
        } = request.get_ref();
        let access = self.access();
        let of = access.check(&request, node_name, ticket.as_ref(), ticket_signer)?;
        let image = self.image(&of).await?;
        let layer = image.layers.iter().find(|layer| layer.digest == *digest);
        let layer = layer.ok_or_else(|| {
            Status::permission_denied("the ticket is for an image without this layer")
        })?;
        if *offset > layer.size {
            return Err(Status::out_of_range("beyond the end of the layer"));
        }
        let upload = self.upload(layer, *offset).await?;
        let (parts, receiver) = mpsc::channel(1);
        tokio::spawn(upload.run(parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Peers {
    /// Takes a place for an upload, if there is something to send.
    async fn upload(&self, layer: &Layer, offset: u64) -> Result<Upload, Status> {
        let arriving = self.windows().get(&layer.digest);
        if arriving.is_none() && !self.has(layer).await? {
            return Err(self.lacks(layer).await);
        }
        if arriving.is_some_and(|window| window.next(offset) == Next::Behind) {
            return Err(behind());
        }
        let place = self.places().take(&layer.digest).ok_or_else(|| {
            Status::resource_exhausted("all places for uploads are taken: ask later or elsewhere")
        })?;
        Ok(Upload {
            peers: self.clone(),
            layer: layer.clone(),
            offset,
            _place: place,
        })
    }

    async fn has(&self, layer: &Layer) -> Result<bool, Status> {
        let size = self.containerd().size_of(&layer.digest).await?;
        Ok(size == Some(layer.size))
    }

    /// The layer may be on its way here.
    async fn lacks(&self, layer: &Layer) -> Status {
        let awaited = self.awaits(&layer.digest);
        let arriving = self.containerd().is_arriving(&layer.digest).await;
        if awaited || arriving.unwrap_or_default() {
            Status::unavailable("the layer has not arrived here yet: ask later or elsewhere")
        } else {
            Status::not_found("the layer is not here")
        }
    }
}

fn behind() -> Status {
    Status::unavailable("the layer is arriving and is farther already: ask later or elsewhere")
}

/// One layer on its way to another node.
struct Upload {
    peers: Peers,
    layer: Layer,
    offset: u64,
    _place: Place,
}

impl Upload {
    async fn run(mut self, parts: Parts) {
        let sent = tokio::select! {
            sent = self.send(&parts) => sent,
            // The connection is gone.
            () = parts.closed() => return,
        };
        if let Err(status) = sent {
            let _ = timeout(STUCK, parts.send(Err(status))).await;
        }
    }

    async fn send(&mut self, parts: &Parts) -> Result<(), Status> {
        self.pass_on(parts).await?;
        if self.offset == self.layer.size {
            return Ok(());
        }
        let mut stream = self.stored().await?;
        while let Some(message) = stream.message().await? {
            self.part(message.data, parts).await?;
        }
        if self.offset == self.layer.size {
            Ok(())
        } else {
            Err(Status::data_loss(
                "the runtime has only a part of the layer",
            ))
        }
    }

    /// Sends what is in memory of a layer that is arriving, and what arrives.
    async fn pass_on(&mut self, parts: &Parts) -> Result<(), Status> {
        let Some(window) = self.peers.windows().get(&self.layer.digest) else {
            return Ok(());
        };
        let mut changes = window.changes();
        while self.offset < self.layer.size {
            match window.next(self.offset) {
                Next::Part(bytes) => self.part(bytes, parts).await?,
                Next::Wait => {
                    let told = timeout(QUIET, changes.changed()).await;
                    if told.is_err() {
                        return Err(Status::unavailable("nothing of the layer arrives here"));
                    }
                }
                // It may be in the store by now.
                Next::Behind | Next::Ended => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads the rest from the store.
    async fn stored(&self) -> Result<Streaming<ReadContentResponse>, Status> {
        let containerd = self.peers.containerd();
        match containerd.read_from(&self.layer.digest, self.offset).await {
            Err(status) if status.code() == Code::NotFound => {
                let window = self.peers.windows().get(&self.layer.digest);
                let is_behind =
                    window.is_some_and(|window| window.next(self.offset) == Next::Behind);
                Err(if is_behind {
                    behind()
                } else {
                    self.peers.lacks(&self.layer).await
                })
            }
            answer => answer,
        }
    }

    async fn part(&mut self, mut bytes: Bytes, parts: &Parts) -> Result<(), Status> {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(PART));
            let length = data.len();
            self.peers.upload_rate().pass(length).await;
            let message = GetBlobResponse {
                offset: self.offset,
                part: Some(get_blob_response::Part::Data(data)),
            };
            match timeout(STUCK, parts.send(Ok(message))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::cancelled("nobody listens")),
                Err(_) => return Err(Status::aborted("nothing is taken")),
            }
            self.offset += length as u64;
            self.peers.metrics().uploaded(length as u64);
        }
        Ok(())
    }
}
