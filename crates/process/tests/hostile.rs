//! Peers on the network that hold on to connections, or say too much.

// The lint knows test functions, not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kubefledged_process::{
    Metrics, Readiness, admin, metrics, net,
    tls::{self, Connector, Failures, Identity},
};
use kubefledged_testkit::{Ca, Leaf, Usage};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_service::Service as _;

const NAME: &str = "puller.ns.kubefledged.internal";

/// The port of probes and metrics; it closes when the guard is dropped.
fn probes() -> (u16, DropGuard) {
    let listener = net::bind(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let metrics = Metrics::new(metrics::registry("1"));
    let serve = admin::serve(listener, Readiness::default(), metrics, shutdown.clone());
    tokio::spawn(serve);
    (port, shutdown.drop_guard())
}

/// A connection from another address of this machine.
async fn connect_from(address: [u8; 4], port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    socket
        .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
}

/// Connections that say `what` and nothing more, opened again when they are closed, `each` from each
/// of these addresses.
fn hold(port: u16, what: &'static [u8], addresses: &[[u8; 4]], each: u32) -> JoinSet<()> {
    let mut held = JoinSet::new();
    for address in addresses {
        for number in 0..each {
            let address = *address;
            held.spawn(async move {
                sleep(Duration::from_millis(500) * number / each).await;
                loop {
                    if let Ok(mut stream) = connect_from(address, port).await {
                        let _ = stream.write_all(what).await;
                        let _ = stream.read(&mut [0; 64]).await;
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }
    held
}

async fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Tests that measure time run one after the other.
static ALONE: Mutex<()> = Mutex::const_new(());
/// A second, and what a busy machine with unoptimized binaries adds.
const PROMPT: Duration = Duration::from_secs(2);

/// The longest of some calls, one after the other.
async fn slowest(mut call: impl AsyncFnMut()) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        call().await;
        slowest = slowest.max(began.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    slowest
}

const ATTACKERS: [[u8; 4]; 4] = [
    [127, 0, 0, 2],
    [127, 0, 0, 3],
    [127, 0, 0, 4],
    [127, 0, 0, 5],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_while_a_thousand_half_sent_requests_are_held() {
    let _alone = ALONE.lock().await;
    let (port, _guard) = probes();
    for half in [
        &b""[..],
        b"PUT /log-level HTTP/1.1\r\nhost: a\r\n",
        b"PUT /log-level HTTP/1.1\r\nhost: a\r\ncontent-length: 2000000\r\n\r\ninfo",
    ] {
        let held = hold(port, half, &ATTACKERS, 250);
        sleep(Duration::from_millis(600)).await;
        let slowest = slowest(async || {
            let request = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n";
            let answer = timeout(Duration::from_secs(5), ask(port, request)).await;
            assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
        })
        .await;
        assert!(slowest < PROMPT, "{slowest:?}");
        drop(held);
    }
}

#[tokio::test]
async fn a_few_dozen_connections_are_open_at_a_time() {
    let (port, _guard) = probes();
    let half = b"PUT /log-level HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\ninfo";
    let mut streams = Vec::new();
    for _ in 0..25 {
        for address in ATTACKERS {
            let mut stream = connect_from(address, port).await.unwrap();
            stream.write_all(half).await.unwrap();
            streams.push(stream);
        }
    }
    sleep(Duration::from_millis(500)).await;
    let open = streams.iter().filter(|stream| {
        let read = stream.try_read(&mut [0; 64]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    let open = open.count();
    assert!((1..=32).contains(&open), "{open}");
}

#[tokio::test]
async fn a_request_that_is_not_finished_is_cut_off() {
    let (port, _guard) = probes();
    for (half, limit) in [
        ("GET /livez HTTP/1.1\r\n", 4),
        (
            "PUT /log-level HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\ni",
            12,
        ),
    ] {
        let asked = timeout(Duration::from_secs(limit), ask(port, half)).await;
        assert!(!asked.unwrap().contains("200 OK"));
    }
}

#[tokio::test]
async fn a_body_of_more_than_a_kibibyte_is_refused() {
    let (port, _guard) = probes();
    let body = "x".repeat(2000);
    let length = body.len();
    let request =
        format!("PUT /log-level HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}");
    let answer = ask(port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("at most 1024 bytes"), "{answer}");
}

#[tokio::test]
async fn http2_is_not_spoken_without_tls() {
    let (port, _guard) = probes();
    let answer = ask(port, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.contains('\0'), "no frame is answered: {answer:?}");
}

/// A listener with TLS, who can call it, and what keeps it open.
fn handshakes() -> (u16, Connector, DropGuard) {
    let ca = Ca::default();
    let identity = |Leaf { certificate, key }: Leaf| {
        let ca = ca.pem();
        Identity::from_pem(certificate.as_bytes(), key.as_bytes(), ca.as_bytes()).unwrap()
    };
    let server = identity(ca.issue(&[NAME], Usage::Server));
    let client = identity(ca.issue(&["controller.ns.kubefledged.internal"], Usage::Client));
    let presented = Arc::new(server.mutual_server().unwrap());
    let listener = net::bind(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let (_, current) = watch::channel(Some(presented));
    let mut incoming = tls::incoming(listener, current, Failures::default(), shutdown.clone());
    tokio::spawn(async move {
        while let Some(stream) = incoming.recv().await {
            let _ = stream.unwrap().write_all(b"hello").await;
        }
    });
    let (_, current) = watch::channel(Some(Arc::new(client.client().unwrap())));
    let connector = Connector::new(current, NAME.to_owned(), Failures::default()).unwrap();
    (port, connector, shutdown.drop_guard())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_ends_within_a_second_while_a_thousand_idle_sockets_are_held() {
    let _alone = ALONE.lock().await;
    let (port, mut connector, _guard) = handshakes();
    // The last: from the address of who calls, as behind a translation of addresses.
    for (attackers, each) in [(&ATTACKERS[..], 250), (&[[127, 0, 0, 1]], 1000)] {
        let held = hold(port, b"", attackers, each);
        sleep(Duration::from_millis(600)).await;
        let slowest = slowest(async || {
            let uri = format!("http://127.0.0.1:{port}").parse().unwrap();
            let called = timeout(Duration::from_secs(5), connector.call(uri)).await;
            called.unwrap().unwrap();
        })
        .await;
        assert!(slowest < PROMPT, "{slowest:?}");
        drop(held);
    }
}

/// What a client says first.
fn hello() -> Vec<u8> {
    let roots = Arc::new(RootCertStore::empty());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = NAME.try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_begins_handshake_after_handshake_gets_few_answers_and_others_get_theirs() {
    let _alone = ALONE.lock().await;
    let (port, mut connector, _guard) = handshakes();
    let hello = hello();
    let began = Instant::now();
    let mut answered = 0;
    for at in 0..600 {
        let mut stream = connect_from(ATTACKERS[0], port).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut answer = [0; 1];
        answered += u64::from(matches!(stream.read(&mut answer).await, Ok(1)));
        if at % 100 == 99 {
            let uri = format!("http://127.0.0.1:{port}").parse().unwrap();
            let called = timeout(PROMPT, connector.call(uri)).await;
            called.unwrap().unwrap();
        }
    }
    // What one address may begin at once, and in each second since then.
    let allowed = 50 * (2 + began.elapsed().as_secs());
    assert!(answered <= allowed, "{answered} of 600, not {allowed}");
    assert!(answered >= 50, "{answered} of 600");
}
