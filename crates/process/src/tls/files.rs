//! A mounted Secret, read again by content.
//!
//! The kubelet swaps a symbolic link; a watch on the files themselves dies silently then. Three
//! small files every few seconds cost nothing.

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

/// What the three files hold.
#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

/// Keeps `current` at what the directory holds, for a server that demands client certificates.
/// The guard is ready from the first identity on: an old one is better than none.
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
                    tracing::warn!(error, "no new certificate");
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

/// None: nothing new.
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

/// All three from one version of the Secret: the link is followed once.
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
