//! How fast the webhook answers an API server that asks at a fixed rate, whatever the answers take: `make bench-webhook`. It plays the
//! API server: it shows the webhook its certificate, and sends reviews over HTTP/1.1 and TLS, as API servers do.
//!
//! `admissions RATE SECONDS COMMAND...`: requests a second, for how long, and how to run the webhook. It prints a table, and
//! fails if an answer is wrong.

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "its output is what it is for; counts are small"
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod reviews;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use common::{apiserver, connect, publishing, signed};
use kubefledged_testkit::{Ca, Program, eventually};
use kubefledged_webhook::handlers::VALIDATE_PATH;
use reviews::Review;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::client::TlsStream;

const PORT: u16 = 27_445;
const HTTP: u16 = 27_446;
/// An API server opens one more when all are busy.
const CONNECTIONS: usize = 8;
/// Wrong answers that are printed.
const SHOWN: usize = 3;

type Connection = TlsStream<TcpStream>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rate, seconds, command @ ..] = args.as_slice() else {
        bail!("usage: admissions RATE SECONDS COMMAND...");
    };
    let rate: u32 = rate.parse().context("RATE is a number")?;
    let seconds: u32 = seconds.parse().context("SECONDS is a number")?;
    ensure!(rate > 0 && seconds > 0, "RATE and SECONDS are at least 1");
    let (webhook, ca) = start(command).await?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(connect(local(PORT), &ca).await?);
    }
    let (idle, before) = (webhook.memory("VmRSS")?, webhook.cpu()?);
    let asked = ask(connections, rate, seconds).await?;
    let cpu = webhook.cpu()? - before;
    report(rate, &asked, cpu, [idle, webhook.memory("VmHWM")?]);
    let wrong = asked.wrong.len();
    for answer in asked.wrong.iter().take(SHOWN) {
        eprintln!("wrong: {answer}");
    }
    ensure!(wrong == 0, "{wrong} wrong answers");
    Ok(())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Runs the webhook until it has its certificate.
async fn start(command: &[String]) -> anyhow::Result<(Program, Ca)> {
    let [program, args @ ..] = command else {
        bail!("how is the webhook run?");
    };
    let (secret, ca) = signed("2");
    let api = apiserver(
        vec![secret],
        publishing(&[&ca]),
        Arc::new(Semaphore::new(1)),
    );
    let listener = TcpListener::bind(local(0)).await?;
    let kubeconfig = Kubeconfig::write(listener.local_addr()?)?;
    let serving = axum::serve(listener, Router::new().fallback_service(api));
    tokio::spawn(serving.into_future());
    let webhook = Program::start(
        Command::new(program)
            .args(args)
            .args(["--listen-port", &PORT.to_string()])
            .args(["--http-port", &HTTP.to_string()])
            .env("KUBECONFIG", &kubeconfig.0),
    );
    let webhook = webhook.with_context(|| format!("cannot run {program}"))?;
    let connects = async || connect(local(PORT), &ca).await.ok();
    drop(eventually("the webhook has its certificate", connects).await);
    Ok((webhook, ca))
}

/// A file that names an API server. It is deleted when dropped.
struct Kubeconfig(PathBuf);

impl Kubeconfig {
    fn write(server: SocketAddr) -> anyhow::Result<Self> {
        let name = format!("kubefledged-kubeconfig-{}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": format!("http://{server}")}}],
            "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        std::fs::write(&file.0, config.to_string())?;
        Ok(file)
    }
}

impl Drop for Kubeconfig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What came of all requests.
#[derive(Default)]
struct Asked {
    /// From the time at which a request was due to the end of its answer.
    took: Vec<Duration>,
    wrong: Vec<String>,
    /// From the first request to the last answer.
    all: Duration,
}

/// Sends requests when they are due, each over the next free connection.
async fn ask(connections: Vec<Connection>, rate: u32, seconds: u32) -> anyhow::Result<Asked> {
    let reviews = Arc::new(Review::all());
    let began = Instant::now();
    let due = Arc::new(Mutex::new(pace(began, rate, rate * seconds)));
    let mut asking = JoinSet::new();
    for mut connection in connections {
        let (due, reviews) = (due.clone(), reviews.clone());
        asking.spawn(async move {
            let mut asked = Asked::default();
            loop {
                let next = due.lock().await.recv().await;
                let Some((number, due)) = next else { break };
                let review = &reviews[number as usize % reviews.len()];
                let uid = format!("{number:08x}-0000-4000-8000-000000000000");
                let answer = post(&mut connection, &review.body(&uid)).await?;
                asked.took.push(due.elapsed());
                asked.wrong.extend(review.mistake(&uid, &answer));
            }
            anyhow::Ok(asked)
        });
    }
    let mut all = Asked::default();
    while let Some(asked) = asking.join_next().await {
        let Asked { took, wrong, .. } = asked??;
        all.took.extend(took);
        all.wrong.extend(wrong);
    }
    all.took.sort_unstable();
    all.all = began.elapsed();
    Ok(all)
}

/// Numbers requests, each when it is due. A thread of its own, because timers of tokio have a resolution of a millisecond.
fn pace(began: Instant, rate: u32, count: u32) -> mpsc::UnboundedReceiver<(u32, Instant)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for number in 0..count {
            let due = began + Duration::from_secs(1) * number / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send((number, due)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Sends a review, and returns the body of the answer.
async fn post(connection: &mut Connection, body: &str) -> anyhow::Result<Vec<u8>> {
    let request = format!(
        "POST {VALIDATE_PATH}?timeout=5s HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        common::HOST,
        body.len()
    );
    connection.write_all(request.as_bytes()).await?;
    connection.flush().await?;
    let mut answer = Vec::new();
    loop {
        ensure!(
            connection.read_buf(&mut answer).await? > 0,
            "the webhook closed a connection"
        );
        let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]);
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("an answer without its length")?.parse()?;
        if answer.len() >= end + 4 + length {
            return Ok(answer.split_off(end + 4));
        }
    }
}

/// Memory: before the first request, and the most.
fn report(rate: u32, asked: &Asked, cpu: f64, memory: [f64; 2]) {
    let count = asked.took.len();
    let share =
        |of_thousand: usize| millis(asked.took[(count * of_thousand / 1000).min(count - 1)]);
    println!(
        "| asked a second | answered a second | p50 | p99 | p99.9 | longest | CPU of the webhook for 1,000 | \
         resident memory, before → most | wrong answers |\n|---|---|---|---|---|---|---|---|---|"
    );
    println!(
        "| {rate} | {:.0} | {} | {} | {} | {} | {:.3} s | {:.1} → {:.1} MiB | {} of {count} |",
        count as f64 / asked.all.as_secs_f64(),
        share(500),
        share(990),
        share(999),
        share(1000),
        cpu * 1000.0 / count as f64,
        memory[0],
        memory[1],
        asked.wrong.len(),
    );
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
