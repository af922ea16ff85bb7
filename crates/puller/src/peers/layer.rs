//! One layer on its way from other nodes into the store. Whoever is slow, silent or wrong is replaced by another node at
//! the byte where it stopped; if nobody is left, the runtime goes on there with the registry.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kubefledged_proto::{
    Bytes,
    peer::{GetBlobResponse, get_blob_response::Part},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{Peers, image::Layer, receive::Shared, sources::Source, window::Arriving};
use crate::containerd::blobs::Ingest;

/// A node that sends nothing for this time is replaced.
const SILENCE: Duration = Duration::from_secs(3);
/// For so long nobody need have anything of the layer, before the runtime gets it: it may be on its way to all of them.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds of questions: at first, and at most.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A node is slow if for this time it sends less than another one could, or than what is slow anyway.
const MEASURE: Duration = Duration::from_secs(2);
const SLOW: u64 = 1 << 20;
/// How many times faster another node was.
const FASTER: u64 = 8;
/// At less than this, in bytes a second, the registry is as good.
const TOO_SLOW: u64 = 64 << 10;
/// Streams of one layer from one node that break before it is asked no more.
const MOST_BREAKS: u32 = 3;
/// The same for all nodes together.
const MOST_BREAKS_IN_ALL: u32 = 5;
/// Times that a layer may arrive with a wrong digest.
const MOST_WRONG: u32 = 3;

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is in the store, or about to be.
    Stored,
    /// The runtime goes on with it. True: with bytes from other nodes, which nobody has verified.
    HandedOver(bool),
    /// The pull ended before.
    Discarded,
}

/// How a stream from one node ended.
enum Stream {
    /// The last byte has come.
    Whole,
    /// It cannot send now.
    Later,
    /// It sends nothing, or too little.
    Slow,
    /// It stopped.
    Broke,
    /// It sent what nobody asked for.
    Wrong(&'static str),
}

/// A layer that we write.
pub struct Job {
    shared: Arc<Shared>,
    layer: Layer,
    /// Place of the layer in the image: it is asked of this node first.
    index: usize,
    ingest: Ingest,
    arriving: Arriving,
    /// Bytes that were there when we began, or when it began anew.
    there: u64,
    /// Indexes of the nodes that sent a part of what is written.
    senders: BTreeSet<usize>,
    breaks: Vec<u32>,
    /// When the last byte came.
    last: Instant,
}

impl Job {
    /// The layer's ingest is ours, and waits for bytes.
    pub fn new(shared: Arc<Shared>, index: usize, layer: Layer, ingest: Ingest) -> Self {
        let there = ingest.offset();
        Self {
            arriving: shared.peers.windows().open(&layer.digest, there),
            breaks: vec![0; shared.sources.all().len()],
            shared,
            layer,
            index,
            ingest,
            there,
            senders: BTreeSet::new(),
            last: Instant::now(),
        }
    }

    fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// Receives the layer, until it is complete or `stop` is cancelled.
    ///
    /// # Errors
    /// The runtime takes no more of it, and goes on by itself.
    pub async fn run(mut self, stop: CancellationToken) -> Result<End, Status> {
        let stopped = tokio::select! {
            ended = self.try_run() => Some(ended?),
            () = stop.cancelled() => None,
        };
        let Self {
            ingest, arriving, ..
        } = self;
        let Some(end) = stopped else {
            // The pull is over, and nobody needs what is written.
            ingest.discard().await?;
            return Ok(End::Discarded);
        };
        if end == End::Stored {
            ingest.commit().await?;
        }
        // Whoever reads along goes on in the store.
        drop(arriving);
        Ok(end)
    }

    async fn try_run(&mut self) -> Result<End, Status> {
        for _ in 0..MOST_WRONG {
            if !self.receive().await? {
                return self.hand_over().await;
            }
            if self.ingest.is_right().await? != Some(false) {
                return Ok(End::Stored);
            }
            self.discard().await?;
        }
        self.hand_over().await
    }

    /// What arrived is another layer. If one node sent all of it, that one is to blame.
    async fn discard(&mut self) -> Result<(), Status> {
        if self.there == 0
            && let [only] = self.senders.iter().copied().collect::<Vec<_>>()[..]
        {
            let source = &self.shared.sources.all()[only];
            source.leave_out(&"it sent a layer with another digest");
        }
        self.count_waste();
        self.ingest.restart().await?;
        self.arriving.restart();
        self.there = 0;
        self.senders.clear();
        Ok(())
    }

    fn count_waste(&self) {
        let wasted = self.ingest.offset().saturating_sub(self.there);
        self.shared
            .expected
            .peers
            .fetch_sub(wasted, Ordering::Relaxed);
        self.shared.wasted.fetch_add(wasted, Ordering::Relaxed);
    }

    async fn hand_over(&mut self) -> Result<End, Status> {
        // Nothing is on its way any more when the runtime takes over.
        self.ingest.is_right().await?;
        tracing::debug!(
            layer = self.layer.digest,
            offset = self.ingest.offset(),
            size = self.layer.size,
            "no other node has the rest of the layer"
        );
        let unverified = !self.senders.is_empty();
        Ok(End::HandedOver(unverified))
    }

