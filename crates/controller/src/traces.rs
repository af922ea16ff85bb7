//! Spans of operations, of calls to pullers, and of what the pullers tell of each image: docs/operations.md lists them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use kubefledged_api_types::{ImageCacheStatus, Timestamp, names::status};
use kubefledged_engine::{Batch, BatchEnd, CacheKey, Command, Event, Work};
use kubefledged_process::traces::{
    Array, Context, KeyValue, Link, SpanBuilder, SpanKind, Status, StringValue,
    TraceContextExt as _, Traces, Value,
};
use kubefledged_proto::puller::{
    PullImagesResponse, PullOutcome, PullResult, RemoveImagesResponse, RemoveOutcome, RemoveResult,
    pull_images_response, remove_images_response,
};

use crate::args::RunArgs;

/// An operation that began longer ago began under an earlier leader.
const FRESH: Duration = Duration::from_secs(5);

/// Makes the spans of operations and batches. Clones share the running operations.
#[derive(Clone, Default)]
pub struct Spans {
    traces: Traces,
    operations: Arc<Mutex<HashMap<CacheKey, Operation>>>,
}

/// A running operation: its start time in the status, and its span.
struct Operation {
    started: Option<Timestamp>,
    context: Context,
}

impl Spans {
    /// Makes spans of this process as its flags say.
    ///
    /// Call it inside a tokio runtime.
    pub fn new(args: &RunArgs) -> anyhow::Result<Self> {
        let resource = [
            ("service.instance.id", &*args.pod_name),
            ("k8s.pod.name", &args.pod_name),
            ("k8s.namespace.name", &args.namespace),
        ];
        let version = env!("CARGO_PKG_VERSION");
        let started = args
            .traces
            .start("kubefledged-controller", version, &resource);
        Ok(Self {
            traces: started?,
            operations: Arc::default(),
        })
    }

    fn operations(&self) -> MutexGuard<'_, HashMap<CacheKey, Operation>> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins or ends the span of an operation, as the status says that is written.
    pub fn decided(&self, command: &Command) {
        if let Command::WriteStatus { key, status, .. } = command
            && self.traces.are_on()
        {
            self.written(key, status);
        }
    }

    fn written(&self, key: &CacheKey, written: &ImageCacheStatus) {
        let mut operations = self.operations();
        let known = operations.get(key);
        let runs = written.status == status::PROCESSING;
        if known.is_none_or(|known| known.started != written.start_time) {
            if let Some(before) = operations.remove(key) {
                end(&before.context, "Superseded");
            }
            if runs {
                let operation = Operation {
                    started: written.start_time,
                    context: self.begin(key, written),
                };
                operations.insert(key.clone(), operation);
            }
        } else if !runs && let Some(ended) = operations.remove(key) {
            end(&ended.context, written.status.clone());
        }
    }

    fn begin(&self, key: &CacheKey, written: &ImageCacheStatus) -> Context {
        let now = SystemTime::now();
        let seconds = written.start_time.map(|start| u64::try_from(start.0));
        let began = seconds.and_then(Result::ok).map(Duration::from_secs);
        let began = began.map(|since| SystemTime::UNIX_EPOCH + since);
        // The status has whole seconds.
        let began = began.filter(|began| *began + FRESH < now).unwrap_or(now);
        self.traces.begin(&Context::new(), || {
            SpanBuilder::from_name("imagecache operation")
                .with_start_time(began)
                .with_attributes([
                    KeyValue::new("kubefledged.imagecache", key.to_string()),
                    KeyValue::new("kubefledged.operation", written.reason.clone()),
                ])
        })
    }

    /// Ends the spans of operations that this process does not see end.
    pub fn hear(&self, event: &Event) {
        match event {
            Event::CacheDeleted(key) => {
                if let Some(operation) = self.operations().remove(key) {
                    end(&operation.context, "Deleted");
                }
            }
            Event::Leadership(None) => self.leave(),
            _ => {}
        }
    }

    /// Another leader continues the operations.
    fn leave(&self) {
        for (_, operation) in self.operations().drain() {
            end(&operation.context, "LeaderChanged");
        }
    }

    /// Ends the spans of all operations, and sends what is not sent yet.
    pub async fn flush(self) {
        self.leave();
        self.traces.flush().await;
    }

    /// Begins the span of a batch, within the first of the operations that wait for it, with links to the others.
    pub fn batch(&self, batch: &Batch) -> Context {
        if !self.traces.are_on() {
            return Context::new();
        }
        let name = match &batch.work {
            Work::Pull { .. } => "node pull",
            Work::Remove { .. } => "node remove",
            Work::Check { .. } => "node check",
        };
        let operations = self.operations();
        let waiting = batch
            .operations
            .iter()
            .filter_map(|key| operations.get(key));
        let mut waiting = waiting.map(|operation| operation.context.clone());
        let parent = waiting.next().unwrap_or_default();
        let links = waiting.map(|other| Link::with_context(other.span().span_context().clone()));
        let mut attributes = vec![
            KeyValue::new("k8s.node.name", batch.node.to_string()),
            KeyValue::new(
                "kubefledged.images",
                i64::try_from(batch.work.images()).unwrap_or(i64::MAX),
            ),
        ];
        let caches = batch.work.caches().into_iter();
        let caches: Vec<StringValue> = caches.map(|key| key.to_string().into()).collect();
        if !caches.is_empty() {
            let caches = Value::Array(Array::String(caches));
            attributes.push(KeyValue::new("kubefledged.imagecaches", caches));
        }
        self.traces.begin(&parent, || {
            SpanBuilder::from_name(name)
                .with_kind(SpanKind::Client)
                .with_links(links.collect())
                .with_attributes(attributes)
        })
    }

