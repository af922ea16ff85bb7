//! The node's container runtime, over its unix socket. The connection is made anew when the runtime
//! restarts.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use kubefledged_proto::cri::{
    AuthConfig, Image as CriImage, ImageSpec, ImageStatusRequest, ListContainersRequest,
    ListImagesRequest, PodSandboxConfig, PullImageRequest, RemoveImageRequest, VersionRequest,
    VersionResponse, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use kubefledged_proto::puller::Credential;
use kubefledged_queue::{Answer, Call, CallError, Container, Image, Runtime};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// Sockets below the node's /run, the likeliest first.
const SOCKETS: [&str; 7] = [
    "containerd/containerd.sock",
    "k3s/containerd/containerd.sock",
    "k0s/containerd.sock",
    "dockershim.sock",
    "crio/crio.sock",
    "cri-dockerd.sock",
    "k3s/cri-dockerd/cri-dockerd.sock",
];

/// As the kubelet; a node with many images answers more than tonic's 4 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A client of the runtime; clones share the connection.
#[derive(Clone, Debug)]
pub struct Cri {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

/// The sockets to try, in order: the flag's alone, else those that are there.
///
/// # Errors
/// None is there; says where it was looked for.
pub fn sockets(flag: Option<&Path>, run_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(path) = flag {
        return Ok(vec![path.to_owned()]);
    }
    let found: Vec<PathBuf> = SOCKETS
        .iter()
        .map(|socket| run_dir.join(socket))
        .filter(|path| path.exists())
        .collect();
    anyhow::ensure!(
        !found.is_empty(),
        "no runtime socket below {}: set --cri-socket-path (looked for {})",
        run_dir.display(),
        SOCKETS.join(", ")
    );
    Ok(found)
}

impl Cri {
    /// Connects when the first call is made, and again after a loss.
    pub fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used; HTTP/2 wants one.
        let channel =
            Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(connector);
        Ok(Self {
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// Who the runtime is.
    pub async fn version(&self) -> Result<VersionResponse, Status> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// All images it holds.
    pub async fn list_images(&self) -> Result<Vec<CriImage>, Status> {
        Ok(self
            .images
            .clone()
            .list_images(ListImagesRequest {})
            .await?
            .into_inner()
            .images)
    }

    /// Carries out one call of the queue.
    pub async fn carry_out(&self, call: Call, credential: Option<Credential>) -> Answer {
        match call {
            Call::Inspect(name) => Answer::Inspected(self.inspect(name).await.map_err(error)),
            Call::Pull(name, _) => Answer::Pulled(self.pull(name, credential).await.map_err(error)),
            Call::Containers => Answer::Containers(self.containers().await.map_err(error)),
            Call::Remove(target) => Answer::Removed(self.remove(target).await.map_err(error)),
        }
    }

    async fn inspect(&self, name: String) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        let response = self
            .images
            .clone()
            .image_status(request)
            .await?
            .into_inner();
        Ok(response.image.map(image))
    }

    async fn pull(&self, name: String, credential: Option<Credential>) -> Result<(), Status> {
        let auth = credential.map(|credential| AuthConfig {
            username: credential.username,
            password: credential.password,
            identity_token: credential.identity_token,
            registry_token: credential.registry_token,
            // With an address containerd compares hosts and silently pulls without credentials.
            ..AuthConfig::default()
        });
        // Some runtimes do not expect it to be missing.
        let annotations = [("kubefledged.io/pull".to_owned(), "true".to_owned())].into();
        let request = PullImageRequest {
            image: Some(spec(name)),
            auth,
            sandbox_config: Some(PodSandboxConfig { annotations }),
        };
        self.images.clone().pull_image(request).await?;
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<Container>, Status> {
        let response = self
            .runtime
            .clone()
            .list_containers(ListContainersRequest {})
            .await?
            .into_inner();
        let said = |c: kubefledged_proto::cri::Container| Container {
            image: vec![
                c.image_ref,
                c.image_id,
                c.image.map_or_else(String::new, |spec| spec.image),
            ],
        };
        Ok(response.containers.into_iter().map(said).collect())
    }

    async fn remove(&self, target: String) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(target)),
        };
        self.images.clone().remove_image(request).await?;
        Ok(())
    }
}

/// How images are removed there.
pub fn runtime(name: &str) -> Runtime {
    match name {
        "cri-o" => Runtime::Crio,
        "docker" => Runtime::Docker,
        _ => Runtime::Containerd,
    }
}

fn spec(image: String) -> ImageSpec {
    ImageSpec {
        image,
        ..ImageSpec::default()
    }
}

fn image(image: CriImage) -> Image {
    Image {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        pinned: image.pinned,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
/// What the runtime said has no source; what has one happened on the way to it, and tonic calls
/// that `Unknown` when a connection breaks in the middle of a call.
fn error(status: Status) -> CallError {
    let code = match std::error::Error::source(&status) {
        Some(_) => tonic::Code::Unavailable,
        None => status.code(),
    };
    CallError {
        code: format!("{code:?}"),
        message: status.message().to_owned(),
    }
}
