//! `watch`: an `ImageCache` until its pulls have ended, with bytes. The result is the exit code.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kubefledged_proto::debug::{WatchProgressRequest, WatchProgressResponse};
use serde::{Serialize, Serializer};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use super::wait::{self, Stage, stage};
use crate::{
    access::{Access, Controller, StoredCache},
    args::Watch,
    exit::{Exit, Failure},
    output::{
        Format, Out, note,
        quantities::{bytes, percent, short},
        text,
    },
};

/// Between two looks at the bytes.
const LOOK: Duration = Duration::from_millis(250);
/// Nodes that have a bar of their own.
const MOST_BARS: usize = 10;

/// How far the pulls are, from all messages until now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    ready: u64,
    desired: u64,
    done: u64,
    total: u64,
    per_second: f64,
    #[serde(rename = "leftSeconds", serialize_with = "in_seconds")]
    left: Option<Duration>,
    pulls: Vec<Pull>,
}

/// A pull that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Pull {
    node: String,
    image: String,
    done: u64,
    total: u64,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn in_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs()).serialize(serializer)
}

/// Follows an `ImageCache`. Without the right to reach the controller its object is followed, which has no bytes.
pub async fn run(access: &Access, out: Out, args: &Watch) -> Result<Exit, Failure> {
    let cache = access.cache(&args.name).await?;
    let limit = args.timeout.as_ref().map(|timeout| timeout.0);
    let screen = Screen::new(out);
    match Controller::connect(access).await {
        Ok(mut controller) => {
            let end = limit.map(|limit| Instant::now() + limit);
            follow(&mut controller, &cache, &screen, end).await?;
        }
        Err(failure) => note(&format!("Bytes are not shown: {failure}")),
    }
    // The stream ends when nothing is under way any more; the object says with which result.
    let exit = wait::until(access, &args.name, limit, |cache| {
        screen.object(cache);
        result(cache)
    });
    let exit = exit.await;
    screen.end();
    let exit = exit?;
    let word = if exit == Exit::Good {
        "ready"
    } else {
        "not ready"
    };
    let (namespace, name) = (&access.namespace, &args.name);
    if out.format == Format::Table {
        text(&format!("{namespace}/{name} is {word}\n"))?;
    }
    Ok(exit)
}

/// The result, once nothing is under way or hope is lost. Nodes that failed may be tried again for ever: that is a
/// result too.
fn result(cache: &StoredCache) -> Option<Exit> {
    match stage(cache) {
        Stage::Done => Some(Exit::Good),
        Stage::Hopeless => Some(Exit::NotReady),
        Stage::Working => {
            let nodes = cache.status.nodes.unwrap_or_default();
            let over = cache.is_observed() && cache.status.completion_time.is_some();
            let rests = nodes.pulling == 0 && nodes.pending == 0;
            (over && rests).then_some(Exit::NotReady)
        }
    }
}

async fn follow(
    controller: &mut Controller,
    cache: &StoredCache,
    screen: &Screen,
    end: Option<Instant>,
) -> Result<(), Failure> {
    let request = WatchProgressRequest {
        namespace: cache.namespace(),
        name: cache.name(),
        interval: LOOK.try_into().ok(),
        until_settled: true,
        bytes: true,
    };
    let mut step = Step::default();
    loop {
        let mut stream = controller.watch(&request).await?;
        // A broken stream begins anew, with the leader of then.
        match read(&mut stream, &mut step, screen, end).await {
            Some(true) => return Ok(()),
            Some(false) => {}
            None => {
                let (namespace, name) = (cache.namespace(), cache.name());
                return Err(Failure::Failed(format!(
                    "{namespace}/{name} still works when the time is over"
                )));
            }
        }
    }
}

/// True: the stream is over. False: it broke. None: the time is over.
async fn read(
    stream: &mut Streaming<WatchProgressResponse>,
    step: &mut Step,
    screen: &Screen,
    end: Option<Instant>,
) -> Option<bool> {
    loop {
        let next = stream.message();
        let next = match end {
            Some(end) => timeout_at(end, next).await.ok()?,
            None => next.await,
        };
        match next {
            Ok(Some(message)) => {
                step.take(message);
                screen.step(step);
            }
            Ok(None) => return Some(true),
            Err(_) => return Some(false),
        }
    }
}

impl Step {
    /// Takes in a message. Unchanged counts are not sent again.
    pub fn take(&mut self, message: WatchProgressResponse) {
        if let Some(images) = message.caches.first().and_then(|cache| cache.images) {
            self.ready = images.ready.into();
            self.desired = images.desired.into();
        }
        if let Some(told) = message.bytes {
            self.done = told.done_bytes;
            self.total = told.total_bytes;
            self.per_second = told.bytes_per_second;
            self.left = told
                .remaining
                .and_then(|left| Duration::try_from(left).ok());
        }
        let pulls = message.pulls.into_iter();
        self.pulls = pulls
            .map(|pull| Pull {
                node: pull.node,
                image: pull.image,
                done: pull.done_bytes,
                total: pull.total_bytes,
            })
            .collect();
    }

