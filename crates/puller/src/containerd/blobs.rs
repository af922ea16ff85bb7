//! Layers in containerd's content store: read to hand them on, written as other nodes send them, and kept by leases.
//! A pull of containerd waits for a layer that is being written under its name, and goes on at the byte where the writer
//! stopped: so whatever happens here, it ends as it would by itself.

use std::{collections::HashMap, time::Duration};

use kubefledged_api_types::Timestamp;
use kubefledged_proto::{
    Bytes,
    containerd::{
        content::{
            AbortRequest, InfoRequest, ReadContentRequest, ReadContentResponse, WriteAction,
            WriteContentRequest, WriteContentResponse,
        },
        leases::{AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource},
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, metadata::MetadataValue};

use super::{Containerd, within};

/// Label with the end of a lease.
const EXPIRE: &str = "containerd.io/gc.expire";
/// Label that marks a lease as ours. Its value says what it is for.
const OURS: &str = "kubefledged.io/peers";
/// Writes of one blob that are not answered yet, before the next one waits.
const MOST_UNANSWERED: usize = 2;
/// Longest answer to a write. The commit of a large layer waits for the disk.
const ANSWER: Duration = Duration::from_secs(60);

/// What a lease of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Layers that arrive for a pull.
    Pull,
    /// Layers that are kept for other nodes.
    Hold,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Hold => "hold",
        }
    }
}

/// A lease of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its end, after which containerd ignores it.
    pub end: Timestamp,
}

/// How containerd names what is written for a layer.
pub fn layer(digest: &str) -> String {
    format!("layer-{digest}")
}

