//! Metrics of the controller. Values of the engine are read at each scrape. For nodes and images there are only
//! sums.

mod snapshot;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kubefledged_api_types::{
    ImageCacheStatus, Timestamp,
    names::{reason, status},
};
use kubefledged_engine::{CacheKey, Command, Event, NodeTransition, WriteError};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::sync::watch;

use crate::{driver::Asking, lease::Term};

pub use snapshot::Snapshot;

/// An operation that began more than this many seconds before it was first seen began under another leader.
const FRESH: i64 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    leader: Gauge,
    turns: Histogram,
    events: Counter,
    waiting: Gauge,
    operations: Family<OperationLabels, Histogram>,
    warm: Histogram,
    writes: Family<ResultLabel, Counter>,
    calls: Family<CallLabels, Histogram>,
    dial_failures: Counter,
    connections: Gauge,
    /// Deployments that look like another controller.
    pub rivals: Gauge,
    snapshot: Arc<Snapshot>,
    running: Arc<Mutex<Waves>>,
}

/// Running operations: when they began by the status, and when they were first seen.
type Waves = BTreeMap<CacheKey, (Option<Timestamp>, Instant, bool)>;

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            leader: Gauge::default(),
            turns: Histogram::new(exponential_buckets(0.000_1, 4.0, 9)),
            events: Counter::default(),
            waiting: Gauge::default(),
            operations: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.5, 2.0, 14))
            }),
            warm: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            writes: Family::default(),
            calls: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.005, 4.0, 9))
            }),
            dial_failures: Counter::default(),
            connections: Gauge::default(),
            rivals: Gauge::default(),
            snapshot: Arc::default(),
            running: Arc::default(),
        };
        // A series that begins with its first operation would hide that one from rate().
        for operation in [
            reason::CREATE,
            reason::UPDATE,
            reason::REFRESH,
            reason::PURGE,
            reason::DELETE,
        ] {
            for result in [status::SUCCEEDED, status::FAILED] {
                drop(metrics.operation(operation, result));
            }
        }
        metrics.register_engine(registry);
        metrics.register_calls(registry);
        registry.register_collector(Box::new(metrics.snapshot.clone()));
        metrics
    }

    fn register_engine(&self, registry: &mut Registry) {
        registry.register(
            "leader",
            "1 if this process is the leader, else 0",
            self.leader.clone(),
        );
        registry.register(
            "other_controllers",
            "Deployments that seem to manage ImageCaches too and are not scaled to zero",
            self.rivals.clone(),
        );
        registry.register_with_unit(
            "engine_iteration_duration",
            "Duration of one iteration of the engine, from events to commands",
            Unit::Seconds,
            self.turns.clone(),
        );
        registry.register(
            "engine_events",
            "Events that the engine has handled",
            self.events.clone(),
        );
        registry.register(
            "engine_waiting_events",
            "Events that were waiting when the engine's last iteration began",
            self.waiting.clone(),
        );
        registry.register_with_unit(
            "operation_duration",
            "Duration of operations on ImageCaches, by kind of operation and result",
            Unit::Seconds,
            self.operations.clone(),
        );
        registry.register_with_unit(
            "node_warm_duration",
            "Time from when a node became eligible until it held all its images",
            Unit::Seconds,
            self.warm.clone(),
        );
        registry.register(
            "status_writes",
            "Status writes by the API server's answer",
            self.writes.clone(),
        );
    }

    fn register_calls(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "puller_rpc_duration",
            "Duration of gRPC calls to pullers, by method and gRPC code; a pull call ends with its last image",
            Unit::Seconds,
            self.calls.clone(),
        );
        registry.register(
            "puller_dial_failures",
            "Failed attempts to connect to pullers, and first answers that did not come or were of another puller",
            self.dial_failures.clone(),
        );
        registry.register(
            "puller_connections",
            "Open connections to pullers",
            self.connections.clone(),
        );
    }

    /// Records an iteration of the engine.
    pub fn turned(&self, took: Duration, events: usize, waiting: usize) {
        self.turns.observe(took.as_secs_f64());
        self.events.inc_by(events as u64);
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Records an event before the engine handles it.
    pub fn count(&self, event: &Event) {
        match event {
            Event::StatusWritten(_, result) => {
                let result = match result {
                    Ok(_) => "written",
                    Err(WriteError::Conflict) => "conflict",
                    Err(WriteError::Gone) => "gone",
                    Err(WriteError::TooLarge(_)) => "too_large",
                    Err(WriteError::Failed(_)) => "failed",
                };
                self.writes.get_or_create(&ResultLabel { result }).inc();
            }
            Event::Leadership(None) => self.waves().clear(),
            _ => {}
        }
    }

    /// Records a command of the engine.
    pub fn decided(&self, command: &Command) {
        match command {
            Command::WriteStatus { key, status, .. } => self.wave(key, status),
            Command::NodeTransition {
                transition: NodeTransition::Warm { after: Some(after) },
                ..
            } => self.warm.observe(after.as_secs_f64()),
            _ => {}
        }
    }

    /// Logs one line at the end of each operation.
    fn wave(&self, key: &CacheKey, status_sent: &ImageCacheStatus) {
        let mut waves = self.waves();
        if status_sent.status == status::PROCESSING {
            let known = waves
                .get(key)
                .is_some_and(|(started, ..)| *started == status_sent.start_time);
            if !known {
                let now = k8s_openapi::jiff::Timestamp::now().as_second();
                let fresh = status_sent.start_time.is_none_or(|at| now - at.0 <= FRESH);
                waves.insert(key.clone(), (status_sent.start_time, Instant::now(), fresh));
                tracing::debug!(imagecache = %key, operation = status_sent.reason, "operation begins");
            }
            return;
        }
        let Some((started, seen, fresh)) = waves.remove(key) else {
            return;
        };
        drop(waves);
        let took = match (started, status_sent.completion_time) {
            (Some(from), Some(to)) if !fresh => {
                Duration::from_secs(u64::try_from(to.0 - from.0).unwrap_or(0))
            }
            _ => seen.elapsed(),
        };
        self.operation(&status_sent.reason, &status_sent.status)
            .observe(took.as_secs_f64());
        tracing::info!(
            imagecache = %key,
            operation = status_sent.reason,
            result = status_sent.status,
            ready_nodes = status_sent.ready,
            failures = status_sent.failure_count.unwrap_or(0),
            duration_s = took.as_secs_f64(),
            "operation ended"
        );
    }

    fn operation(&self, operation: &str, result: &str) -> Histogram {
        let labels = OperationLabels {
            operation: operation.to_owned(),
            result: result.to_owned(),
        };
        self.operations.get_or_create(&labels).clone()
    }

    fn waves(&self) -> std::sync::MutexGuard<'_, Waves> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the end of a call to a puller.
    pub fn called(&self, method: &'static str, code: tonic::Code, took: Duration) {
        let labels = CallLabels {
            method,
            code: code_name(code),
        };
        self.calls
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Records a failed attempt to connect.
    pub fn not_connected(&self) {
        self.dial_failures.inc();
    }

    /// Counts a connection as open while the returned value exists.
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// Reads the engine before a scrape is answered. A standby shows nothing of it.
    pub async fn measure(&self, engine: &Asking, standing: &watch::Receiver<Option<Term>>) {
        let leads = standing.borrow().is_some();
        self.leader.set(leads.into());
        if leads {
            self.snapshot.take(engine).await;
        } else {
            self.snapshot.clear();
        }
    }
}

/// Counts an open connection.
#[derive(Debug)]
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;

    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_engine::{Engine, NodeName, Now, Settings};
    use kubefledged_testkit::assert_documented;

    use super::*;

    fn key() -> CacheKey {
        CacheKey {
            namespace: "ns".into(),
            name: "a".into(),
        }
    }

    fn write(status: &str, started: i64, completed: Option<i64>) -> Command {
        Command::WriteStatus {
            key: key(),
            resource_version: "1".to_owned(),
            status: Box::new(ImageCacheStatus {
                status: status.to_owned(),
                reason: "ImageCacheCreate".to_owned(),
                start_time: Some(Timestamp(started)),
                completion_time: completed.map(Timestamp),
                ..ImageCacheStatus::default()
            }),
        }
    }

    fn shown(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn names_types_labels_and_help_are_those_of_the_documentation() {
        let mut registry = kubefledged_process::metrics::registry("1");
        let metrics = Metrics::register(&mut registry);
        crate::certificates::Metrics::register(&mut registry).ends("ca", 7);
        kubefledged_process::tls::Failures::register(&mut registry).example();
        metrics.turned(Duration::ZERO, 1, 0);
        metrics.count(&Event::StatusWritten(key(), Ok("2".to_owned())));
        metrics.decided(&write("Processing", 5, None));
        metrics.decided(&write("Succeeded", 5, Some(9)));
        metrics.decided(&Command::NodeTransition {
            node: NodeName("n1".into()),
            transition: NodeTransition::Warm {
                after: Some(Duration::from_secs(3)),
            },
            emit: false,
        });
        metrics.called("PullImages", tonic::Code::Ok, Duration::ZERO);
        metrics.snapshot.example();
        assert_documented("controller", &registry);
    }

    #[test]
    fn an_operation_is_counted_once_however_often_its_end_is_written() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        // Of another leader: its length is in the status.
        for (status, completed) in [
            ("Processing", None),
            ("Succeeded", Some(47)),
            ("Succeeded", Some(47)),
        ] {
            metrics.decided(&write(status, 40, completed));
        }
        let text = shown(&registry);
        let labels = "operation=\"ImageCacheCreate\",result=\"Succeeded\"";
        assert!(
            text.contains(&format!("operation_duration_seconds_count{{{labels}}} 1\n")),
            "{text}"
        );
        assert!(
            text.contains(&format!("operation_duration_seconds_sum{{{labels}}} 7.0\n")),
            "{text}"
        );
    }

    #[tokio::test]
    async fn who_stands_by_shows_nothing_of_the_engine() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (engine, mut questions) = Asking::new();
        tokio::spawn(async move {
            let engine = Engine::new(Settings::default());
            while let Some(question) = questions.recv().await {
                question(&engine, Now::default());
            }
        });
        let term = Term {
            number: 1,
            acting: tokio_util::sync::CancellationToken::new(),
        };
        let (stand, standing) = watch::channel(Some(term));
        metrics.measure(&engine, &standing).await;
        let text = shown(&registry);
        assert!(
            text.contains("leader 1\n") && text.contains("batches{work=\"pull\"} 0\n"),
            "{text}"
        );
        stand.send_replace(None);
        metrics.measure(&engine, &standing).await;
        let text = shown(&registry);
        assert!(
            text.contains("leader 0\n") && !text.contains("batches{"),
            "{text}"
        );
    }
}
