//! Client of the node's container runtime over its unix socket. It connects again when the runtime
//! restarts.

use std::{
    mem::take,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper_util::rt::TokioIo;
use kubefledged_proto::cri::{
    AuthConfig, Image as CriImage, ImageSpec, ImageStatusRequest, ListImagesRequest,
    ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxState, PullImageRequest,
    RemoveImageRequest, StatusRequest, StreamImagesRequest, VersionRequest, VersionResponse,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use kubefledged_proto::puller::Credential;
use kubefledged_queue::{Image, Runtime};
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use crate::containers::Mounts;

/// Sockets below the node's /run, in the order in which they are tried.
const SOCKETS: [&str; 7] = [
    "containerd/containerd.sock",
    "k3s/containerd/containerd.sock",
    "k0s/containerd.sock",
    "dockershim.sock",
    "crio/crio.sock",
    "cri-dockerd.sock",
    "k3s/cri-dockerd/cri-dockerd.sock",
];

/// Label that the kubelet gives the sandbox of each pod.
const POD_UID: &str = "io.kubernetes.pod.uid";
/// Maximum size of an answer, as in the kubelet. A node with many images needs more than tonic's 4 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Bytes of a layer on the way from the runtime.
const LAYERS_WINDOW: u32 = 1 << 20;

/// A client of the runtime. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Cri {
    images: ImageServiceClient<Channel>,
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// Whether the runtime supports streams for long lists, as far as is known.
    streams: Arc<AtomicBool>,
    /// Images that containers mount, as far as is known.
    pub(crate) mounts: Mounts,
}

/// Returns the sockets to try, in order: only that of the flag if it is set, else all that exist.
///
/// # Errors
/// None exists; the error lists the paths.
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

/// The path of a socket, which may change: a runtime may come back under another one. Clones share it.
#[derive(Clone, Debug)]
pub struct Socket(Arc<Mutex<PathBuf>>);

impl Socket {
    /// Begins with a path.
    pub fn new(path: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(path)))
    }

    /// The path now.
    pub fn path(&self) -> PathBuf {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        path.clone()
    }

    /// Connections that are made from now on go to another path.
    pub fn move_to(&self, path: PathBuf) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = path;
    }
}

/// Returns a connection to a socket. It connects at the first call, and again after a loss.
pub fn connect(socket: Socket) -> Channel {
    // HTTP/2 requires an address; it is not used.
    connect_to(&Endpoint::from_static("http://cri.invalid"), socket)
}

/// The same, for layers: the runtime sends more before it waits for us to have taken it.
pub fn connect_for_layers(socket: Socket) -> Channel {
    let endpoint = Endpoint::from_static("http://cri.invalid")
        .initial_stream_window_size(LAYERS_WINDOW)
        .initial_connection_window_size(2 * LAYERS_WINDOW);
    connect_to(&endpoint, socket)
}

fn connect_to(endpoint: &Endpoint, socket: Socket) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let path = socket.path();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector_lazy(connector)
}

impl Cri {
    /// Uses a connection.
    pub fn new(channel: Channel) -> Self {
        Self {
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
            streams: Arc::new(AtomicBool::new(true)),
            mounts: Mounts::default(),
        }
    }

