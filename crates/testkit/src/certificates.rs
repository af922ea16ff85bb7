//! Certificate authorities, their certificates, and directories as the kubelet mounts a Secret.

use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Use of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Client certificate.
    Client,
    /// Server certificate.
    Server,
}

impl Usage {
    fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

/// A new CA. All CAs have the same name, as after a rotation.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
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
    /// Returns the certificate as PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Returns the certificate as DER.
    pub fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// Issues a certificate with these DNS names.
    ///
    /// # Panics
    /// A name is not a DNS name.
    pub fn issue(&self, names: &[&str], usage: Usage) -> Leaf {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params =
            CertificateParams::new(names).unwrap_or_else(|error| unreachable!("{error}"));
        params.extended_key_usages = vec![usage.purpose()];
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

impl Ca {
    /// Issues a certificate (DER) with these DNS names for the key of a request (PKCS #10, DER).
    ///
    /// # Panics
    /// It is no request, or a name is not a DNS name.
    pub fn certify(&self, request: &[u8], names: &[&str], usage: Usage) -> Vec<u8> {
        let failed = |error: rcgen::Error| -> CertificateParams { unreachable!("{error}") };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let request = CertificateSigningRequestParams::from_der(&request.to_vec().into());
        let mut request = request.unwrap_or_else(|error| unreachable!("{error}"));
        request.params = CertificateParams::new(names).unwrap_or_else(failed);
        request.params.extended_key_usages = vec![usage.purpose()];
        let certificate = request.signed_by(&self.issuer);
        let certificate = certificate.unwrap_or_else(|error| unreachable!("{error}"));
        certificate.der().to_vec()
    }
}

/// Issues a certificate with these DNS names by a CA whose certificate and key are PEM.
///
/// # Panics
/// One of them cannot be used.
pub fn issued_by((ca, ca_key): (&str, &str), names: &[&str], usage: Usage) -> Leaf {
    let issue = || -> Result<Leaf, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key)?)?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![usage.purpose()];
        let key = key();
        Ok(Leaf {
            certificate: params.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        })
    };
    issue().unwrap_or_else(|error| unreachable!("{error}"))
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|error| unreachable!("{error}"))
}

/// A directory as the kubelet mounts a Secret: the files are links into `..data`, which is replaced as a
/// whole. It is deleted when dropped.
pub struct SecretDirectory {
    path: PathBuf,
    version: AtomicU64,
}

impl SecretDirectory {
    /// Creates an empty directory.
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

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the certificate and the trusted CAs.
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
