//! containerd's own API of the fake runtime: labels of images, blobs and leases.

mod leases;
pub(crate) mod store;
mod writes;

use kubefledged_proto::containerd::{
    content::{
        AbortRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
        ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
        Status as Ingest, WriteContentRequest, WriteContentResponse, content_server::Content,
    },
    images::{
        DeleteImageRequest, Descriptor, GetImageRequest, GetImageResponse, Image,
        ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
        images_server::Images,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::runtime::{Call, Pages, Shared};
use store::Blob;
use writes::Writer;

/// Largest part of a blob in one message, as containerd's.
const PART: usize = 1 << 20;

/// containerd demands it.
#[allow(clippy::result_large_err)] // tonic's own error
fn check<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("containerd-namespace") {
        Some(namespace) if namespace == "k8s.io" => Ok(()),
        _ => Err(Status::failed_precondition("namespace is required")),
    }
}

/// An image points to its manifest.
fn target(digest: &str) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: digest.to_owned(),
        size: 400,
        ..Descriptor::default()
    }
}

fn not_found(name: &str) -> Status {
    Status::not_found(format!("image {name:?}: not found"))
}

#[tonic::async_trait]
impl Images for Shared {
    async fn get(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        check(&request)?;
        let name = request.into_inner().name;
        let state = self.state();
        if state.find(&name).is_none() {
            return Err(not_found(&name));
        }
        let labels = state.labels.get(&name).cloned().unwrap_or_default();
        let digest = state.target(&name);
        let image = Some(Image {
            labels: labels.into_iter().collect(),
            target: Some(target(&digest)),
            name,
        });
        Ok(Response::new(GetImageResponse { image }))
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        check(&request)?;
        // Only the filters that the puller uses: a label, quoted, and its value; or a digest.
        let filters = request.into_inner().filters;
        let digests: Vec<&str> = filters
            .iter()
            .filter_map(|filter| filter.strip_prefix("target.digest=="))
            .map(|digest| digest.trim_matches('"'))
            .collect();
        let wanted = filters.iter().filter_map(|filter| {
            let (label, value) = filter.strip_prefix("labels.\"")?.split_once("\"==")?;
            Some((label.to_owned(), value.trim_matches('"').to_owned()))
        });
        let wanted: Vec<(String, String)> = wanted.collect();
        let state = self.state();
        let images = state.labels.iter().filter(|(_, labels)| {
            wanted
                .iter()
                .any(|(label, value)| labels.get(label) == Some(value))
        });
        let images = images.map(|(id, labels)| Image {
            name: id.clone(),
            labels: labels.clone().into_iter().collect(),
            target: Some(target(id)),
        });
        let names = state.images.iter().flat_map(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names.chain([&image.id])
        });
        let pointing = names.filter_map(|name| {
            let digest = state.target(name);
            digests.contains(&digest.as_str()).then(|| Image {
                name: name.clone(),
                target: Some(target(&digest)),
                ..Image::default()
            })
        });
        Ok(Response::new(ListImagesResponse {
            images: images.chain(pointing).collect(),
        }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        check(&request)?;
        let UpdateImageRequest { image, update_mask } = request.into_inner();
        let image = image.unwrap_or_default();
        let mut state = self.state();
        if image.target.is_none() {
            // containerd 2.2 crashes, with all calls in flight.
            return Err(Status::unavailable("nil pointer dereference"));
        }
        if state.find(&image.name).is_none() {
            return Err(not_found(&image.name));
        }
        let paths = update_mask.unwrap_or_default().paths;
        if paths == ["target"] {
            let digest = image.target.clone().unwrap_or_default().digest;
            state.point(&image.name, &digest);
            return Ok(Response::new(UpdateImageResponse { image: Some(image) }));
        }
        let labels = state.labels.entry(image.name.clone()).or_default();
        for path in paths {
            let Some(label) = path.strip_prefix("labels.") else {
                return Err(Status::invalid_argument(format!("cannot update {path}")));
            };
            match image.labels.get(label).filter(|value| !value.is_empty()) {
                Some(value) => labels.insert(label.to_owned(), value.clone()),
                None => labels.remove(label),
            };
        }
        let on = labels.contains_key("io.cri-containerd.pinned");
        state
            .labelled
            .insert(image.name.clone(), std::time::Instant::now());
        state.calls.push(Call::Pin(image.name.clone(), on));
        Ok(Response::new(UpdateImageResponse { image: Some(image) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        check(&request)?;
        let DeleteImageRequest { name, target } = request.into_inner();
        let mut state = self.state();
        let known = state.find(&name).map(|_| state.target(&name));
        if known.is_none() || known != target.map(|target| target.digest) {
            return Err(not_found(&name));
        }
        state.untag(&name);
        Ok(Response::new(()))
    }
}

fn info(blob: &Blob) -> Info {
    Info {
        digest: blob.digest.clone(),
        size: i64::try_from(blob.text.len()).unwrap_or_default(),
        updated_at: None,
        labels: blob.labels.clone().into_iter().collect(),
    }
}

#[tonic::async_trait]
impl Content for Shared {
    type ListStream = Pages<ListContentResponse>;
    type ReadStream = Pages<ReadContentResponse>;
    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        check(&request)?;
        let digest = request.into_inner().digest;
        let state = self.state();
        let blob = state.store.find(&digest);
        let blob = blob.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        Ok(Response::new(InfoResponse {
            info: Some(info(blob)),
        }))
    }

    /// Returns all blobs. The fake does not evaluate the regular expression of the filter.
    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        check(&request)?;
        let info = self.state().store.blobs.iter().map(info).collect();
        let page = Ok(ListContentResponse { info });
        Ok(Response::new(tokio_stream::iter(vec![page])))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        check(&request)?;
        let ReadContentRequest { digest, offset, .. } = request.into_inner();
        let state = self.state();
        let blob = state.store.find(&digest);
        let blob = blob.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        let from = usize::try_from(offset).unwrap_or_default();
        let rest = blob.text.get(from..);
        let rest = rest.ok_or_else(|| Status::out_of_range("beyond the end of the blob"))?;
        let mut at = offset;
        let parts = rest.chunks(PART).map(|part| {
            let data = part.to_vec().into();
            let message = ReadContentResponse { offset: at, data };
            at += i64::try_from(part.len()).unwrap_or_default();
            Ok(message)
        });
        Ok(Response::new(tokio_stream::iter(parts.collect::<Vec<_>>())))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        check(&request)?;
        let state = self.state();
        let writes = state.store.writes.iter().map(|(name, write)| {
            let offset = i64::try_from(write.data.len()).unwrap_or_default();
            (name.clone(), offset, write.total)
        });
        let statuses = state.ingests.iter().cloned().chain(writes);
        let statuses = statuses.map(|(name, offset, total)| Ingest {
            r#ref: name,
            offset,
            total,
        });
        Ok(Response::new(ListStatusesResponse {
            statuses: statuses.collect(),
        }))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        check(&request)?;
        if self.state().refuse_writes {
            return Err(Status::unimplemented("unknown method Write"));
        }
        let lease = request.metadata().get("containerd-lease");
        let lease = lease.and_then(|lease| lease.to_str().ok());
        let writer = Writer {
            state: self.state.clone(),
            lease: lease.unwrap_or_default().to_owned(),
            name: String::new(),
            expected: String::new(),
            open: false,
        };
        let (answers, receiver) = mpsc::channel(4);
        tokio::spawn(writer.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        check(&request)?;
        let name = request.into_inner().r#ref;
        let mut state = self.state();
        let gone = state.store.writes.remove(&name);
        let gone = gone.ok_or_else(|| Status::not_found(format!("reference {name}")))?;
        drop(gone);
        Ok(Response::new(()))
    }
}
