//! Who has a certificate: each part one, with one name and one use.

use kubefledged_process::tls::names;
use rcgen::ExtendedKeyUsagePurpose;

/// The holder of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Serves the controller. All pullers share it.
    Puller,
    /// Dials the pullers.
    Controller,
    /// Serves the API server.
    Webhook,
    /// Dials the pullers to look.
    Debug,
}

impl Role {
    /// In the order in which they are needed at an installation.
    pub const ALL: [Self; 4] = [Self::Puller, Self::Controller, Self::Webhook, Self::Debug];

    /// Name of its Secret.
    pub fn secret(self, prefix: &str) -> String {
        let part = match self {
            Self::Puller => "puller",
            Self::Controller => "controller",
            Self::Webhook => "webhook-server",
            Self::Debug => "debug",
        };
        format!("{prefix}-{part}-tls")
    }

    /// As a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Puller => "puller",
            Self::Controller => "controller",
            Self::Webhook => "webhook",
            Self::Debug => "debug",
        }
    }

    /// The DNS names of its certificate, and no other.
    pub fn names(self, namespace: &str, webhook_service: &str) -> Vec<String> {
        match self {
            Self::Puller => vec![names::puller(namespace)],
            Self::Controller => vec![names::controller(namespace)],
            Self::Debug => vec![names::debug(namespace)],
            // The API server asks for the last; a port-forward or a person for the others.
            Self::Webhook => vec![
                webhook_service.to_owned(),
                format!("{webhook_service}.{namespace}"),
                format!("{webhook_service}.{namespace}.svc"),
            ],
        }
    }

    /// The side of a connection that it may be on.
    pub fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Puller | Self::Webhook => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Controller | Self::Debug => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    /// The same for verification.
    pub fn key_usage(self) -> webpki::KeyUsage {
        match self {
            Self::Puller | Self::Webhook => webpki::KeyUsage::server_auth(),
            Self::Controller | Self::Debug => webpki::KeyUsage::client_auth(),
        }
    }
}
