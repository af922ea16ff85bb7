//! Traffic of somebody who means no good, from the network namespace in which this is started, against
//! one address of a private network. It ends by itself and prints what it saw as JSON:
//! `make test-abuse`.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kubefledged_process::tls::identity::provider;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

const USAGE: &str = "usage: attack KIND ADDRESS CONNECTIONS SECONDS [CA-FILE]
  bodies   PUT /log-level with all but the last byte of 2,000,000
  heads    the first half of a request
  idle     nothing at all
  reviews  an AdmissionReview of 3 MiB, over TLS; every other one does not parse
  probe    GET /livez ten times a second, to see how long the answers take";

/// A connection that was closed is opened again after so long.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two probes.
const PROBE: Duration = Duration::from_millis(100);
/// Longest wait for a connection, and for the answer to a probe.
const PATIENCE: Duration = Duration::from_secs(5);
const BODY: usize = 2_000_000;
/// What the webhook takes at most.
const REVIEW: usize = 3 << 20;
/// As the API server calls it.
const WEBHOOK: &str = "kubefledged-webhook-server.kube-fledged.svc";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bodies,
    Heads,
    Idle,
    Reviews,
    Probe,
}

/// What came of all connections.
#[derive(Default)]
struct Seen {
    opened: u64,
    refused: u64,
    /// By the peer.
    closed: u64,
    /// First lines of answers, and how often each came.
    answers: std::collections::BTreeMap<String, u64>,
    /// Milliseconds from the connection to the end of the answer.
    took: Vec<u128>,
}

struct Attack {
    kind: Kind,
    address: SocketAddr,
    until: Instant,
    tls: Option<TlsConnector>,
    seen: Mutex<Seen>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (attack, connections) = parse(&args)?;
    let attack = Arc::new(attack);
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let attack = attack.clone();
        workers.spawn(async move {
            let _ = timeout_at(attack.until, attack.work()).await;
        });
    }
    workers.join_all().await;
    let mut seen = attack.seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.took.sort_unstable();
    let middle = seen.took.get(seen.took.len() / 2);
    let report = json!({
        "opened": seen.opened, "refused": seen.refused, "closed": seen.closed, "answers": seen.answers,
        "answered": seen.took.len(), "median": middle, "worst": seen.took.last(),
    });
    Ok(writeln!(io::stdout(), "{report}")?)
}

fn parse(args: &[String]) -> anyhow::Result<(Attack, usize)> {
    let (kind, address, connections, seconds, ca) = match args {
        [kind, address, connections, seconds] => (kind, address, connections, seconds, None),
        [kind, address, connections, seconds, ca] => {
            (kind, address, connections, seconds, Some(ca))
        }
        _ => bail!(USAGE),
    };
    let kind = match &**kind {
        "bodies" => Kind::Bodies,
        "heads" => Kind::Heads,
        "idle" => Kind::Idle,
        "reviews" => Kind::Reviews,
        "probe" => Kind::Probe,
        _ => bail!(USAGE),
    };
    let address: SocketAddr = address.parse().context(USAGE)?;
    let near = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        std::net::IpAddr::V6(ip) => ip.is_loopback(),
    };
    ensure!(near, "only addresses of private networks are attacked");
    let connections: usize = connections.parse().context(USAGE)?;
    let seconds: u64 = seconds.parse().context(USAGE)?;
    ensure!(
        connections <= 2000 && seconds <= 120,
        "at most 2000 connections and 120 seconds"
    );
    let attack = Attack {
        kind,
        address,
        until: Instant::now() + Duration::from_secs(seconds),
        tls: ca.map(|ca| connector(ca)).transpose()?,
        seen: Mutex::default(),
    };
    Ok((attack, connections))
}

/// Trusts this CA and presents nothing.
fn connector(ca: &str) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(ca)? {
        roots.add(ca?)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Attack {
    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// One connection after the other.
    async fn work(&self) {
        for turn in 0.. {
            match timeout(PATIENCE, TcpStream::connect(self.address)).await {
                Ok(Ok(stream)) => {
                    self.note(|seen| seen.opened += 1);
                    let _ = self.hold(stream, turn).await;
                    self.note(|seen| seen.closed += 1);
                }
                _ => self.note(|seen| seen.refused += 1),
            }
            sleep(if self.kind == Kind::Probe {
                PROBE
            } else {
                PAUSE
            })
            .await;
        }
    }

    /// Says what there is to say, and waits until the peer closes.
    async fn hold(&self, mut stream: TcpStream, turn: u64) -> io::Result<()> {
        let head = |method: &str, path: &str, length: usize| {
            format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        match self.kind {
            Kind::Idle => self.listen(&mut stream).await,
            Kind::Heads => {
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
                    .await?;
                self.listen(&mut stream).await
            }
            Kind::Bodies => {
                let request = head("PUT", "/log-level", BODY);
                self.say(&mut stream, &request, &vec![b'a'; BODY - 1]).await
            }
            Kind::Reviews => {
                let (Some(tls), Ok(name)) = (&self.tls, ServerName::try_from(WEBHOOK)) else {
                    return Err(io::Error::other("reviews need the file of a CA"));
                };
                let mut stream = tls.connect(name, stream).await?;
                let request = head("POST", "/validate-image-cache", REVIEW)
                    .replace("Host: x", "Host: x\r\nContent-Type: application/json");
                self.say(&mut stream, &request, &review(turn)).await
            }
            Kind::Probe => {
                let since = Instant::now();
                let request = head("GET", "/livez", 0);
                timeout(PATIENCE, self.say(&mut stream, &request, b"")).await??;
                let took = since.elapsed().as_millis();
                self.note(|seen| seen.took.push(took));
                Ok(())
            }
        }
    }

    /// Sends, and hears what the peer says meanwhile.
    async fn say<S: AsyncRead + AsyncWrite>(
        &self,
        stream: S,
        head: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let (mut read, mut write) = tokio::io::split(Box::pin(stream));
        let send = async {
            write.write_all(head.as_bytes()).await?;
            write.write_all(body).await?;
            write.flush().await
        };
        let (said, answered) = tokio::join!(send, self.listen(&mut read));
        answered.or(said)
    }

    /// Until the peer closes; the first line is noted.
    async fn listen(&self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut first = vec![0; 256];
        let length = stream.read(&mut first).await?;
        let text = String::from_utf8_lossy(&first[..length]);
        let line = text.lines().next().unwrap_or_default().to_owned();
        if !line.is_empty() {
            self.note(|seen| *seen.answers.entry(line).or_default() += 1);
        }
        tokio::io::copy(stream, &mut tokio::io::sink()).await?;
        Ok(())
    }
}

/// A body of the largest size: brackets that never close, or an object of very many small values.
fn review(turn: u64) -> Vec<u8> {
    if turn.is_multiple_of(2) {
        return vec![b'['; REVIEW];
    }
    let begin =
        br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"object":["#;
    let mut body = begin.to_vec();
    while body.len() < REVIEW - 5 {
        body.extend(b"0,");
    }
    body.extend(b"0]}}");
    body.resize(REVIEW, b' ');
    body
}
