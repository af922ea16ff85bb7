//! How fast a released puller hands on a layer and takes one in, beside containerd's own Content.Read and Content.Write, in the same
//! run: `hack/bench-peers rates`. It plays the controller and the other node, over TLS, and needs containerd with both images.
//!
//! `peer_rates PULLER SOCKET LARGE SMALL ROUNDS`: the program, containerd's socket, and the names of two images. It prints JSON: bytes a
//! second, and MiB.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod other;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use common::{Certificates, NAMESPACE, connect, controller_leaf, dial};
use kubefledged_process::tls::{Identity, Signing, names};
use kubefledged_proto::{
    Bytes,
    containerd::content::ReadContentResponse,
    peer::{GetBlobRequest, get_blob_response::Part, peer_service_client::PeerServiceClient},
    puller::{
        Authority, GetInfoRequest, ImagePull, PeerSource, PullImagesRequest, PullResult,
        SetPeerIdentityRequest, Ticket, pull_images_response,
        puller_service_client::PullerServiceClient,
    },
};
use kubefledged_puller::{
    containerd::{
        Containerd,
        blobs::{Lease, Purpose},
    },
    cri,
};
use kubefledged_testkit::{Ca, Program, Usage};
use other::{Image, Other};
use serde_json::json;
use tokio::time::sleep;
use tonic::transport::Channel;

const NODE: &str = "measured";
const OTHER: &str = "other";
const PORT: u16 = 27_443;
const HTTP: u16 = 27_444;
/// As the messages of the puller.
const PART: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [puller, socket, large, small, rounds] = args.as_slice() else {
        bail!("usage: peer_rates PULLER SOCKET LARGE SMALL ROUNDS");
    };
    let rounds: usize = rounds.parse().context("ROUNDS is a number")?;
    let mut bench = Bench::start(puller, socket, [large, small]).await?;
    let idle = bench.process.memory("VmRSS")?;
    let (mut read, mut serve, mut write, mut receive) = (vec![], vec![], vec![], vec![]);
    let mut work = [vec![], vec![]];
    for _ in 0..rounds {
        bench.absent(large).await?;
        write.push(bench.write().await?);
        bench.absent(large).await?;
        let before = bench.process.cpu()?;
        receive.push(bench.receive(large).await?);
        work[1].push(bench.size() / (bench.process.cpu()? - before));
        read.push(bench.read().await?);
        let before = bench.process.cpu()?;
        serve.push(bench.serve().await?);
        work[0].push(bench.size() / (bench.process.cpu()? - before));
    }
    let alone = bench.process.memory("VmHWM")?;
    bench.absent(small).await?;
    let both = bench.clone();
    let (served, received) = tokio::join!(both.serve(), bench.receive(small));
    let together = json!({"serve": served?, "receive": received?});
    let figures = json!({
        "read": read, "serve": serve, "write": write, "receive": receive, "together": together,
        "serve_cpu": work[0], "receive_cpu": work[1],
        "idle_mib": idle, "most_alone_mib": alone, "most_together_mib": bench.process.memory("VmHWM")?,
    });
    println!("{figures}");
    Ok(())
}

#[derive(Clone)]
struct Bench {
    containerd: Containerd,
    process: Arc<Program>,
    client: PullerServiceClient<Channel>,
    peer: PeerServiceClient<Channel>,
    signing: Arc<Signing>,
    other: Arc<Other>,
    /// The large one, then the small one.
    images: [Arc<Image>; 2],
    _certificates: Arc<Certificates>,
    seq: u64,
}

