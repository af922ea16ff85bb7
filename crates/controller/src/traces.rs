//! Spans of operations and batches: docs/operations.md lists them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use kubefledged_api_types::{ImageCacheStatus, Timestamp, names::status};
use kubefledged_engine::{Batch, BatchEnd, CacheKey, Command, Event, Work};
use kubefledged_process::traces::{
    Context, KeyValue, Link, SpanBuilder, SpanKind, Status, TraceContextExt as _, Traces,
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
        let (name, images) = match &batch.work {
            Work::Pull { images, .. } => ("node pull", images.len()),
            Work::Remove {
                references, unpin, ..
            } => ("node remove", references.len() + unpin.len()),
            Work::Check { references } => ("node check", references.len()),
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
                i64::try_from(images).unwrap_or(i64::MAX),
            ),
        ];
        let cache = batch.cache.iter();
        attributes
            .extend(cache.map(|key| KeyValue::new("kubefledged.imagecache", key.to_string())));
        self.traces.begin(&parent, || {
            SpanBuilder::from_name(name)
                .with_kind(SpanKind::Client)
                .with_links(links.collect())
                .with_attributes(attributes)
        })
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
mod tests {
    use clap::Parser as _;
    use kubefledged_engine::{BatchId, NodeName, Puller};
    use kubefledged_testkit::{Collector, SeenSpan};

    use super::*;
    use crate::args::Cli;

    fn key(name: &str) -> CacheKey {
        CacheKey {
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn write(name: &str, status: &str, start: i64) -> Command {
        let status = ImageCacheStatus {
            status: status.to_owned(),
            reason: "ImageCacheUpdate".to_owned(),
            start_time: Some(Timestamp(start)),
            ..ImageCacheStatus::default()
        };
        Command::WriteStatus {
            key: key(name),
            resource_version: "1".to_owned(),
            status: Box::new(status),
        }
    }

    fn check(operations: &[&str]) -> Batch {
        Batch {
            id: BatchId(1),
            term: 1,
            seq: 1,
            node: NodeName("n1".into()),
            puller: Puller {
                instance: "pod".into(),
                address: ([127, 0, 0, 1], 7443).into(),
            },
            cache: None,
            operations: operations.iter().map(|name| key(name)).collect(),
            work: Work::Check {
                references: vec!["r.test/a:1".into()],
            },
        }
    }

    async fn sent(act: impl FnOnce(&Spans)) -> Collector {
        let collector = Collector::start().await.unwrap();
        let flag = format!("--otlp-endpoint={}", collector.url());
        let cli = Cli::try_parse_from(["kubefledged-controller", &flag]).unwrap();
        let spans = Spans::new(&cli.run).unwrap();
        act(&spans);
        spans.flush().await;
        collector
    }

    #[tokio::test]
    async fn every_operation_that_begins_ends_with_a_result() {
        let collector = sent(|spans| {
            for command in [
                write("a", status::PROCESSING, 1),
                // Progress.
                write("a", status::PROCESSING, 1),
                write("a", status::PROCESSING, 2),
                write("a", status::FAILED, 2),
                // It heals.
                write("a", status::SUCCEEDED, 2),
                write("b", status::PROCESSING, 3),
                write("c", status::PROCESSING, 4),
            ] {
                spans.decided(&command);
            }
            spans.hear(&Event::CacheDeleted(key("b")));
        })
        .await;
        let seen = collector.spans("imagecache operation");
        let seen = seen
            .iter()
            .map(|span| (span.get("kubefledged.result"), span.failed));
        let expected = [
            ("Superseded", false),
            ("Failed", true),
            ("Deleted", false),
            ("LeaderChanged", false),
        ];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        let began = collector.spans("imagecache operation")[3].time.0;
        assert_eq!(
            Duration::from_nanos(began),
            Duration::from_secs(4),
            "the time of the status"
        );
    }

    #[tokio::test]
    async fn a_batch_belongs_to_the_first_operation_and_has_links_to_the_others() {
        let collector = sent(|spans| {
            spans.decided(&write("a", status::PROCESSING, 1));
            spans.decided(&write("b", status::PROCESSING, 2));
            for operations in [&["a", "b"][..], &[]] {
                let span = spans.batch(&check(operations));
                batch_ended(&span, &Event::BatchEnded(BatchId(1), BatchEnd::Unreachable));
            }
        })
        .await;
        let ids = collector.spans("imagecache operation");
        let ids: Vec<Vec<u8>> = ids.into_iter().map(|span| span.id).collect();
        let checks = collector.spans("node check");
        assert_eq!(
            (&checks[0].parent, &checks[0].links[..]),
            (&ids[0], &ids[1..])
        );
        assert!(checks[1].parent.is_empty() && checks[1].links.is_empty());
        let ended =
            |span: &SeenSpan| span.failed && span.get("kubefledged.result") == "Unreachable";
        assert!(checks.iter().all(ended), "{checks:?}");
    }
}
