//! Authorizes calls by their path and the name in the peer's certificate, in a layer in front of every
//! service. A path that is not in the table is refused.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use http::{Request, Response};
use kubefledged_process::tls::{self, identity::dns_names, names};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{Status, body::Body, transport::server::Connected};
use tower::{Layer, Service};

/// Role of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The controller, which may call everything.
    Controller,
    /// A person with the debug certificate, who may only call read-only methods.
    Debug,
    /// The puller of another node, which may only ask for layers. Its ticket says which.
    Peer,
}

/// Names of certificates that have a role.
#[derive(Clone, Debug)]
pub struct Roles {
    controller: String,
    debug: String,
    /// What the names of other pullers end in.
    peers: String,
}

impl Roles {
    /// Returns the names for the installation in this namespace.
    pub fn of(namespace: &str) -> Self {
        Self {
            controller: names::controller(namespace),
            debug: names::debug(namespace),
            peers: names::peers(namespace),
        }
    }

    /// Returns the role of a peer. Its certificate must have exactly one name. The certificate with which a puller
    /// serves has no role.
    fn role(&self, names: &[String]) -> Option<Role> {
        match names {
            [name] if *name == self.controller => Some(Role::Controller),
            [name] if *name == self.debug => Some(Role::Debug),
            [name] if self.is_peer(name) => Some(Role::Peer),
            _ => None,
        }
    }

    /// One label, and then what all of them end in.
    fn is_peer(&self, name: &str) -> bool {
        let (label, rest) = name.split_once('.').unwrap_or_default();
        !label.is_empty() && label != "*" && rest == self.peers
    }
}

/// Returns whether a role may call the method with this path.
fn allows(role: Role, path: &str) -> bool {
    match path {
        "/kubefledged.puller.v1.PullerService/PullImages"
        | "/kubefledged.puller.v1.PullerService/RemoveImages"
        | "/kubefledged.puller.v1.PullerService/CancelPulls"
        | "/kubefledged.puller.v1.PullerService/SetPeerIdentity" => role == Role::Controller,
        "/kubefledged.peer.v1.PeerService/GetManifest"
        | "/kubefledged.peer.v1.PeerService/GetBlob" => role == Role::Peer,
        "/kubefledged.puller.v1.PullerService/GetInfo"
        | "/kubefledged.puller.v1.PullerService/CheckImages"
        | "/kubefledged.puller.v1.PullerService/ListImages"
        | "/kubefledged.debug.v1.PullerDebugService/GetQueue"
        | "/kubefledged.debug.v1.PullerDebugService/ListImages"
        | "/kubefledged.debug.v1.PullerDebugService/GetRuntime"
        | "/kubefledged.debug.v1.PullerDebugService/GetDisk"
        | "/kubefledged.debug.v1.PullerDebugService/ListUnknownErrors"
        | "/grpc.health.v1.Health/Check"
        | "/grpc.health.v1.Health/Watch"
        | "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => role != Role::Peer,
        _ => false,
    }
}

/// A connection with the names in its peer's certificate, which are read once.
pub struct Connection {
    stream: tls::Stream,
    peer: Peer,
}

/// Names in the peer's certificate.
#[derive(Clone, Debug, Default)]
pub struct Peer(Arc<[String]>);

impl Peer {
    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl Connection {
    /// Reads the names. The handshake has verified the certificate.
    pub fn new(stream: tls::Stream) -> Self {
        let certificates = stream.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(|chain| chain.first());
        let peer = Peer(leaf.map(dns_names).unwrap_or_default().into());
        Self { stream, peer }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The layer that authorizes calls.
#[derive(Clone, Debug)]
pub struct Authorize(pub Roles);

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized {
            roles: self.0.clone(),
            inner,
        }
    }
}

/// A service whose calls [`Authorize`] checks.
#[derive(Clone, Debug)]
pub struct Authorized<S> {
    roles: Roles,
    inner: S,
}

impl<S, B> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned();
        let names = peer.unwrap_or_default().0;
        let path = request.uri().path();
        if self
            .roles
            .role(&names)
            .is_some_and(|role| allows(role, path))
        {
            return Either::Left(self.inner.call(request));
        }
        let peer = names.join(",");
        tracing::warn!(peer, path, "call refused");
        let refusal = Status::permission_denied(format!(
            "a certificate for {peer:?} does not allow {path:?}"
        ));
        Either::Right(ready(Ok(refusal.into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(names: &[&str]) -> Option<Role> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Roles::of("ns").role(&names)
    }

    #[test]
    fn a_role_is_one_exact_name() {
        let controller = "controller.ns.kubefledged.internal";
        assert_eq!(role(&[controller]), Some(Role::Controller));
        assert_eq!(role(&["debug.ns.kubefledged.internal"]), Some(Role::Debug));
        let peer = names::peer("ns", "node-1.example");
        assert_eq!(role(&[&peer]), Some(Role::Peer));
        for names in [
            &[][..],
            &["puller.ns.kubefledged.internal"],
            &["controller.other.kubefledged.internal"],
            &["*.ns.kubefledged.internal"],
            &["*.peer.ns.kubefledged.internal"],
            &["peer.ns.kubefledged.internal"],
            &[".peer.ns.kubefledged.internal"],
            &["a.b.peer.ns.kubefledged.internal"],
            &["a.peer.other.kubefledged.internal"],
            &[&peer, controller],
            &["CONTROLLER.ns.kubefledged.internal"],
            &[controller, controller],
            &[controller, "debug.ns.kubefledged.internal"],
        ] {
            assert_eq!(role(names), None, "{names:?}");
        }
    }

    #[test]
    fn whoever_looks_changes_nothing_and_what_is_unknown_is_refused() {
        let service = "/kubefledged.puller.v1.PullerService";
        for method in [
            "PullImages",
            "RemoveImages",
            "CancelPulls",
            "SetPeerIdentity",
        ] {
            let path = format!("{service}/{method}");
            assert!(allows(Role::Controller, &path));
            assert!(!allows(Role::Debug, &path) && !allows(Role::Peer, &path));
        }
        for method in ["GetInfo", "CheckImages", "ListImages"] {
            let path = format!("{service}/{method}");
            assert!(allows(Role::Controller, &path));
            assert!(allows(Role::Debug, &path) && !allows(Role::Peer, &path));
        }
        for method in ["GetManifest", "GetBlob"] {
            let path = format!("/kubefledged.peer.v1.PeerService/{method}");
            assert!(allows(Role::Peer, &path));
            assert!(!allows(Role::Controller, &path) && !allows(Role::Debug, &path));
        }
        for path in [
            "/kubefledged.debug.v1.PullerDebugService/GetQueue",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(allows(Role::Debug, path) && !allows(Role::Peer, path));
        }
        for path in [
            "",
            "/",
            "/kubefledged.puller.v1.PullerService/",
            "/kubefledged.puller.v1.PullerService/Format",
            "/kubefledged.puller.v1.PullerService/PullImages/",
            "//kubefledged.puller.v1.PullerService/GetInfo",
            "/kubefledged.puller.v2.PullerService/GetInfo",
        ] {
            assert!(!allows(Role::Controller, path), "{path}");
        }
    }
}