impl Bench {
    async fn start(puller: &str, socket: &str, images: [&String; 2]) -> anyhow::Result<Self> {
        let socket = PathBuf::from(socket);
        let socket_of = || cri::Socket::new(socket.clone());
        let bulk = cri::connect_for_layers(socket_of());
        let containerd = Containerd::new(cri::connect(socket_of()), bulk);
        let read = [
            read(&containerd, images[0]).await?,
            read(&containerd, images[1]).await?,
        ];
        let ca: Arc<Ca> = Arc::default();
        let certificates = Certificates::of(ca.clone());
        let directory = certificates.directory.path();
        let mut command = Command::new(puller);
        command.args([
            "--node-name",
            NODE,
            "--disk-watermark",
            "100",
            "--debug-address",
            "off",
        ]);
        command.args([
            "--listen-port",
            &PORT.to_string(),
            "--http-port",
            &HTTP.to_string(),
        ]);
        command
            .arg("--tls-dir")
            .arg(directory)
            .arg("--cri-socket-path")
            .arg(&socket);
        let process = Program::start(command.stdout(Stdio::null()));
        let process = process.with_context(|| format!("cannot run {puller}"))?;
        let client = connect(PORT, &ca).await;
        let leaf = controller_leaf(&ca);
        let identity = Identity::from_pem(leaf.certificate.as_bytes(), leaf.key.as_bytes(), b"")?;
        let own = ca.issue(&[&names::peer(NAMESPACE, OTHER)], Usage::Client);
        let mut bench = Self {
            containerd,
            process: Arc::new(process),
            client,
            peer: PeerServiceClient::new(dial(PORT, &own, &ca).await?),
            signing: Arc::new(Signing::new(&identity)?),
            other: Arc::new(Other::start(&read, &ca).await?),
            images: read,
            _certificates: Arc::new(certificates),
            seq: 0,
        };
        bench.introduce(&ca).await?;
        // Until nothing of the start is left to do.
        sleep(Duration::from_secs(5)).await;
        Ok(bench)
    }

    /// Gives the puller its certificate for other pullers.
    async fn introduce(&mut self, ca: &Ca) -> anyhow::Result<()> {
        let node_name = NODE.to_owned();
        let info = self
            .client
            .get_info(GetInfoRequest { node_name })
            .await?
            .into_inner();
        let own = names::peer(NAMESPACE, NODE);
        let certificate = ca.certify(&info.peer_certificate_request, &[&own], Usage::Client);
        let request = SetPeerIdentityRequest {
            node_name: NODE.to_owned(),
            certificates: vec![certificate],
        };
        self.client.set_peer_identity(request).await?;
        Ok(())
    }

