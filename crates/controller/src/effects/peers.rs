//! What a pull needs to take layers from other nodes: the certificate of its puller, and a ticket for each image.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use kubefledged_contract::tickets;
use kubefledged_engine::{NodeName, PullItem};
use kubefledged_process::tls::{identity::serial, signed::now};
use kubefledged_proto::puller::{
    GetInfoResponse, PullImagesRequest, SetPeerIdentityRequest, Ticket,
};
use tokio::sync::watch;

use super::{
    dialer::Verified,
    limits::{answered, limited},
};
use crate::certificates::PeerAuthority;

/// What a puller said of its certificate for other pullers when it was connected to, and what it got since.
#[derive(Debug)]
pub struct PeerIdentity {
    request: Vec<u8>,
    serial: Mutex<String>,
}

impl PeerIdentity {
    /// As the puller tells it.
    pub fn of(info: &GetInfoResponse) -> Self {
        Self {
            request: info.peer_certificate_request.clone(),
            serial: Mutex::new(info.peer_serial.clone()),
        }
    }

    fn serial(&self) -> MutexGuard<'_, String> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entitles pulls to layers of other nodes. Clones share their state.
#[derive(Clone)]
pub struct Entitlements {
    authority: watch::Receiver<Option<Arc<PeerAuthority>>>,
    /// The certificate that each node's puller got from this process: its serial number, and who issued it.
    introduced: Arc<Mutex<HashMap<NodeName, (String, String)>>>,
}

impl Entitlements {
    /// Signs and issues with the newest key and CA.
    pub fn new(authority: watch::Receiver<Option<Arc<PeerAuthority>>>) -> Self {
        Self {
            authority,
            introduced: Arc::default(),
        }
    }

    /// Whether pullers can be entitled at all. `None`: it is not known yet.
    pub fn are_possible(&self) -> Option<bool> {
        let authority = self.authority.borrow();
        authority.as_ref().map(|authority| authority.can_issue())
    }

    /// Adds to a request what its images need to come from other nodes. Where that fails they come from the registry.
    pub async fn add(
        &self,
        request: &mut PullImagesRequest,
        node: &NodeName,
        images: &[PullItem],
        puller: &Verified<'_>,
    ) {
        if images.iter().all(|image| image.peers.is_none()) {
            return;
        }
        if let Err(error) = self.try_add(request, node, images, puller).await {
            let error = format!("{error:#}");
            tracing::warn!(%node, error, "images are not taken from other nodes");
            for image in &mut request.images {
                (image.peers, image.ticket) = (Vec::new(), None);
            }
        }
    }

    async fn try_add(
        &self,
        request: &mut PullImagesRequest,
        node: &NodeName,
        images: &[PullItem],
        puller: &Verified<'_>,
    ) -> anyhow::Result<()> {
        let authority = self.authority.borrow().clone();
        let authority = authority.context("there is no certificate of the controller yet")?;
        self.introduce(&authority, node, puller).await?;
        let signing = authority.signing();
        for (image, item) in request.images.iter_mut().zip(images) {
            if let Some(peers) = &item.peers {
                let claims = tickets::claims(&node.0, &peers.digest, now());
                let signature = signing.sign(&claims)?;
                image.ticket = Some(Ticket { claims, signature });
            }
        }
        request.ticket_signer = signing.chain().to_vec();
        Ok(())
    }

    /// Gives the puller a certificate, unless it has one that this process issued under the CA of now.
    async fn introduce(
        &self,
        authority: &PeerAuthority,
        node: &NodeName,
        puller: &Verified<'_>,
    ) -> anyhow::Result<()> {
        let identity = puller.peer_identity();
        let issuer = authority.issuer();
        let has = identity.serial().clone();
        let known = self.introduced().get(node).cloned();
        if !has.is_empty() && known.is_some_and(|known| known == (has, issuer.clone())) {
            return Ok(());
        }
        let seconds = i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
        let certificate = authority.issue(&node.0, &identity.request, seconds)?;
        let number = serial(&certificate.clone().into())?;
        let mut client = puller.client(0);
        let request = limited(SetPeerIdentityRequest {
            node_name: node.to_string(),
            certificates: vec![certificate],
        });
        let answer = answered(client.set_peer_identity(request)).await;
        answer.context("SetPeerIdentity failed")?;
        identity.serial().clone_from(&number);
        self.introduced().insert(node.clone(), (number, issuer));
        Ok(())
    }

    fn introduced(&self) -> MutexGuard<'_, HashMap<NodeName, (String, String)>> {
        let introduced = self.introduced.lock();
        introduced.unwrap_or_else(PoisonError::into_inner)
    }
}
