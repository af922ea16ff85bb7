//! `[host[:port]/]path[:tag][@digest]`, normalized as the distribution project does it
//! (<https://github.com/distribution/reference>).

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

const DOCKER_HUB: &str = "docker.io";

/// A parsed image reference: the text as it was written, and its parts after normalization.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    written: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference, and what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// Nothing was written.
    #[error("the name is empty: write it like registry.example.com/team/app:1.0")]
    Empty,
    /// Blanks, tabs or line ends, often from a copy.
    #[error("the name has white space in it: remove it")]
    WhiteSpace,
    /// A scheme such as `https://` or `docker://`.
    #[error("the name begins with a scheme: remove everything up to and with ://")]
    Scheme,
    /// The repository has upper-case letters. A host may: then it has a dot or a port.
    #[error("the repository must be lower case")]
    UpperCase,
    /// The repository has a character or a separator that the grammar does not know.
    #[error(
        "the repository must be a-z and 0-9, with single ., _, __ or any number of - between \
         them, and / between components"
    )]
    Repository,
    /// The repository is longer than 255 characters.
    #[error("the repository is longer than 255 characters: shorten it")]
    RepositoryTooLong,
    /// The part before the first slash can only be a host and does not parse as one.
    #[error("the registry host must be like registry.example.com:5000 or [fd00::1]:5000")]
    Registry,
    /// Host and port are longer than 255 characters.
    #[error("the registry host is longer than 255 characters: shorten it")]
    RegistryTooLong,
    /// The tag does not parse.
    #[error(
        "the tag must be 1 to 128 of A-Z, a-z, 0-9, _, . and -, and must not begin with . or -"
    )]
    Tag,
    /// The digest does not parse, is of an algorithm that no kubelet knows, or has not its length.
    #[error(
        "the digest must be sha256: and 64, sha384: and 96 or sha512: and 128 digits of 0-9 and a-f"
    )]
    Digest,
    /// 64 hexadecimal digits alone are an image id, which no registry can be asked for.
    #[error("64 hexadecimal digits are an image id: write a repository with a tag or digest")]
    ImageId,
}

impl ImageRef {
    /// Host and port of the registry: `docker.io` where none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// One text for all spellings of a registry, for what is counted or limited per registry: in
    /// lower case, and without the port that HTTPS has anyway. `Registry.Corp`, `registry.corp:443`
    /// and `registry.corp` are one. It is no name to ask a runtime for: a credential's port counts.
    pub fn registry_key(&self) -> String {
        let lower = self.registry.to_ascii_lowercase();
        let (name, port) = match lower.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port.trim_start_matches('0')),
            _ => (lower.as_str(), ""),
        };
        match (name, port) {
            // Where Docker Hub really answers.
            ("registry-1.docker.io" | "index.docker.io" | DOCKER_HUB, "" | "443") => {
                DOCKER_HUB.to_owned()
            }
            (name, "" | "443") => name.to_owned(),
            (name, port) => format!("{name}:{port}"),
        }
    }

    /// The path within the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// No digest, and no tag or `:latest`: what it means may change any day.
    pub fn is_floating(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref().is_none_or(|tag| tag == "latest")
    }

    /// One text for all spellings: `docker.io/library/nginx:latest`. A digest makes the tag
    /// meaningless and drops it, as containerd does.
    pub fn normalized(&self) -> String {
        let Self {
            registry,
            repository,
            ..
        } = self;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{registry}/{repository}@{digest}"),
            (None, Some(tag)) => format!("{registry}/{repository}:{tag}"),
            (None, None) => format!("{registry}/{repository}:latest"),
        }
    }

    /// What the runtime is asked for: as written, with `:latest` where neither tag nor digest is
    /// there. Short names stay short, as the kubelet leaves them.
    pub fn runtime_name(&self) -> String {
        if self.tag.is_none() && self.digest.is_none() {
            format!("{}:latest", self.written)
        } else {
            self.written.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}
