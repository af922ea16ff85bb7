//! CRI, as the fake runtime serves it.

use kubefledged_proto::cri::{
    ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, ListContainersRequest, ListContainersResponse,
    ListImagesRequest, ListImagesResponse, ListPodSandboxRequest, ListPodSandboxResponse, Mount,
    PodSandbox, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StatusRequest, StatusResponse, StreamContainersRequest, StreamContainersResponse,
    StreamImagesRequest, StreamImagesResponse, VersionRequest, VersionResponse,
    image_service_server, runtime_service_server,
};
use tonic::{Request, Response, Status};

use super::{Call, Pages, Shared, State, normalized};
use crate::removal::Removal;

/// Records that a caller went away before the end of its pull.
struct PullGuard<'a> {
    shared: &'a Shared,
    name: Option<String>,
}

impl Drop for PullGuard<'_> {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let mut state = self.shared.state();
        if self.shared.removal == Removal::Id {
            state.orphans.insert(normalized(&name));
        }
        state.calls.push(Call::PullCancelled(name));
    }
}

#[tonic::async_trait]
impl runtime_service_server::RuntimeService for Shared {
    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        let hangs = self.state().hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
        let runtime_name = match self.removal {
            Removal::Whole => "containerd",
            Removal::Name => "cri-o",
            Removal::Id => "docker",
        };
        Ok(Response::new(VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: runtime_name.to_owned(),
            runtime_version: "1.2.3".to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let config = format!(r#"{{"sandboxImage":"{}"}}"#, self.state().sandbox_image);
        Ok(Response::new(StatusResponse {
            info: [("config".to_owned(), config)].into(),
        }))
    }

    type StreamContainersStream = Pages<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        _: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let state = self.state();
        if !state.streams {
            return Err(Status::unimplemented("unknown method StreamContainers"));
        }
        let pages = state.containers.iter().map(|container| {
            Ok(StreamContainersResponse {
                containers: vec![container.clone()],
            })
        });
        Ok(Response::new(tokio_stream::iter(pages.collect::<Vec<_>>())))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.state().containers.clone();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut state = self.state();
        state.calls.push(Call::ContainerStatus(id.clone()));
        if !state.containers.iter().any(|container| container.id == id) {
            return Err(Status::not_found(format!("container {id:?}: not found")));
        }
        let mounts = state
            .mounts
            .get(&id)
            .map(|image| self.mounted(&state, image));
        let mounts = mounts.into_iter().collect();
        Ok(Response::new(ContainerStatusResponse {
            status: Some(ContainerStatus { id, mounts }),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let asked = filter.label_selector.get("io.kubernetes.pod.uid").cloned();
        let state = self.state();
        let pods = state
            .pods
            .iter()
            .filter(|uid| asked.as_ref().is_none_or(|asked| asked == *uid));
        let items = pods.map(|uid| PodSandbox {
            id: format!("sandbox-of-{uid}"),
            labels: [("io.kubernetes.pod.uid".to_owned(), uid.clone())].into(),
            ..PodSandbox::default()
        });
        Ok(Response::new(ListPodSandboxResponse {
            items: items.collect(),
        }))
    }
}

#[tonic::async_trait]
impl image_service_server::ImageService for Shared {
    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let mut state = self.state();
        state.calls.push(Call::List);
        let images = (0..state.images.len())
            .map(|at| state.seen(at, self.native))
            .collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Pages<StreamImagesResponse>;

    async fn stream_images(
        &self,
        _: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let mut state = self.state();
        if !state.streams {
            return Err(Status::unimplemented("unknown method StreamImages"));
        }
        state.calls.push(Call::Stream);
        let page = |at| {
            Ok(StreamImagesResponse {
                images: vec![state.seen(at, self.native)],
            })
        };
        let pages: Vec<_> = (0..state.images.len()).map(page).collect();
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = named(request.into_inner().image);
        let mut state = self.state();
        let image = state.find(&name).map(|at| state.seen(at, self.native));
        state.calls.push(Call::Status(name));
        Ok(Response::new(ImageStatusResponse { image }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let PullImageRequest { image, auth, .. } = request.into_inner();
        let name = named(image);
        self.state().calls.push(Call::Pull(name.clone()));
        let mut guard = PullGuard {
            shared: self,
            name: Some(name.clone()),
        };
        let normal = normalized(&name);
        let mut changed = self.changed.subscribe();
        while self.state().held.contains(&normal) {
            if changed.changed().await.is_err() {
                break;
            }
        }
        if let Some(status) = self.state().refusal(&name, auth.as_ref()) {
            guard.name = None;
            return Err(status);
        }
        let fetched = self.fetch(&name).await;
        guard.name = None;
        fetched.transpose()?;
        let mut state = self.state();
        state.leave(&normal);
        state.add(&name, self.removal);
        // An id or a digest: clients that compare it fail.
        let reference = |at: usize| match self.removal {
            Removal::Whole => state.images[at].id.clone(),
            Removal::Name | Removal::Id => state.images[at].repo_digests[0].clone(),
        };
        let image_ref = state.find(&name).map(reference).unwrap_or_default();
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let target = named(request.into_inner().image);
        let mut state = self.state();
        state.calls.push(Call::Remove(target.clone()));
        state.remove(&target, self.removal)?;
        Ok(Response::new(RemoveImageResponse {}))
    }
}

impl Shared {
    /// A mounted image, as the runtimes show it: containerd with the user's name, CRI-O only with the bare id.
    fn mounted(&self, state: &State, id: &str) -> Mount {
        let name = state
            .find(id)
            .and_then(|at| state.images[at].repo_tags.first());
        let name = name.filter(|_| self.removal == Removal::Whole);
        Mount {
            container_path: "/data".to_owned(),
            image: Some(ImageSpec {
                image: id.to_owned(),
                user_specified_image: name.cloned().unwrap_or_default(),
                ..ImageSpec::default()
            }),
        }
    }
}

fn named(spec: Option<ImageSpec>) -> String {
    spec.map(|spec| spec.image).unwrap_or_default()
}
