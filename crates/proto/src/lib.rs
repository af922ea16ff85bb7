//! Code generated from `proto/`. The hand-written code keeps credentials out of `Debug` and overwrites
//! them in memory.

pub mod bounded;

use zeroize::Zeroize as _;

/// Serialized `FileDescriptorSet` of the controller's services, for gRPC reflection.
pub const CONTROLLER_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/controller.descriptors"));

/// Serialized `FileDescriptorSet` of the puller's services, for gRPC reflection.
pub const PULLER_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/puller.descriptors"));

/// Bytes of a layer in a message.
pub use prost::bytes::Bytes;

pub use packages::{peer::v1 as peer, puller::v1 as puller};

/// Packages whose messages use each other, in modules as deep as their names, as the generated code expects.
mod packages {
    pub mod puller {
        /// The contract between controller and puller.
        pub mod v1 {
            #![allow(clippy::pedantic, missing_docs)]
            tonic::include_proto!("kubefledged.puller.v1");
        }
    }
    pub mod peer {
        /// Layers from one puller to another.
        pub mod v1 {
            #![allow(clippy::pedantic, missing_docs)]
            tonic::include_proto!("kubefledged.peer.v1");
        }
    }
}

/// The debug services of controller and puller.
pub mod debug {
    #![allow(clippy::pedantic, missing_docs)]
    tonic::include_proto!("kubefledged.debug.v1");
}

/// The part of the Container Runtime Interface that the puller uses.
pub mod cri {
    #![allow(clippy::pedantic, missing_docs)]
    tonic::include_proto!("runtime.v1");
}

/// The part of containerd's own API that the puller uses.
pub mod containerd {
    /// References to images and their labels.
    pub mod images {
        #![allow(clippy::pedantic, missing_docs)]
        tonic::include_proto!("containerd.services.images.v1");
    }
    /// Blobs.
    pub mod content {
        #![allow(clippy::pedantic, missing_docs)]
        tonic::include_proto!("containerd.services.content.v1");
    }
    /// What is kept from garbage collection.
    pub mod leases {
        #![allow(clippy::pedantic, missing_docs)]
        tonic::include_proto!("containerd.services.leases.v1");
    }
}

// Each Debug destructures exhaustively, so a new field breaks the build instead of getting into a log.

impl puller::Credential {
    /// Returns a credential with a user and a password.
    pub fn login(username: &str, password: &str) -> Self {
        Self {
            username: username.to_owned(),
            password: password.to_owned(),
            identity_token: String::new(),
            registry_token: String::new(),
        }
    }
}

/// Overwrites the credential in memory when it is dropped.
impl Drop for puller::Credential {
    fn drop(&mut self) {
        let Self {
            username,
            password,
            identity_token,
            registry_token,
        } = self;
        for secret in [username, password, identity_token, registry_token] {
            secret.zeroize();
        }
    }
}

impl Drop for cri::AuthConfig {
    fn drop(&mut self) {
        let Self {
            username,
            password,
            auth,
            server_address: _,
            identity_token,
            registry_token,
        } = self;
        for secret in [username, password, auth, identity_token, registry_token] {
            secret.zeroize();
        }
    }
}

impl std::fmt::Debug for puller::Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            username: _,
            password: _,
            identity_token: _,
            registry_token: _,
        } = self;
        f.write_str("Credential(redacted)")
    }
}

impl std::fmt::Debug for puller::PullImagesRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            authority,
            images,
            credentials,
            ticket_signer: _,
        } = self;
        f.debug_struct("PullImagesRequest")
            .field("authority", authority)
            .field("images", &images.len())
            .field("credentials", &credentials.len())
            .finish()
    }
}

impl std::fmt::Debug for cri::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            username: _,
            password: _,
            auth: _,
            server_address: _,
            identity_token: _,
            registry_token: _,
        } = self;
        f.write_str("AuthConfig(redacted)")
    }
}

impl std::fmt::Debug for cri::PullImageRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            image,
            auth: _,
            sandbox_config: _,
        } = self;
        f.debug_struct("PullImageRequest")
            .field("image", image)
            .finish_non_exhaustive()
    }
}