    /// One line for a log.
    fn line(&self) -> String {
        let mut line = format!("{}/{} images", self.ready, self.desired);
        if self.total > 0 {
            let share = percent(self.done, self.total);
            line = format!(
                "{line}, {} of {} ({share} %)",
                bytes(self.done),
                bytes(self.total)
            );
        }
        if self.per_second >= 1.0 {
            line = format!("{line}, {}/s", bytes(whole(self.per_second)));
        }
        if let Some(left) = self.left.filter(|_| self.done < self.total) {
            line = format!("{line}, {} left", short(left));
        }
        line
    }
}

/// Speeds are positive and far below what an integer holds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "see above"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

/// Bars on a terminal, lines elsewhere.
struct Screen {
    bars: Option<Bars>,
    /// The last line, which is not repeated.
    last: std::cell::RefCell<String>,
    quiet: bool,
}

struct Bars {
    all: MultiProgress,
    images: ProgressBar,
    bytes: ProgressBar,
    nodes: Vec<ProgressBar>,
}

impl Screen {
    fn new(out: Out) -> Self {
        Self {
            bars: (out.is_terminal() && out.format == Format::Table).then(Bars::new),
            last: std::cell::RefCell::default(),
            quiet: out.format != Format::Table,
        }
    }

    fn step(&self, step: &Step) {
        match &self.bars {
            Some(bars) => bars.show(step),
            None => self.line(step.line()),
        }
    }

    /// While only the object is seen.
    fn object(&self, cache: &StoredCache) {
        let images = cache.status.images.clone().unwrap_or_default();
        let number = |count: i64| u64::try_from(count).unwrap_or(0);
        let (ready, desired) = (number(images.ready), number(images.desired));
        match &self.bars {
            Some(bars) => {
                bars.images.set_length(desired);
                bars.images.set_position(ready);
            }
            None => self.line(format!("{ready}/{desired} images")),
        }
    }

    fn line(&self, line: String) {
        if !self.quiet && *self.last.borrow() != line {
            // Nobody reads any more: the exit code still counts.
            let _ = text(&format!("{line}\n"));
            self.last.replace(line);
        }
    }

    fn end(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let add = |template: &str| {
            let bar = all.add(ProgressBar::new(0));
            let style = ProgressStyle::with_template(template);
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        };
        let images = add("images {bar:40} {pos}/{len}");
        let bytes = add("bytes  {bar:40} {decimal_bytes}/{decimal_total_bytes} {msg}");
        let nodes = (0..MOST_BARS).map(|_| add("{msg}")).collect();
        Self {
            all,
            images,
            bytes,
            nodes,
        }
    }

    fn show(&self, step: &Step) {
        self.images.set_length(step.desired);
        self.images.set_position(step.ready);
        self.bytes.set_length(step.total);
        self.bytes.set_position(step.done);
        let left = step
            .left
            .map_or_else(String::new, |left| format!(", {} left", short(left)));
        let speed = bytes(whole(step.per_second));
        self.bytes.set_message(format!("{speed}/s{left}"));
        for (at, bar) in self.nodes.iter().enumerate() {
            let pull = step.pulls.get(at);
            bar.set_message(pull.map_or_else(String::new, |pull| {
                let (done, total) = (bytes(pull.done), bytes(pull.total));
                format!("  {} {}: {done} of {total}", pull.node, pull.image)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_proto::debug::{CacheSummary, ImageCounts, PulledBytes};

    use super::*;

    #[test]
    fn a_line_has_images_bytes_speed_and_the_time_that_is_left() {
        let mut step = Step::default();
        step.take(WatchProgressResponse {
            caches: vec![CacheSummary {
                images: Some(ImageCounts {
                    desired: 4,
                    ready: 1,
                }),
                ..CacheSummary::default()
            }],
            bytes: Some(PulledBytes {
                done_bytes: 150_000_000,
                total_bytes: 300_000_000,
                bytes_per_second: 50_000_000.0,
                remaining: Some(prost_types::Duration {
                    seconds: 3,
                    nanos: 0,
                }),
                ..PulledBytes::default()
            }),
            ..WatchProgressResponse::default()
        });
        let line = "1/4 images, 150.00 MB of 300.00 MB (50 %), 50.00 MB/s, 3s left";
        assert_eq!(step.line(), line);
    }

    #[test]
    fn counts_that_are_not_sent_again_stay() {
        let mut step = Step {
            ready: 2,
            desired: 3,
            ..Step::default()
        };
        step.take(WatchProgressResponse::default());
        assert_eq!(step.line(), "2/3 images");
    }
}
