//! The roles of certificates. Each part has one certificate, with one name and one use.

use kubefledged_process::tls::names;
use rcgen::ExtendedKeyUsagePurpose;

/// The role of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Server certificate of the pullers, for calls of the controller. All pullers share it.
    Puller,
    /// Client certificate of the controller, for calls to pullers.
    Controller,
    /// Server certificate of the webhook, for calls of the API server.
    Webhook,
    /// Client certificate of a person, for read-only calls to pullers.
    Debug,
}

impl Role {
    /// All roles, in the order in which an installation needs them.
    pub const ALL: [Self; 4] = [Self::Puller, Self::Controller, Self::Webhook, Self::Debug];

    /// Returns the name of the role's Secret.
    pub fn secret(self, prefix: &str) -> String {
        let part = match self {
            Self::Puller => "puller",
            Self::Controller => "controller",
            Self::Webhook => "webhook-server",
            Self::Debug => "debug",
        };
        format!("{prefix}-{part}-tls")
    }

    /// Returns the label value of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Puller => "puller",
            Self::Controller => "controller",
            Self::Webhook => "webhook",
            Self::Debug => "debug",
        }
    }

    /// Returns exactly the DNS names of its certificate.
    pub fn names(self, namespace: &str, webhook_service: &str) -> Vec<String> {
        match self {
            Self::Puller => vec![names::puller(namespace)],
            Self::Controller => vec![names::controller(namespace)],
            Self::Debug => vec![names::debug(namespace)],
            // The API server uses the last name. A port-forward or a person uses the others.
            Self::Webhook => vec![
                webhook_service.to_owned(),
                format!("{webhook_service}.{namespace}"),
                format!("{webhook_service}.{namespace}.svc"),
            ],
        }
    }

    /// Returns the side of a connection for which the certificate may be used.
    pub fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Puller | Self::Webhook => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Controller | Self::Debug => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    /// Returns the same side for verification.
    pub fn key_usage(self) -> webpki::KeyUsage {
        match self {
            Self::Puller | Self::Webhook => webpki::KeyUsage::server_auth(),
            Self::Controller | Self::Debug => webpki::KeyUsage::client_auth(),
        }
    }
}