    /// Makes a span of each pull that a message tells of, within that of the call. It begins when the pull has its place
    /// at the puller, so that the time before is the wait for it.
    pub fn pulled(&self, batch: &Batch, message: &PullImagesResponse) {
        if let Some(pull_images_response::Event::Outcomes(told)) = &message.event
            && let Work::Pull { images, .. } = &batch.work
            && self.traces.are_on()
        {
            for outcome in told.outcomes.iter().take(images.len()) {
                let name = images.get(index(outcome.index));
                let name = name.map(|image| image.reference.to_string());
                self.image(batch, name, &pull(outcome));
            }
        }
    }

    /// Makes a span of each removal that a message tells of. It is as long as the call until then.
    pub fn removed(&self, batch: &Batch, began: SystemTime, message: &RemoveImagesResponse) {
        if let Some(remove_images_response::Event::Outcomes(told)) = &message.event
            && let Work::Remove {
                references, unpin, ..
            } = &batch.work
            && self.traces.are_on()
        {
            for outcome in told.outcomes.iter().take(batch.work.images()) {
                let at = index(outcome.index);
                let unpinned = || unpin.get(at - references.len());
                let name = references.get(at).or_else(unpinned);
                let name = name.map(ToString::to_string);
                self.image(batch, name, &removal(outcome, began));
            }
        }
    }

    fn image(&self, batch: &Batch, image: Option<String>, seen: &Seen<'_>) {
        let span = self.traces.begin(&Context::current(), || {
            SpanBuilder::from_name(seen.name).with_start_time(seen.began)
        });
        let span = span.span();
        let texts = [
            ("k8s.node.name", batch.node.to_string()),
            ("kubefledged.image", image.unwrap_or_default()),
            ("kubefledged.result", seen.result.to_owned()),
            ("kubefledged.reason", seen.reason.to_owned()),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            span.set_attribute(KeyValue::new(key, text));
        }
        // 0: it is not known, or there are none.
        for (key, number) in seen.numbers.iter().filter(|(_, number)| *number > 0) {
            let number = i64::try_from(*number).unwrap_or(i64::MAX);
            span.set_attribute(KeyValue::new(*key, number));
        }
        if seen.result == "failed" {
            span.set_status(Status::error(seen.reason.to_owned()));
        }
    }
}

/// What a puller tells of one image.
struct Seen<'a> {
    name: &'static str,
    began: SystemTime,
    result: &'static str,
    reason: &'a str,
    numbers: Vec<(&'static str, u64)>,
}

fn index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn pull(outcome: &PullOutcome) -> Seen<'_> {
    let took = Duration::from_millis(outcome.took_ms);
    let now = SystemTime::now();
    Seen {
        name: "image pull",
        // No pull is older than a day: what a puller tells is not trusted.
        began: now
            .checked_sub(took.min(Duration::from_secs(86_400)))
            .unwrap_or(now),
        result: match outcome.result() {
            PullResult::Present => "present",
            PullResult::Pulled => "pulled",
            PullResult::Failed => "failed",
            PullResult::Cancelled => "cancelled",
            PullResult::Superseded => "superseded",
            PullResult::Unspecified => "",
        },
        reason: &outcome.reason,
        numbers: vec![
            ("kubefledged.attempts", outcome.attempts.into()),
            ("kubefledged.image_bytes", outcome.size_bytes),
            ("kubefledged.registry_bytes", outcome.registry_bytes),
            ("kubefledged.peer_bytes", outcome.peer_bytes),
        ],
    }
}

fn removal(outcome: &RemoveOutcome, began: SystemTime) -> Seen<'_> {
    Seen {
        name: "image remove",
        began,
        result: match outcome.result() {
            RemoveResult::Removed => "removed",
            RemoveResult::Absent => "absent",
            RemoveResult::Kept => "kept",
            RemoveResult::Failed => "failed",
            RemoveResult::Superseded => "superseded",
            RemoveResult::Unspecified => "",
        },
        reason: &outcome.reason,
        numbers: Vec::new(),
    }
}

/// Notes how a batch ended, from the event that says so.
pub fn batch_ended(batch: &Context, event: &Event) {
    let Event::BatchEnded(_, how) = event else {
        return;
    };
    let (result, ok) = match how {
        BatchEnd::Done => ("Done", true),
        BatchEnd::Lost => ("Lost", false),
        BatchEnd::Refused => ("Refused", false),
        BatchEnd::Unreachable => ("Unreachable", false),
        BatchEnd::CredentialsFailed(_) => ("CredentialsFailed", false),
    };
    if !ok {
        batch.span().set_status(Status::error(result));
    }
    batch
        .span()
        .set_attribute(KeyValue::new("kubefledged.result", result));
}

fn end(operation: &Context, result: impl Into<std::borrow::Cow<'static, str>>) {
    let (span, result) = (operation.span(), result.into());
    if result == status::FAILED {
        span.set_status(Status::error(result.clone()));
    }
    span.set_attribute(KeyValue::new("kubefledged.result", result));
    span.end();
}

#[cfg(test)]
mod tests;
