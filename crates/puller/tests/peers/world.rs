//! Several pullers of one installation, and their controller.

use std::{sync::Arc, time::Duration};

use kubefledged_process::tls::{Identity, Signing, names};
use kubefledged_proto::puller::{
    Authority, GetInfoRequest, ImagePull, PeerSource, PullImagesRequest, PullOutcome, PullResult,
    SetPeerIdentityRequest, Support, Ticket, Transfer, pull_images_response,
};
use kubefledged_testkit::{Ca, FakeRuntime, Native, Published, Usage, eventually};

use crate::common::{Certificates, NAMESPACE, Puller, controller_leaf, image};

pub const A: &str = "registry.test/team/a:1";

/// The CA, and the controller's key.
pub struct World {
    pub ca: Arc<Ca>,
    pub signing: Signing,
}

impl Default for World {
    fn default() -> Self {
        let ca: Arc<Ca> = Arc::default();
        Self {
            signing: signing(&ca),
            ca,
        }
    }
}

/// Signs as the controller of this CA.
pub fn signing(ca: &Ca) -> Signing {
    let leaf = controller_leaf(ca);
    let identity = Identity::from_pem(leaf.certificate.as_bytes(), leaf.key.as_bytes(), b"");
    Signing::new(&identity.unwrap()).unwrap()
}

/// An image of three layers that have no repetitions, so that a byte in the wrong place shows.
pub fn published(size: usize) -> Published {
    let layer = |seed: usize| {
        let mut state = seed as u64 + 1;
        let bytes = (0..size + seed * 1000).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        });
        bytes.collect()
    };
    Published::new((0..3).map(layer).collect())
}

pub fn total(image: &Published) -> u64 {
    image
        .layers
        .iter()
        .map(|(_, layer)| layer.len() as u64)
        .sum()
}

impl World {
    /// A puller with the certificate for other pullers, beside a runtime whose registry has the image.
    pub async fn node(&self, name: &str, image: &Published, more: &[&str]) -> Puller {
        let mut puller = self.stranger(name, image, more).await;
        self.introduce(name, &mut puller).await;
        puller
    }

    /// A puller without a certificate for other pullers.
    pub async fn stranger(&self, name: &str, image: &Published, more: &[&str]) -> Puller {
        let runtime = FakeRuntime::containerd(Native::WithPins).unwrap();
        runtime.publish(A, image);
        let socket = runtime.socket();
        let socket = ["--cri-socket-path", socket.to_str().unwrap()];
        let certificates = Certificates::of(self.ca.clone());
        Puller::on(name, runtime, certificates, &[&socket[..], more].concat()).await
    }

    /// Issues the certificate with which a puller asks others.
    pub async fn introduce(&self, name: &str, puller: &mut Puller) {
        let node_name = name.to_owned();
        let request = GetInfoRequest { node_name };
        let info = puller.client.get_info(request).await.unwrap().into_inner();
        assert_eq!(info.peer_support(), Support::Yes);
        assert!(info.peer_serial.is_empty());
        let own = names::peer(NAMESPACE, name);
        let request = &info.peer_certificate_request;
        let certificate = self.ca.certify(request, &[&own], Usage::Client);
        let request = SetPeerIdentityRequest {
            node_name: name.to_owned(),
            certificates: vec![certificate],
        };
        puller.client.set_peer_identity(request).await.unwrap();
    }

    pub fn ticket(&self, node: &str, digest: &str) -> Ticket {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let claims = kubefledged_contract::tickets::claims(node, digest, now);
        Ticket {
            signature: self.signing.sign(&claims).unwrap(),
            claims,
        }
    }

    /// A pull of A that may take this image from these nodes.
    pub fn request(&self, node: &str, digest: &str, peers: &[PeerSource]) -> PullImagesRequest {
        let pull = ImagePull {
            peers: peers.to_vec(),
            ticket: Some(self.ticket(node, digest)),
            ..image(A)
        };
        self.request_of(node, pull)
    }

    pub fn request_of(&self, node: &str, pull: ImagePull) -> PullImagesRequest {
        PullImagesRequest {
            authority: Some(Authority {
                node_name: node.to_owned(),
                term: 7,
                seq: 1,
                batch_id: 1,
            }),
            images: vec![pull],
            ticket_signer: self.signing.chain().to_vec(),
            ..PullImagesRequest::default()
        }
    }

    /// Pulls A on a node, and returns what became of it and what was told of it meanwhile.
    pub async fn pull(
        &self,
        puller: &mut Puller,
        request: PullImagesRequest,
    ) -> (PullOutcome, Vec<Transfer>) {
        let stream = puller.client.pull_images(request).await.unwrap();
        let mut stream = stream.into_inner();
        let (mut told, mut outcome) = (Vec::new(), None);
        while let Some(message) = stream.message().await.unwrap() {
            match message.event {
                Some(pull_images_response::Event::Transfers(more)) => told.extend(more.transfers),
                Some(pull_images_response::Event::Outcomes(more)) => {
                    outcome = more.outcomes.into_iter().next();
                }
                _ => {}
            }
        }
        (outcome.unwrap(), told)
    }
}

pub fn peer(node: &str, port: u16) -> PeerSource {
    PeerSource {
        node_name: node.to_owned(),
        address: format!("127.0.0.1:{port}"),
    }
}

/// The image is whole, and nothing of the way in which it came is left.
pub async fn came_whole(puller: &Puller, outcome: &PullOutcome, image: &Published) {
    assert_eq!(outcome.result(), PullResult::Pulled, "{outcome:?}");
    assert!(puller.runtime.holds(A));
    for (digest, _) in &image.layers {
        assert!(puller.runtime.has_blob(digest), "{digest}");
    }
    nothing_stays(puller).await;
}

pub async fn nothing_stays(puller: &Puller) {
    eventually("nothing of the pull stays", async || {
        let runtime = &puller.runtime;
        (runtime.leases().is_empty() && runtime.writes().is_empty()).then_some(())
    })
    .await;
}

/// Bytes that the registry of a node sent.
pub fn fetched(puller: &Puller) -> u64 {
    let parts = puller.runtime.fetched();
    parts.iter().map(|part| part.length as u64).sum()
}

pub const SHORT: Duration = Duration::from_millis(50);
