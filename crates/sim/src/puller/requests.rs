//! Requests of controllers on their way into a queue.

use kubefledged_contract::puller::{self as contract, Malformed};
use kubefledged_proto::puller::{
    CancelPullsRequest, CheckImagesRequest, Credential, PullImagesRequest, RemoveImagesRequest,
};
use kubefledged_queue::{CredentialId, Event as QueueEvent, StreamId};
use prost::Message as _;

use crate::{
    network::Purpose,
    node::Process,
    rng::mix,
    script::Trouble,
    world::{Event, World},
};

impl World {
    /// A request reaches a node.
    pub fn request_arrives(&mut self, id: u64, bytes: &[u8]) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let (node, incarnation, purpose) = (link.node, link.incarnation, link.purpose);
        let there = self.nodes[node].process.as_ref();
        if link.broken || there.is_none_or(|process| process.incarnation != incarnation) {
            return self.lost(id);
        }
        if self.is(Trouble::CutOff(node)) {
            return;
        }
        let name = self.nodes[node].name.to_string();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.counter += 1;
        let stream = StreamId(process.counter);
        process.streams.insert(stream, id);
        let event = match event(process, &name, stream, purpose, bytes) {
            Ok(event) => event,
            Err(error) => return self.broken("requests are sound", error),
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.stream = Some(stream);
            if !link.listens {
                // Its caller gave up on the way.
                let wait = self.rng.between(1, 5_000);
                self.after(wait, Event::Closed(id));
            }
        }
        self.requested(node, &event);
        self.queue_told(node, event);
    }

    /// Nobody listens at the other end.
    pub fn closed(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        // Its caller has still to learn of it.
        link.closed = true;
        let (node, incarnation, stream) = (link.node, link.incarnation, link.stream);
        if !link.listens {
            self.links.remove(&id);
        }
        let process = self.nodes[node].process.as_mut();
        if let Some(stream) = stream
            && let Some(process) = process.filter(|p| p.incarnation == incarnation)
        {
            process.streams.remove(&stream);
            process.seen.waiting.ended(stream);
            self.queue_told(node, QueueEvent::Closed(stream));
        }
    }
}

fn event(
    process: &mut Process,
    name: &str,
    stream: StreamId,
    purpose: Purpose,
    bytes: &[u8],
) -> Result<QueueEvent, String> {
    let decode = |error: prost::DecodeError| error.to_string();
    let malformed = |error: Malformed| error.to_string();
    match purpose {
        Purpose::Pull => {
            let request = PullImagesRequest::decode(bytes).map_err(decode)?;
            let authority = contract::authority(name, request.authority).map_err(malformed)?;
            let mut credentials = Vec::new();
            for credential in request.credentials {
                process.counter += 1;
                process
                    .users
                    .insert(process.counter, credential.username.clone());
                credentials.push((CredentialId(process.counter), credential));
            }
            let images = request.images.into_iter();
            let signer = request.ticket_signer.into();
            let images = images
                .map(|image| contract::pull_request(image, &credentials, &signer, hash))
                .collect::<Result<_, _>>()
                .map_err(malformed)?;
            Ok(QueueEvent::Pull(stream, authority, images))
        }
        Purpose::Remove => {
            let request = RemoveImagesRequest::decode(bytes).map_err(decode)?;
            contract::remove_event(name, stream, request).map_err(malformed)
        }
        Purpose::Check => {
            let request = CheckImagesRequest::decode(bytes).map_err(decode)?;
            contract::check_node(name, &request.node_name).map_err(malformed)?;
            Ok(QueueEvent::Check(stream, request.references))
        }
        Purpose::Cancel => {
            let request = CancelPullsRequest::decode(bytes).map_err(decode)?;
            contract::cancel_event(name, stream, request).map_err(malformed)
        }
    }
}

/// The same for the same credentials.
fn hash(credentials: &[&Credential]) -> u64 {
    let bytes = credentials.iter().flat_map(|c| c.username.bytes());
    bytes.fold(credentials.len() as u64, |hash, byte| {
        mix(hash ^ u64::from(byte))
    })
}
