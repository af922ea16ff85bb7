//! The certificate with which this node asks others for layers. Its key is made at the start and never leaves the memory
//! of the process; the controller issues the certificate for it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use kubefledged_process::tls::{
    Identity, Served,
    identity::{dns_names, serial},
    names,
    signed::{self, now},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use tokio::sync::watch;

use super::locked;

/// The controller issues another certificate if this one is not valid so far ahead.
const AHEAD: Duration = Duration::from_secs(10 * 24 * 3600);

/// The key, and the certificate once there is one.
pub struct Own {
    key: KeyPair,
    /// The only name that the certificate has.
    name: String,
    request: Vec<u8>,
    /// With intermediate ones.
    installed: Mutex<Vec<CertificateDer<'static>>>,
    /// The CAs that we trust now.
    served: watch::Receiver<Option<Arc<Served>>>,
}

impl Own {
    /// Makes a key.
    ///
    /// # Errors
    /// The system gives no random numbers, or the name cannot be in a certificate.
    pub fn new(
        namespace: &str,
        node: &str,
        served: watch::Receiver<Option<Arc<Served>>>,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let name = names::peer(namespace, node);
        let params = CertificateParams::new(vec![name.clone()])?;
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self {
            key,
            name,
            request,
            installed: Mutex::default(),
            served,
        })
    }

    /// The request for the certificate (PKCS #10, DER).
    pub fn request(&self) -> Vec<u8> {
        self.request.clone()
    }

    /// Serial number of the certificate; `None`: there is none, or it is time for another.
    pub fn serial(&self) -> Option<String> {
        let chain = self.installed();
        self.check(&chain, now() + AHEAD).ok()?;
        serial(chain.first()?).ok()
    }

    /// Takes a certificate.
    ///
    /// # Errors
    /// It is not for our key and name, or nobody whom we trust issued it.
    pub fn install(&self, chain: Vec<Vec<u8>>) -> anyhow::Result<()> {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        self.check(&chain, now())?;
        self.identity(chain.clone())?;
        *locked(&self.installed) = chain;
        Ok(())
    }

    /// How to connect to other pullers.
    ///
    /// # Errors
    /// There is no certificate that is trusted now.
    pub fn client(&self) -> anyhow::Result<ClientConfig> {
        let chain = self.installed();
        self.check(&chain, now())?;
        Ok(self.identity(chain)?.client()?)
    }

    fn installed(&self) -> Vec<CertificateDer<'static>> {
        locked(&self.installed).clone()
    }

    fn anchors(&self) -> Vec<CertificateDer<'static>> {
        let served = self.served.borrow();
        served
            .as_ref()
            .map(|served| served.anchors.clone())
            .unwrap_or_default()
    }

    fn check(&self, chain: &[CertificateDer<'static>], at: Duration) -> anyhow::Result<()> {
        let (leaf, rest) = chain.split_first().context("there is no certificate")?;
        signed::is_client(leaf, rest, &self.anchors(), at)?;
        let names = dns_names(leaf);
        anyhow::ensure!(
            names == [self.name.as_str()],
            "the certificate is for {}, and not for {}",
            names.join(","),
            self.name
        );
        Ok(())
    }

    fn identity(&self, chain: Vec<CertificateDer<'static>>) -> anyhow::Result<Identity> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        Ok(Identity::from_der(chain, key.into(), self.anchors())?)
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            key: _,
            name,
            request: _,
            installed: _,
            served: _,
        } = self;
        f.debug_struct("Own")
            .field("name", name)
            .finish_non_exhaustive()
    }
}
