//! A fake container runtime in this process. It serves CRI on a unix socket, keeps images in memory, and
//! removes them in one of the three ways of real runtimes.

mod registry;
mod services;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kubefledged_image::ImageRef;
use kubefledged_proto::containerd::{
    content::content_server::ContentServer, images::images_server::ImagesServer,
    leases::leases_server::LeasesServer,
};
use kubefledged_proto::cri::{
    Container, Image, ImageSpec, image_service_server, runtime_service_server,
};
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Server};

use crate::containerd::store::{Blob, Store};
pub use crate::removal::Removal;
pub use registry::{Fetched, Published};

pub(crate) type Pages<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

static NEXT_DIRECTORY: AtomicU32 = AtomicU32::new(0);

/// Support of containerd's own API, beside CRI on the same socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Native {
    /// The API does not exist.
    #[default]
    None,
    /// Labels are stored, but CRI ignores them, as in containerd 1.6.
    WithoutPins,
    /// Labels are stored and pin images, as in containerd 2.x.
    WithPins,
}

/// Credentials that a registry requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

/// A received call, except `Version` and `ListContainers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `ImageStatus`.
    Status(String),
    /// `PullImage`, when it was received.
    Pull(String),
    /// A pull whose caller went away.
    PullCancelled(String),
    /// `RemoveImage`.
    Remove(String),
    /// `ListImages`.
    List,
    /// `StreamImages`.
    Stream,
    /// `ContainerStatus`.
    ContainerStatus(String),
    /// containerd's `Update`: an image id was pinned or unpinned.
    Pin(String, bool),
}

/// The fake runtime. Dropping it ends the runtime and deletes its socket.
#[derive(Debug)]
pub struct FakeRuntime {
    directory: PathBuf,
    shared: Arc<Shared>,
    server: Option<(CancellationToken, JoinHandle<()>)>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    removal: Removal,
    pub(crate) native: Native,
    pub(crate) state: Arc<Mutex<State>>,
    /// Counts events for which scripted pulls may wait.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) images: Vec<Image>,
    /// Labels by image id.
    pub(crate) labels: BTreeMap<String, BTreeMap<String, String>>,
    /// When the labels of an image id changed last, and how long after that CRI shows them.
    pub(crate) labelled: BTreeMap<String, Instant>,
    labels_late: Duration,
    hangs: bool,
    /// Blobs that are being written: name, offset, total.
    pub(crate) ingests: Vec<(String, i64, i64)>,
    /// Blobs, and what else belongs to them.
    pub(crate) store: Store,
    /// Before each write to a blob is answered.
    pub(crate) write_pace: Duration,
    /// Blobs cannot be written, as with runtimes of other kinds.
    pub(crate) refuse_writes: bool,
    /// What the registry has.
    registry: registry::Registry,
    /// Whether streamed lists are supported.
    streams: bool,
    sandbox_image: String,
    containers: Vec<Container>,
    /// Ids of images that containers mount as volumes, by the container's id.
    mounts: BTreeMap<String, String>,
    /// UIDs of pods whose sandboxes run here.
    pods: BTreeSet<String>,
    private: BTreeMap<String, Login>,
    failing: BTreeMap<String, Vec<(Code, String)>>,
    held: BTreeSet<String>,
    /// Pulls of Docker that continue without their caller.
    orphans: BTreeSet<String>,
    /// Number of times that a tag moved to another image.
    moved: BTreeMap<String, u32>,
    pub(crate) calls: Vec<Call>,
}

impl FakeRuntime {
    /// Starts a runtime on a new socket.
    pub fn start(removal: Removal) -> std::io::Result<Self> {
        Self::start_with(removal, Native::None)
    }

    /// Starts containerd with its own API.
    pub fn containerd(native: Native) -> std::io::Result<Self> {
        Self::start_with(Removal::Whole, native)
    }