impl Containerd {
    /// Returns whether layers can be kept here, and so handed on and taken in.
    pub async fn shares(&self) -> Result<bool, Status> {
        match self.leases(Purpose::Pull).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::Unimplemented => Ok(false),
            Err(status) => Err(status),
        }
    }

    // === leases

    /// Makes a lease.
    pub async fn make_lease(&self, lease: &Lease) -> Result<(), Status> {
        let labels = [
            (EXPIRE.to_owned(), lease.end.to_string()),
            (OURS.to_owned(), lease.purpose.word().to_owned()),
        ];
        let request = within(CreateRequest {
            id: lease.id.clone(),
            labels: labels.into(),
        });
        self.leases.clone().create(request).await?;
        Ok(())
    }

    /// Ends a lease. What only it kept is freed soon, or with `at_once` before this returns.
    pub async fn end_lease(&self, id: String, at_once: bool) -> Result<(), Status> {
        let request = within(DeleteRequest { id, sync: at_once });
        match self.leases.clone().delete(request).await {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    /// Returns our leases of this purpose.
    pub async fn leases(&self, purpose: Purpose) -> Result<Vec<Lease>, Status> {
        let filters = vec![format!("labels.\"{OURS}\"==\"{}\"", purpose.word())];
        let request = within(ListRequest { filters });
        let leases = self.leases.clone().list(request).await?.into_inner().leases;
        let leases = leases.into_iter().filter_map(|lease| {
            let labels: HashMap<String, String> = lease.labels;
            let ours = labels.get(OURS).is_some_and(|word| word == purpose.word());
            let end = labels.get(EXPIRE).cloned().unwrap_or_default();
            let end = serde_json::from_value(end.into()).unwrap_or_default();
            ours.then_some(Lease {
                id: lease.id,
                purpose,
                end,
            })
        });
        Ok(leases.collect())
    }

    /// Keeps a blob by a lease. It need not be there yet.
    pub async fn keep(&self, lease: &str, digest: String) -> Result<(), Status> {
        let request = within(AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(Resource {
                id: digest,
                r#type: "content".to_owned(),
            }),
        });
        self.leases.clone().add_resource(request).await?;
        Ok(())
    }

    // === blobs

    /// Returns the size of a blob. `None`: it is not there.
    pub async fn size_of(&self, digest: &str) -> Result<Option<u64>, Status> {
        let digest = digest.to_owned();
        let request = within(InfoRequest { digest });
        match self.content.clone().info(request).await {
            Ok(answer) => {
                let size = answer.into_inner().info.map(|info| info.size);
                Ok(size.and_then(|size| u64::try_from(size).ok()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Reads a blob from an offset on, in one call.
    pub async fn read_from(
        &self,
        digest: &str,
        offset: u64,
    ) -> Result<Streaming<ReadContentResponse>, Status> {
        let request = within(ReadContentRequest {
            digest: digest.to_owned(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            size: 0,
        });
        Ok(self.bulk.clone().read(request).await?.into_inner())
    }

    /// Returns whether somebody writes this layer, or has begun to.
    pub async fn is_arriving(&self, digest: &str) -> Result<bool, Status> {
        Ok(self.statuses().await?.contains_key(digest))
    }

    /// Returns the digest that a name points to. `None`: there is no such image.
    pub async fn target(&self, name: &str) -> Result<Option<String>, Status> {
        let image = self.image(name.to_owned()).await?;
        Ok(image
            .and_then(|image| image.target)
            .map(|target| target.digest))
    }

    /// Becomes the writer of a layer, under a lease. `ALREADY_EXISTS`: it is there; `UNAVAILABLE`: somebody else writes
    /// it.
    pub async fn open(&self, lease: &str, digest: &str, size: u64) -> Result<Ingest, Status> {
        let name = layer(digest);
        let first = WriteContentRequest {
            r#ref: name.clone(),
            total: signed(size),
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        let (requests, stream) = mpsc::channel(1);
        // It takes the first message without waiting, and nobody else sends one.
        let _ = requests.try_send(first);
        let mut request = within(ReceiverStream::new(stream));
        let value = MetadataValue::try_from(lease)
            .map_err(|_| Status::invalid_argument("not a name of a lease"))?;
        request.metadata_mut().insert("containerd-lease", value);
        let answers = timeout(ANSWER, self.bulk.clone().write(request)).await;
        let mut ingest = Ingest {
            containerd: self.clone(),
            name,
            expected: digest.to_owned(),
            total: size,
            requests,
            answers: answers.map_err(|_| late())??.into_inner(),
            offset: 0,
            unanswered: 1,
            digest: String::new(),
        };
        let answer = ingest.answer().await?;
        ingest.offset = u64::try_from(answer.offset).unwrap_or_default();
        Ok(ingest)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn late() -> Status {
    Status::deadline_exceeded("the runtime does not answer in time")
}

/// A layer that we write. Dropping it lets the runtime go on at the byte where we stopped.
pub struct Ingest {
    containerd: Containerd,
    name: String,
    expected: String,
    total: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    offset: u64,
    unanswered: usize,
    /// Digest of what is written, as the last answer says.
    digest: String,
}

impl Ingest {
    /// Bytes that are written, or sent to be.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes the next bytes. The runtime may still be writing them when this returns.
    pub async fn write(&mut self, data: Bytes) -> Result<(), Status> {
        while self.unanswered >= MOST_UNANSWERED {
            self.answer().await?;
        }
        let length = data.len() as u64;
        self.send(WriteAction::Write, self.offset, data).await?;
        self.offset += length;
        Ok(())
    }

    /// Waits until everything is written. Returns whether its digest is the right one; `None`: the runtime does not say.
    pub async fn is_right(&mut self) -> Result<Option<bool>, Status> {
        while self.unanswered > 0 {
            self.answer().await?;
        }
        if self.digest.is_empty() {
            // Nothing was sent in this stream: all of it was there.
            self.send(WriteAction::Stat, self.offset, Bytes::new())
                .await?;
            self.answer().await?;
        }
        Ok((!self.digest.is_empty()).then(|| self.digest == self.expected))
    }

    /// Discards everything that is written.
    pub async fn restart(&mut self) -> Result<(), Status> {
        while self.unanswered > 0 {
            self.answer().await?;
        }
        self.send(WriteAction::Write, 0, Bytes::new()).await?;
        self.answer().await?;
        self.offset = 0;
        Ok(())
    }

    /// Adds the layer to the store.
    pub async fn commit(mut self) -> Result<(), Status> {
        let offset = self.offset;
        self.send(WriteAction::Commit, offset, Bytes::new()).await?;
        match self.answer().await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Deletes what is written, while nobody else can be writing it.
    pub async fn discard(self) -> Result<(), Status> {
        let request = within(AbortRequest {
            r#ref: self.name.clone(),
        });
        let aborted = self.containerd.content.clone().abort(request).await;
        match aborted {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    async fn send(&mut self, action: WriteAction, offset: u64, data: Bytes) -> Result<(), Status> {
        let mut request = WriteContentRequest {
            total: signed(self.total),
            offset: signed(offset),
            data,
            ..WriteContentRequest::default()
        };
        if action == WriteAction::Commit {
            request.expected.clone_from(&self.expected);
        }
        request.set_action(action);
        self.unanswered += 1;
        match timeout(ANSWER, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            // The stream has ended, and its last answer says why.
            Ok(Err(_)) => self.answer().await.map(drop),
            Err(_) => Err(late()),
        }
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let message = timeout(ANSWER, self.answers.message()).await;
        let message = message.map_err(|_| late())??;
        let answer = message.ok_or_else(|| Status::aborted("the runtime ended the write"))?;
        self.unanswered = self.unanswered.saturating_sub(1);
        self.digest.clone_from(&answer.digest);
        Ok(answer)
    }
}