    /// The image and its layers are not there any more.
    async fn absent(&self, name: &str) -> anyhow::Result<()> {
        let removed = Command::new("crictl").args(["rmi", name]).output()?;
        let said = String::from_utf8_lossy(&removed.stderr).into_owned();
        ensure!(
            removed.status.success() || said.contains("no such image"),
            "{said}"
        );
        for purpose in [Purpose::Pull, Purpose::Hold] {
            for lease in self.containerd.leases(purpose).await? {
                self.containerd.end_lease(lease.id, true).await?;
            }
        }
        // Ending a lease at once is also a garbage collection.
        let image = self.image(name);
        for (digest, _) in &image.layers {
            let began = Instant::now();
            while self.containerd.size_of(digest).await?.is_some() {
                ensure!(
                    began.elapsed() < PATIENCE,
                    "{digest} stays in containerd's store"
                );
                self.collect().await?;
                sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    async fn collect(&self) -> anyhow::Result<()> {
        self.containerd.make_lease(&lease()).await?;
        Ok(self.containerd.end_lease(lease().id, true).await?)
    }

    fn image(&self, name: &str) -> &Image {
        let [large, small] = &self.images;
        if large.name == name { large } else { small }
    }

    /// containerd's Content.Write alone: the layer of the large image.
    async fn write(&self) -> anyhow::Result<f64> {
        let (digest, bytes) = &self.images[0].layers[0];
        self.containerd.make_lease(&lease()).await?;
        let began = Instant::now();
        let size = bytes.len() as u64;
        let mut ingest = self.containerd.open(&lease().id, digest, size).await?;
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            ingest.write(rest.split_to(rest.len().min(PART))).await?;
        }
        ensure!(ingest.is_right().await? == Some(true), "another digest");
        ingest.commit().await?;
        Ok(rate(bytes.len(), began))
    }

    /// containerd's Content.Read alone.
    async fn read(&self) -> anyhow::Result<f64> {
        let (digest, bytes) = &self.images[0].layers[0];
        let began = Instant::now();
        let mut stream = self.containerd.read_from(digest, 0).await?;
        let mut got = 0;
        while let Some(ReadContentResponse { data, .. }) = stream.message().await? {
            got += data.len();
        }
        ensure!(got == bytes.len(), "{got} bytes");
        Ok(rate(got, began))
    }

    /// The same layer from the puller.
    async fn serve(&self) -> anyhow::Result<f64> {
        let image = &self.images[0];
        let request = GetBlobRequest {
            node_name: NODE.to_owned(),
            ticket: Some(self.ticket(OTHER, &image.digest)?),
            ticket_signer: self.signing.chain().to_vec(),
            digest: image.layers[0].0.clone(),
            ..GetBlobRequest::default()
        };
        let began = Instant::now();
        let mut stream = self.peer.clone().get_blob(request).await?.into_inner();
        let mut got = 0;
        while let Some(message) = stream.message().await? {
            if let Some(Part::Data(data)) = message.part {
                got += data.len();
            }
        }
        ensure!(got == image.layers[0].1.len(), "{got} bytes");
        Ok(rate(got, began))
    }

    /// The puller takes an image from the other node: from the first request for a layer until all layers are in the store.
    async fn receive(&mut self, name: &str) -> anyhow::Result<f64> {
        self.seq += 1;
        let image = self.image(name);
        let request = PullImagesRequest {
            authority: Some(Authority {
                node_name: NODE.to_owned(),
                term: 7,
                seq: self.seq,
                batch_id: self.seq,
            }),
            images: vec![self.pull(image)?],
            ticket_signer: self.signing.chain().to_vec(),
            ..PullImagesRequest::default()
        };
        self.other.forget();
        let mut stream = self.client.clone().pull_images(request).await?.into_inner();
        let stored = self.stored(image);
        let pulled = async {
            while let Some(message) = stream.message().await? {
                if let Some(pull_images_response::Event::Outcomes(outcomes)) = message.event {
                    let outcome = outcomes.outcomes.into_iter().next();
                    return outcome.context("no outcome");
                }
            }
            bail!("the call ended without an outcome")
        };
        let (ended, outcome) = tokio::try_join!(stored, pulled)?;
        ensure!(outcome.result() == PullResult::Pulled, "{outcome:?}");
        let size: usize = image.layers.iter().map(|(_, bytes)| bytes.len()).sum();
        ensure!(outcome.peer_bytes == size as u64, "{outcome:?}");
        let began = self.other.began().context("no layer was asked for")?;
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        Ok(size as f64 / (ended - began).as_secs_f64())
    }

    fn pull(&self, image: &Image) -> anyhow::Result<ImagePull> {
        Ok(ImagePull {
            peers: vec![PeerSource {
                node_name: OTHER.to_owned(),
                address: format!("127.0.0.1:{}", self.other.port),
            }],
            ticket: Some(self.ticket(NODE, &image.digest)?),
            freshness: format!("round {}", self.seq),
            ..common::image(&image.name)
        })
    }

    async fn stored(&self, image: &Image) -> anyhow::Result<Instant> {
        let began = Instant::now();
        for (digest, _) in &image.layers {
            while self.containerd.size_of(digest).await?.is_none() {
                ensure!(began.elapsed() < PATIENCE, "{digest} does not come");
                sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(Instant::now())
    }

    fn ticket(&self, node: &str, digest: &str) -> anyhow::Result<Ticket> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
        let claims = kubefledged_contract::tickets::claims(node, digest, now);
        Ok(Ticket {
            signature: self.signing.sign(&claims)?,
            claims,
        })
    }

    /// Bytes of the large image.
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    fn size(&self) -> f64 {
        let layers = self.images[0].layers.iter();
        layers.map(|(_, bytes)| bytes.len() as f64).sum()
    }
}

fn lease() -> Lease {
    let end = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_secs()
        + 600;
    Lease {
        id: "kubefledged-bench".to_owned(),
        purpose: Purpose::Pull,
        end: kubefledged_api_types::Timestamp(i64::try_from(end).unwrap_or_default()),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn rate(bytes: usize, began: Instant) -> f64 {
    bytes as f64 / began.elapsed().as_secs_f64()
}

/// An image as containerd has it.
async fn read(containerd: &Containerd, name: &str) -> anyhow::Result<Arc<Image>> {
    let digest = containerd.target(name).await?;
    let digest = digest.with_context(|| format!("containerd has no {name}"))?;
    let manifest = containerd.read(digest.clone()).await?;
    let parsed: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = parsed["layers"]
        .as_array()
        .context("no manifest of one platform")?;
    let mut found = Vec::new();
    for layer in layers {
        let digest = layer["digest"]
            .as_str()
            .context("a layer without a digest")?;
        let mut stream = containerd.read_from(digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            bytes.extend_from_slice(&message.data);
        }
        found.push((digest.to_owned(), Bytes::from(bytes)));
    }
    Ok(Arc::new(Image {
        name: name.to_owned(),
        digest,
        manifest,
        layers: found,
    }))
}