    fn start_with(removal: Removal, native: Native) -> std::io::Result<Self> {
        let number = NEXT_DIRECTORY.fetch_add(1, Ordering::Relaxed);
        let name = format!("kubefledged-cri-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        let mut runtime = Self {
            directory,
            shared: Arc::new(Shared {
                removal,
                native,
                state: Arc::default(),
                changed: watch::Sender::new(0),
            }),
            server: None,
        };
        runtime.serve()?;
        Ok(runtime)
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("cri.sock")
    }

    /// Starts again after [`FakeRuntime::stop`], with the same images and containers.
    pub fn serve(&mut self) -> std::io::Result<()> {
        self.stop();
        let listener = std::os::unix::net::UnixListener::bind(self.socket())?;
        listener.set_nonblocking(true)?;
        // A separate executor, so that connections and calls end with it, as with a real process.
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let token = CancellationToken::new();
        let stop = token.clone();
        let shared = self.shared.clone();
        let thread = std::thread::spawn(move || {
            executor.block_on(async {
                tokio::select! {
                    served = serve(listener, shared) => drop(served),
                    () = stop.cancelled() => {}
                }
            });
        });
        self.server = Some((token, thread));
        Ok(())
    }

    /// Stops the runtime. Calls in flight break.
    pub fn stop(&mut self) {
        if let Some((token, thread)) = self.server.take() {
            token.cancel();
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    /// Adds an image to the node.
    pub fn hold(&self, name: &str) {
        self.shared.state().add(name, self.shared.removal);
    }

    /// Puts an artifact on the node. containerd takes all of them for one image: they have the same configuration.
    pub fn hold_artifact(&self, name: &str) {
        self.shared.state().add_artifact(name);
    }

    /// Adds a name to an image on the node.
    pub fn tag(&self, name: &str, other: &str) {
        let mut state = self.shared.state();
        if let Some(at) = state.find(name) {
            state.images[at].repo_tags.push(normalized(other));
        }
    }

    /// Pins an image for somebody else.
    pub fn pin(&self, name: &str) {
        let mut state = self.shared.state();
        if let Some(at) = state.find(name) {
            state.images[at].pinned = true;
        }
    }

    /// Shows a pin only this long after it was set, as containerd 2.x does while many images change.
    pub fn show_pins_after(&self, late: Duration) {
        self.shared.state().labels_late = late;
    }

    /// Answers no `Version` any more.
    pub fn hang(&self) {
        self.shared.state().hangs = true;
    }

    /// Returns whether an image is pinned.
    pub fn pinned(&self, name: &str) -> bool {
        let state = self.shared.state();
        let at = state.find(name);
        at.is_some_and(|at| state.seen(at, self.shared.native).pinned)
    }

    /// Sets the sandbox image in the runtime's configuration.
    pub fn set_sandbox_image(&self, name: &str) {
        name.clone_into(&mut self.shared.state().sandbox_image);
    }

    /// Supports streamed lists.
    pub fn offer_streams(&self) {
        self.shared.state().streams = true;
    }

    /// Moves a tag, so that its next pull brings another image.
    pub fn move_tag(&self, name: &str) {
        let mut state = self.shared.state();
        let moves = state.moved.entry(normalized(name)).or_default();
        *moves += 1;
    }

    /// A layer of the image is being fetched: so many bytes of so many. Its manifest has arrived.
    pub fn fetch(&self, name: &str, done: i64, total: i64) {
        let mut state = self.shared.state();
        let normal = normalized(name);
        let (layer, manifest) = (
            digest(&format!("{normal} layer")),
            digest(&format!("{normal} m")),
        );
        let (layer, manifest) = (format!("sha256:{layer}"), format!("sha256:{manifest}"));
        let ingest = format!("layer-{layer}");
        state.ingests.retain(|(known, ..)| *known != ingest);
        if done < total {
            state.ingests.push((ingest, done, total));
        }
        let Ok(image) = ImageRef::parse(name) else {
            return;
        };
        // containerd writes the host without its port.
        let host = image.registry().split(':').next().unwrap_or_default();
        let source = format!("containerd.io/distribution.source.{host}");
        let labels = [
            (source, image.repository().to_owned()),
            ("containerd.io/gc.ref.content.l.0".to_owned(), layer.clone()),
        ];
        let text = format!(r#"{{"layers":[{{"digest":"{layer}","size":{total}}}]}}"#);
        state.store.blobs.retain(|blob| blob.digest != manifest);
        state.store.blobs.push(Blob {
            digest: manifest,
            labels: labels.into(),
            text: text.into_bytes(),
            kept: true,
        });
    }

    /// Adds a container that uses the image.
    pub fn run(&self, name: &str) {
        let mut state = self.shared.state();
        let Some(at) = state.find(name) else { return };
        let id = state.images[at].id.clone();
        state.containers.push(Container {
            id: format!("container-of-{name}"),
            image: Some(ImageSpec {
                image: name.to_owned(),
                ..ImageSpec::default()
            }),
            image_ref: id.clone(),
            // Docker tells it by the other field alone.
            image_id: match self.shared.removal {
                Removal::Whole | Removal::Name => id,
                Removal::Id => String::new(),
            },
            ..Container::default()
        });
    }

    /// Adds a container that runs from another image, which is not listed, and mounts this one as a volume.
    pub fn mount(&self, name: &str) {
        let mut state = self.shared.state();
        let Some(at) = state.find(name) else { return };
        let id = format!("container-with-{name}");
        let image = state.images[at].id.clone();
        state.mounts.insert(id.clone(), image);
        state.containers.push(Container {
            id,
            image_ref: digest("the image of the container"),
            ..Container::default()
        });
    }

    /// Ends all containers, and removes them.
    pub fn end_containers(&self) {
        let mut state = self.shared.state();
        state.containers.clear();
        state.mounts.clear();
    }

    /// Runs the sandbox of a pod.
    pub fn run_pod(&self, uid: &str) {
        self.shared.state().pods.insert(uid.to_owned());
    }

    /// Requires this login for the image.
    pub fn demand(&self, name: &str, login: Login) {
        self.shared.state().private.insert(normalized(name), login);
    }

    /// Lets the next pull of the image fail with this error. Several calls cause several failures in order.
    pub fn fail(&self, name: &str, code: Code, message: &str) {
        let mut state = self.shared.state();
        let failures = state.failing.entry(normalized(name)).or_default();
        failures.push((code, message.to_owned()));
    }

    /// Blocks pulls of the image until [`FakeRuntime::release`].
    pub fn block(&self, name: &str) {
        self.shared.state().held.insert(normalized(name));
    }

    /// Lets blocked pulls of the image continue.
    pub fn release(&self, name: &str) {
        let mut state = self.shared.state();
        state.held.remove(&normalized(name));
        if state.orphans.remove(&normalized(name)) {
            state.add(name, self.shared.removal);
        }
        drop(state);
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Returns the received calls.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }

    /// Returns how often this call was received.
    pub fn count(&self, call: &Call) -> usize {
        self.shared
            .state()
            .calls
            .iter()
            .filter(|seen| *seen == call)
            .count()
    }

    /// Returns whether there is an image with this name or id.
    pub fn holds(&self, name: &str) -> bool {
        self.shared.state().find(name).is_some()
    }

    /// Returns the directory of the socket.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    shared: Arc<Shared>,
) -> Result<(), Box<dyn std::error::Error>> {
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    let runtime = runtime_service_server::RuntimeServiceServer::from_arc(shared.clone());
    let images = image_service_server::ImageServiceServer::from_arc(shared.clone());
    let native = (shared.native != Native::None).then_some(shared);
    let server = Server::builder()
        .add_service(runtime)
        .add_service(images)
        .add_optional_service(native.clone().map(ImagesServer::from_arc))
        .add_optional_service(native.clone().map(ContentServer::from_arc))
        .add_optional_service(native.map(LeasesServer::from_arc));
    Ok(server.serve_with_incoming(incoming).await?)
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn normalized(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| name.to_owned(), |image| image.normalized())
}

fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// 64 hexadecimal digits that differ where the text differs; no checksum of anything.
fn digest(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for round in 0..4_u8 {
        for byte in text.bytes().chain([round]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // Writing to a String cannot fail.
        let _ = write!(hex, "{hash:016x}");
    }
    hex
}
