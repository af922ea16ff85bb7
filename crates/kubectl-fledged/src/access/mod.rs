//! Access to the cluster: kubeconfig, namespaces, the installation with its leader, and the debug endpoints.

mod cache;
pub mod controller;
mod forward;
mod installation;
pub mod kubelet;
pub mod puller;

use std::{net::SocketAddr, time::Duration};

use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

pub use cache::StoredCache;
pub use controller::Controller;
pub use installation::Installation;
pub use puller::Puller;

use crate::{
    args::Global,
    exit::{Failure, chain},
};

/// Nobody waits longer for what is only a help: what a node itself says.
const PATIENCE: Duration = Duration::from_secs(5);

/// Access with the rights of the user of a kubeconfig.
#[derive(Clone)]
pub struct Access {
    /// Client of the API server.
    pub client: Client,
    /// Namespace of the flags, or of the context.
    pub namespace: String,
    /// All namespaces are meant.
    pub all: bool,
    installation: Option<String>,
    debug_address: Option<SocketAddr>,
}

impl Access {
    /// Reads the kubeconfig. Connects to nothing yet.
    pub async fn new(global: &Global) -> Result<Self, Failure> {
        let mut config = config(global).await?;
        // Otherwise a 503, as for a node whose kubelet is away, is asked for again for minutes before anybody hears of it.
        config.default_retry = false;
        let namespace = global.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config);
        let client = client.map_err(|error| Failure::of_kube("cannot use the kubeconfig", &error));
        Ok(Self {
            client: client?,
            namespace,
            all: global.all_namespaces,
            installation: global.installation.clone(),
            debug_address: global.debug_address,
        })
    }

    /// `ImageCaches` of the namespace, or of all.
    pub fn caches(&self) -> Api<StoredCache> {
        if self.all {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        }
    }

    /// One `ImageCache` of the namespace.
    pub async fn cache(&self, name: &str) -> Result<StoredCache, Failure> {
        if self.all {
            return Err(Failure::Usage(
                "write the namespace of the ImageCache with -n; -A is for lists".to_owned(),
            ));
        }
        let found = self.caches().get_opt(name).await;
        let found =
            found.map_err(|error| Failure::of_kube("cannot read the ImageCache", &error))?;
        found.ok_or_else(|| {
            Failure::Failed(format!(
                "there is no ImageCache {name} in the namespace {}: kubectl fledged list -A",
                self.namespace
            ))
        })
    }

    /// The installation of kubefledged and its leader.
    pub async fn installation(&self) -> Result<Installation, Failure> {
        Installation::find(&self.client, self.installation.as_deref()).await
    }
}

async fn config(global: &Global) -> Result<Config, Failure> {
    if global.kubeconfig.is_none() && global.context.is_none() {
        return Config::infer().await.map_err(|error| {
            Failure::NoAccess(format!("there is no usable kubeconfig: {}", chain(&error)))
        });
    }
    let unusable =
        |error: &dyn std::error::Error| Failure::Usage(format!("kubeconfig: {}", chain(error)));
    let file = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(file.map_err(|e| unusable(&e))?, &options);
    config.await.map_err(|error| unusable(&error))
}
