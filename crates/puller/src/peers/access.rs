//! Who may take what: the ticket of a request, and the certificate with which it comes.

use std::sync::Arc;

use kubefledged_contract::tickets;
use kubefledged_process::tls::{Served, names, signed};
use kubefledged_proto::puller::Ticket;
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::authorize::Peer;

/// Verifies tickets.
#[derive(Clone, Debug)]
pub struct Access {
    /// Our namespace, which is in all names.
    pub namespace: Arc<str>,
    /// Our node.
    pub node: Arc<str>,
    /// The CAs that we trust now.
    pub served: watch::Receiver<Option<Arc<Served>>>,
}

impl Access {
    /// Returns the digest of the image that whoever sends this request may take.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: the request is for another node; `PERMISSION_DENIED`: it may take nothing.
    #[allow(clippy::result_large_err)] // tonic's own error
    pub fn check<T>(
        &self,
        request: &Request<T>,
        asked: &str,
        ticket: Option<&Ticket>,
        signer: &[Vec<u8>],
    ) -> Result<String, Status> {
        let own = &*self.node;
        if asked != own {
            return Err(Status::invalid_argument(format!(
                "this is the puller of node {own:?}, not of {asked:?}"
            )));
        }
        let peer = request.extensions().get::<Peer>().cloned();
        let refused = |error: &dyn std::fmt::Display| Status::permission_denied(error.to_string());
        let digest = self.ticket(ticket, signer, &peer.unwrap_or_default());
        digest.map_err(|error| refused(&error))
    }

    fn ticket(
        &self,
        ticket: Option<&Ticket>,
        signer: &[Vec<u8>],
        peer: &Peer,
    ) -> anyhow::Result<String> {
        let ticket = ticket.ok_or(tickets::Refused::Missing)?;
        let now = signed::now();
        let is_asking = |node: &str| peer.names() == [names::peer(&self.namespace, node)];
        let digest = tickets::check(ticket, is_asking, now)?;
        let anchors = self
            .served
            .borrow()
            .as_ref()
            .map(|served| served.anchors.clone());
        let (name, anchors) = (
            names::controller(&self.namespace),
            anchors.unwrap_or_default(),
        );
        let trusted = (name.as_str(), anchors.as_slice());
        signed::verify(&ticket.claims, &ticket.signature, signer, trusted, now)?;
        Ok(digest)
    }
}
