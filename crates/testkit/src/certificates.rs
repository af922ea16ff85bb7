//! Certificate authorities, their leaves, and the directory that a Secret is mounted as.

use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// What a leaf may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// To dial.
    Client,
    /// To be dialled.
    Server,
}

/// A CA of its own; all CAs have the same name, as after a rotation.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Default for Ca {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, key());
        Self {
            issuer: issuer.unwrap_or_else(|error| unreachable!("{error}")),
        }
    }
}

impl Ca {
    /// The certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Its DER form.
    pub fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// A leaf with these DNS names.
    ///
    /// # Panics
    /// When a name is none.
    pub fn issue(&self, names: &[&str], usage: Usage) -> Leaf {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params =
            CertificateParams::new(names).unwrap_or_else(|error| unreachable!("{error}"));
        params.extended_key_usages = vec![match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer);
        Leaf {
            certificate: certificate
                .unwrap_or_else(|error| unreachable!("{error}"))
                .pem(),
            key: key.serialize_pem(),
        }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|error| unreachable!("{error}"))
}

/// A directory as the kubelet mounts a Secret: the files are links into `..data`, which is swapped
/// as a whole. Gone when dropped.
pub struct SecretDirectory {
    path: PathBuf,
    version: AtomicU64,
}

impl SecretDirectory {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("kubefledged-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self {
            path,
            version: AtomicU64::new(0),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Swaps in a leaf and the CAs to trust.
    pub fn write(&self, leaf: &Leaf, trusted: &[&Ca]) -> io::Result<()> {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        let name = format!("..version{version}");
        let directory = self.path.join(&name);
        std::fs::create_dir(&directory)?;
        let bundle: String = trusted.iter().map(|ca| ca.pem()).collect();
        for (file, content) in [
            ("tls.crt", &leaf.certificate),
            ("tls.key", &leaf.key),
            ("ca.crt", &bundle),
        ] {
            std::fs::write(directory.join(file), content)?;
            if version == 0 {
                symlink(Path::new("..data").join(file), self.path.join(file))?;
            }
        }
        symlink(&name, self.path.join("..new"))?;
        std::fs::rename(self.path.join("..new"), self.path.join("..data"))
    }
}

impl Drop for SecretDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
