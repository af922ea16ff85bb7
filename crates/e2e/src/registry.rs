//! What the nodes asked of the local registry.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use anyhow::Context as _;

use crate::Cluster;

/// The registry's access log, from a moment on.
pub struct AccessLog {
    path: PathBuf,
    from: u64,
}

/// One request that has been answered, or broken off.
#[derive(Clone, Debug)]
pub struct Request {
    /// Address of the node, or of the proxy before the registry.
    pub client: String,
    /// GET or HEAD.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Of the body, as far as it was sent.
    pub bytes: u64,
}

impl Cluster {
    /// The plain registry's, from now on.
    pub fn access_log(&self) -> anyhow::Result<AccessLog> {
        self.access_log_of("plain")
    }

    /// That of the plain registry or of the private one, from now on.
    pub fn access_log_of(&self, registry: &str) -> anyhow::Result<AccessLog> {
        let path = PathBuf::from(self.run(&["registry-log", registry], "")?.trim());
        let from = path.metadata().context("the registry's log")?.len();
        Ok(AccessLog { path, from })
    }
}

impl AccessLog {
    /// Bytes of layers and configurations of this image that the registry sent.
    pub fn blob_bytes(&self, image: &str) -> anyhow::Result<u64> {
        let blobs = format!("/v2/{image}/blobs/");
        let requests = self.requests()?.into_iter();
        let sent = requests.filter(|request| request.path.starts_with(&blobs));
        Ok(sent.map(|request| request.bytes).sum())
    }

    /// All requests since then.
    pub fn requests(&self) -> anyhow::Result<Vec<Request>> {
        let mut file = std::fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text.lines().filter_map(request).collect())
    }

    /// How often an image was pulled: a pull asks for its tag once. Then it asks for what the runtime
    /// does not have, which may be nothing: content of a pull that was broken off stays for a day.
    pub fn pulls(&self, image: &str) -> anyhow::Result<usize> {
        let manifests = format!("/v2/demo/{image}/manifests/");
        let by_tag = |request: &Request| {
            let reference = request.path.strip_prefix(&manifests);
            reference.is_some_and(|reference| !reference.starts_with("sha256:"))
        };
        Ok(self.requests()?.iter().filter(|r| by_tag(r)).count())
    }
}

/// A line of the combined log format: `CLIENT - - [TIME] "METHOD PATH PROTOCOL" STATUS BYTES ...`.
fn request(line: &str) -> Option<Request> {
    let mut quoted = line.split('"');
    let client = quoted.next()?.split_whitespace().next()?;
    let mut words = quoted.next()?.split_whitespace();
    let (method, path) = (words.next()?, words.next()?);
    let bytes = quoted.next()?.split_whitespace().nth(1)?;
    Some(Request {
        client: client.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        bytes: bytes.parse().unwrap_or(0),
    })
}
