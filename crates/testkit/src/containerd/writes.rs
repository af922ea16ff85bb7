//! Writes to the content store of the fake containerd: one writer of a name at a time.

use std::sync::{Arc, Mutex, PoisonError};

use kubefledged_proto::containerd::content::{
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::store::{WriteError, sha256};
use crate::runtime::State;

type Answers = mpsc::Sender<Result<WriteContentResponse, Status>>;

/// One stream of writes. It holds the lock of its name until it is dropped.
pub(crate) struct Writer {
    pub state: Arc<Mutex<State>>,
    pub lease: String,
    pub name: String,
    pub expected: String,
    pub open: bool,
}

impl Writer {
    /// Answers each message until the caller is gone or something fails.
    pub async fn run(mut self, mut requests: Streaming<WriteContentRequest>, answers: Answers) {
        while let Ok(Some(request)) = requests.message().await {
            let pace = self.state().write_pace;
            tokio::time::sleep(pace).await;
            let last = request.action() == WriteAction::Commit;
            let answer = self.take(&request);
            let failed = answer.is_err();
            if answers.send(answer).await.is_err() || failed || last {
                return;
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn take(&mut self, request: &WriteContentRequest) -> Result<WriteContentResponse, Status> {
        if !self.open {
            (self.name, self.expected) = (request.r#ref.clone(), request.expected.clone());
            let (name, expected, lease) = (&self.name, &self.expected, &self.lease);
            let opened = {
                let store = &mut self.state().store;
                store.open(name, expected, request.total, lease)
            };
            opened.map_err(|error| match error {
                WriteError::Exists => Status::already_exists(format!("content {expected}")),
                WriteError::Locked => Status::unavailable(format!("ref {name} locked")),
            })?;
            self.open = true;
        }
        let (name, action) = (self.name.clone(), request.action());
        let offset = usize::try_from(request.offset).unwrap_or_default();
        let mut state = self.state();
        // What was aborted meanwhile does not come back because its writer goes on.
        let write = state.store.writes.get_mut(&name);
        let write = write.ok_or_else(|| Status::not_found(format!("ingest {name}")))?;
        if action != WriteAction::Stat {
            if offset > 0 && offset != write.data.len() {
                return Err(Status::out_of_range("not at the end of what is there"));
            }
            if offset == 0 {
                write.data.clear();
            }
            write.data.extend_from_slice(&request.data);
        }
        let mut answer = WriteContentResponse {
            offset: i64::try_from(write.data.len()).unwrap_or_default(),
            total: write.total,
            digest: sha256(&write.data),
            ..WriteContentResponse::default()
        };
        answer.set_action(action);
        if action == WriteAction::Commit {
            let whole = i64::try_from(write.data.len()) == Ok(write.total);
            if !whole || !state.store.commit(&name, &self.expected, &self.lease) {
                return Err(Status::failed_precondition("unexpected commit digest"));
            }
        }
        Ok(answer)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.open {
            self.state().store.unlock(&self.name);
        }
    }
}