    /// Returns name and version of the runtime.
    pub async fn version(&self) -> Result<VersionResponse, Status> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// Returns whether the sandbox of a pod runs here.
    pub async fn runs_pod(&self, uid: &str) -> Result<bool, Status> {
        let label_selector = [(POD_UID.to_owned(), uid.to_owned())].into();
        let request = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter { label_selector }),
        };
        let answer = self.runtime.clone().list_pod_sandbox(request).await?;
        let mut sandboxes = answer.into_inner().items.into_iter();
        Ok(sandboxes.any(|sandbox| {
            let ours = sandbox
                .labels
                .get(POD_UID)
                .is_some_and(|found| found == uid);
            ours && sandbox.state() == PodSandboxState::SandboxReady
        }))
    }

    /// Returns the sandbox image of pods, if the verbose status of the runtime contains it.
    pub async fn sandbox_image(&self) -> Option<String> {
        let request = StatusRequest { verbose: true };
        let status = self.runtime.clone().status(request).await;
        let info = status.ok()?.into_inner().info;
        info.values().find_map(|text| {
            let value = serde_json::from_str(text).ok()?;
            sandbox_image(&value)
        })
    }

    /// Lists all images.
    pub async fn list_images(&self) -> Result<Vec<CriImage>, Status> {
        if self.streams() {
            match collect(
                self.images.clone().stream_images(StreamImagesRequest {}),
                |page| page.images,
            )
            .await
            {
                Err(status) if status.code() == Code::Unimplemented => self.no_streams(),
                answer => return answer,
            }
        }
        let answer = self.images.clone().list_images(ListImagesRequest {}).await;
        Ok(whole(answer, "images")?.into_inner().images)
    }

    pub(crate) fn streams(&self) -> bool {
        self.streams.load(Ordering::Relaxed)
    }

    pub(crate) fn no_streams(&self) {
        self.streams.store(false, Ordering::Relaxed);
    }

    /// Returns the image with this name or id, if it is present.
    pub async fn inspect(&self, name: String) -> Result<Option<Image>, Status> {
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

    /// Pulls an image. The runtime's answer is not used, because `inspect` decides.
    pub async fn pull(&self, name: String, credential: Option<Credential>) -> Result<(), Status> {
        let auth = credential.map(|mut credential| AuthConfig {
            username: take(&mut credential.username),
            password: take(&mut credential.password),
            auth: String::new(),
            // No server address: with one, containerd compares hosts and may pull without credentials.
            server_address: String::new(),
            identity_token: take(&mut credential.identity_token),
            registry_token: take(&mut credential.registry_token),
        });
        // Some runtimes cannot handle a missing field.
        let annotations = [("kubefledged.io/pull".to_owned(), "true".to_owned())].into();
        let request = PullImageRequest {
            image: Some(spec(name)),
            auth,
            sandbox_config: Some(PodSandboxConfig { annotations }),
        };
        self.images.clone().pull_image(request).await?;
        Ok(())
    }

    /// Removes an image by name or id.
    pub async fn remove(&self, target: String) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(target)),
        };
        self.images.clone().remove_image(request).await?;
        Ok(())
    }
}

/// The answer to a request for a whole list. A list may be larger than one message, on either side.
pub(crate) fn whole<T>(answer: Result<T, Status>, what: &str) -> Result<T, Status> {
    answer.map_err(|status| {
        let said = status.message();
        let large = ["message length too large", "larger than max"];
        if !large.iter().any(|words| said.contains(words)) {
            return status;
        }
        Status::resource_exhausted(format!(
            "the list of all {what} of the container runtime is larger than a message ({} MiB), and this runtime cannot \
             send it in parts (CRI's streamed lists): remove {what} that are not used ({said})",
            MESSAGE_LIMIT >> 20
        ))
    })
}

/// Returns the kind of the runtime, which decides how images are removed.
pub fn runtime(name: &str) -> Runtime {
    match name {
        "cri-o" => Runtime::Crio,
        "docker" => Runtime::Docker,
        _ => Runtime::Containerd,
    }
}

/// Collects all pages of a stream.
pub(crate) async fn collect<P, T>(
    call: impl Future<Output = Result<Response<Streaming<P>>, Status>>,
    items: fn(P) -> Vec<T>,
) -> Result<Vec<T>, Status> {
    let mut stream = call.await?.into_inner();
    let mut all = Vec::new();
    while let Some(page) = stream.message().await? {
        all.extend(items(page));
    }
    Ok(all)
}

/// Finds the sandbox image in the configuration of any of the runtimes.
fn sandbox_image(config: &serde_json::Value) -> Option<String> {
    const NAMES: [&str; 3] = ["sandboxImage", "sandbox_image", "pause_image"];
    let object = config.as_object()?;
    let here = NAMES.iter().find_map(|name| object.get(*name)?.as_str());
    let here = here
        .filter(|image| !image.is_empty())
        .map(ToOwned::to_owned);
    here.or_else(|| object.values().find_map(sandbox_image))
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
        unmountable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_image_is_found_wherever_the_runtime_keeps_it() {
        for config in [
            r#"{"sandboxImage":"r.test/pause:1","systemdCgroup":false}"#,
            r#"{"a":{},"pinned":{"b":{"sandbox_image":"r.test/pause:1"}}}"#,
        ] {
            let config = serde_json::from_str(config).unwrap();
            assert_eq!(sandbox_image(&config).as_deref(), Some("r.test/pause:1"));
        }
        assert_eq!(
            sandbox_image(&serde_json::json!({"sandboxImage": "", "x": 1})),
            None
        );
    }
}