    /// Receives everything that is missing. Returns false if nobody has it.
    async fn receive(&mut self) -> Result<bool, Status> {
        let mut pause = PAUSE;
        self.last = Instant::now();
        while self.ingest.offset() < self.layer.size {
            let before = self.ingest.offset();
            for at in self.order() {
                let ended = self.take_from(at).await?;
                self.note(at, &ended);
                let breaks: u32 = self.breaks.iter().sum();
                if breaks > MOST_BREAKS_IN_ALL || self.last.elapsed() > PATIENCE {
                    return Ok(self.ingest.offset() == self.layer.size);
                }
                if self.ingest.offset() > before {
                    break;
                }
            }
            if self.ingest.offset() > before {
                pause = PAUSE;
                continue;
            }
            if self.order().is_empty() {
                return Ok(false);
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        Ok(true)
    }

    /// The nodes to ask: the layer's own one first, and those that were much slower than others last.
    fn order(&self) -> Vec<usize> {
        let all = self.shared.sources.all();
        let best = all
            .iter()
            .filter_map(Source::rate)
            .max()
            .unwrap_or_default();
        let count = all.len().max(1);
        let nodes = (0..count).map(|step| (self.index + step) % count);
        let mut nodes: Vec<usize> = nodes
            .filter(|at| all.get(*at).is_some_and(|source| !source.is_out()))
            .filter(|at| self.breaks[*at] < MOST_BREAKS)
            .collect();
        let is_slow = |at: &usize| all[*at].rate().is_some_and(|rate| rate < best / FASTER);
        nodes.sort_by_key(is_slow);
        nodes
    }

    fn note(&mut self, at: usize, ended: &Stream) {
        match ended {
            Stream::Whole | Stream::Later => {}
            Stream::Slow | Stream::Broke => self.breaks[at] += 1,
            Stream::Wrong(why) => self.shared.sources.all()[at].leave_out(why),
        }
    }

    /// Takes as much as a node sends. An error is the runtime's.
    async fn take_from(&mut self, at: usize) -> Result<Stream, Status> {
        let shared = self.shared.clone();
        let source = &shared.sources.all()[at];
        let offset = self.ingest.offset();
        let Ok(_place) = self.peers().downloads().acquire_owned().await else {
            return Ok(Stream::Later);
        };
        let answer = shared
            .sources
            .layer(source, &self.layer.digest, offset)
            .await;
        let mut stream = match answer {
            Ok(stream) => stream,
            Err(status) => return Ok(self.refused(&status)),
        };
        let mut pace = Pace::default();
        loop {
            let data = match pace.next(&mut stream).await {
                Ok(Some(message)) => match self.part(message) {
                    Ok(data) => data,
                    Err(why) => return Ok(Stream::Wrong(why)),
                },
                Ok(None) => return Ok(Stream::Broke),
                Err(status) => return Ok(self.refused(&status)),
            };
            let length = data.len();
            self.peers().download_rate().pass(length).await;
            self.ingest.write(data.clone()).await?;
            self.senders.insert(at);
            self.arriving.push(data);
            self.last = Instant::now();
            shared
                .expected
                .peers
                .fetch_add(length as u64, Ordering::Relaxed);
            if self.ingest.offset() == self.layer.size {
                return Ok(Stream::Whole);
            }
            if let Some(rate) = pace.measured(length) {
                source.sent(rate);
                if self.is_slow(at, rate) {
                    return Ok(Stream::Slow);
                }
            }
        }
    }

    /// The bytes of a message, if they are what was asked for.
    fn part(&self, message: GetBlobResponse) -> Result<Bytes, &'static str> {
        let Some(Part::Data(data)) = message.part else {
            return Err("it sent something else than bytes");
        };
        if message.offset != self.ingest.offset() {
            return Err("it sent another part of the layer");
        }
        if data.is_empty() {
            return Err("it sent nothing");
        }
        if data.len() as u64 > self.layer.size - message.offset {
            return Err("it sent more than the layer has");
        }
        Ok(data)
    }

    fn refused(&self, status: &Status) -> Stream {
        match status.code() {
            Code::ResourceExhausted | Code::Unavailable if has_no_source(status) => Stream::Later,
            Code::NotFound if self.shared.sources.is_early() => Stream::Later,
            Code::DeadlineExceeded => Stream::Slow,
            _ => Stream::Broke,
        }
    }

    /// Whether another node should send the rest.
    fn is_slow(&self, at: usize, rate: u64) -> bool {
        let all = self.shared.sources.all();
        let others = self.order().into_iter().filter(|other| *other != at);
        let faster = |other: usize| match all[other].rate() {
            Some(known) => known / FASTER > rate,
            None => rate < SLOW,
        };
        rate < TOO_SLOW || others.into_iter().any(faster)
    }
}

/// The node says so itself; a connection that broke has a source.
fn has_no_source(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
}

/// Measures how fast a node sends: only the time counts in which we wait for it.
#[derive(Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
}

impl Pace {
    async fn next(
        &mut self,
        stream: &mut Streaming<GetBlobResponse>,
    ) -> Result<Option<GetBlobResponse>, Status> {
        let began = Instant::now();
        let message = timeout(SILENCE, stream.message()).await;
        self.waited += began.elapsed();
        message.unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing was sent")))
    }

    /// So many bytes came. Returns the bytes a second once they were measured for long enough.
    fn measured(&mut self, bytes: usize) -> Option<u64> {
        self.bytes += bytes as u64;
        if self.waited < MEASURE {
            return None;
        }
        let millis = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX);
        let rate = self.bytes.saturating_mul(1000) / millis.max(1);
        *self = Self::default();
        Some(rate)
    }
}
