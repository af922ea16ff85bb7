//! Follows a mounted Secret by reading its files again.
//!
//! The kubelet replaces a symbolic link when the Secret changes, and a watch on the files would then
//! end without an error. Reading three small files every few seconds costs nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Identity, IdentityError, Served, keys};
use crate::Guard;

const LOOK: Duration = Duration::from_secs(5);

/// Content of the three files.
#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

/// Keeps `current` equal to the identity in the directory, for a server that requires client
/// certificates. The guard is ready from the first identity on and stays ready, because an old
/// identity is better than none.
pub async fn follow(
    directory: PathBuf,
    current: watch::Sender<Option<Arc<Served>>>,
    guard: Guard,
    shutdown: CancellationToken,
) {
    let mut known: Option<Content> = None;
    let mut complained = String::new();
    loop {
        match load(&directory, known.as_ref()) {
            Ok(None) => {}
            Ok(Some((content, served))) => {
                tracing::info!(
                    serial = served.serial,
                    trusted = served.trusted.join(","),
                    "certificate loaded"
                );
                current.send_replace(Some(Arc::new(served)));
                guard.set_ready();
                known = Some(content);
                complained.clear();
            }
            Err(error) => {
                let error = format!("{}: {error}", directory.display());
                if known.is_none() {
                    guard.set_pending(error.clone());
                }
                if error != complained {
                    tracing::warn!(error, "cannot use the new certificate");
                    complained = error;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Returns `None` if nothing changed.
fn load(
    directory: &Path,
    known: Option<&Content>,
) -> Result<Option<(Content, Served)>, IdentityError> {
    let content = read(directory)?;
    if known == Some(&content) {
        return Ok(None);
    }
    let identity = Identity::from_pem(&content.certificate, &content.key, &content.ca)?;
    let served = identity.mutual_server()?;
    Ok(Some((content, served)))
}

/// Reads all three files of one version of the Secret: the link is followed only once.
fn read(directory: &Path) -> Result<Content, IdentityError> {
    let version = directory.join("..data").canonicalize();
    let directory = version.unwrap_or_else(|_| directory.to_owned());
    let read = |name| -> Result<Vec<u8>, IdentityError> {
        std::fs::read(directory.join(name)).map_err(|_: io::Error| IdentityError::Missing(name))
    };
    Ok(Content {
        certificate: read(keys::CERTIFICATE)?,
        key: read(keys::KEY)?,
        ca: read(keys::CA)?,
    })
}
