//! Metrics of the puller. The node is not a label, because it is the scraped target.

use std::{path::Path, time::Duration};

use kubefledged_image::ImageRef;
use kubefledged_process::metrics;
use kubefledged_queue::{Answer, Call, Disk, PullOutcome, PullResult, RemoveResult, Sources};
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

use crate::{
    disk,
    driver::{Input, pull_label, removal_label},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    result: &'static str,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabel {
    registry: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: String,
}

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pulls: Family<PullLabels, Counter>,
    unknown: Family<CodeLabel, Counter>,
    durations: Histogram,
    bytes: Family<RegistryLabel, Counter>,
    layers: Family<SourceLabel, Counter>,
    uploaded: Counter,
    uploads: Gauge,
    removals: Family<ResultLabel, Counter>,
    calls: Family<CallLabels, Histogram>,
    queue: Family<StateLabel, Gauge>,
    used: Gauge,
    size: Gauge,
    /// 1 if the runtime answered the last call.
    pub cri_up: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            pulls: Family::default(),
            unknown: Family::default(),
            durations: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
            bytes: Family::default(),
            layers: Family::default(),
            uploaded: Counter::default(),
            uploads: Gauge::default(),
            removals: Family::default(),
            calls: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 4.0, 10))
            }),
            queue: Family::default(),
            used: Gauge::default(),
            size: Gauge::default(),
            cri_up: Gauge::default(),
        };
        metrics.register_pulls(registry);
        metrics.register_peers(registry);
        metrics.register_runtime(registry);
        metrics
    }

    fn register_pulls(&self, registry: &mut Registry) {
        registry.register(
            "image_pulls",
            "Finished pulls by result and reason",
            self.pulls.clone(),
        );
        registry.register(
            "image_pull_unknown_errors",
            "Failed pull calls whose error text is unknown, by gRPC code; ListUnknownErrors shows the texts",
            self.unknown.clone(),
        );
        registry.register_with_unit(
            "image_pull_duration",
            "Duration of a pull, from its first call to the container runtime to its end",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "image_pull",
            "Size of pulled images as the container runtime reports it",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "image_removals",
            "Finished removals by result",
            self.removals.clone(),
        );
        registry.register(
            "queue_pulls",
            "Pulls in the queue by state: waiting or running",
            self.queue.clone(),
        );
    }

    fn register_peers(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "image_layers",
            "Compressed layers of pulled images by source: peer (other nodes), registry (as far as it was seen), or wasted (from other nodes and of no use)",
            Unit::Bytes,
            self.layers.clone(),
        );
        registry.register_with_unit(
            "peer_uploaded",
            "Compressed layers that were handed to other nodes",
            Unit::Bytes,
            self.uploaded.clone(),
        );
        registry.register(
            "peer_uploads",
            "Layers that are being handed to other nodes",
            self.uploads.clone(),
        );
    }

    fn register_runtime(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "cri_request_duration",
            "Duration of calls to the container runtime, by method and gRPC code",
            Unit::Seconds,
            self.calls.clone(),
        );
        registry.register(
            "cri_up",
            "1 if the container runtime answered the last call, else 0",
            self.cri_up.clone(),
        );
        registry.register_with_unit(
            "image_filesystem_used",
            "Used space of the image file system, including other users of it; absent if the puller cannot see it",
            Unit::Bytes,
            self.used.clone(),
        );
        registry.register_with_unit(
            "image_filesystem_size",
            "Size of the image file system; absent if the puller cannot see it",
            Unit::Bytes,
            self.size.clone(),
        );
    }

    /// Records the end of a pull.
    pub fn pulled(&self, outcome: &PullOutcome) {
        let (result, reason) = pull_label(&outcome.result);
        let labels = PullLabels {
            result,
            reason: reason.to_owned(),
        };
        self.pulls.get_or_create(&labels).inc();
        if outcome.attempts > 0 {
            self.durations.observe(outcome.took.as_secs_f64());
        }
        if let (PullResult::Pulled, Some(image)) = (&outcome.result, &outcome.image) {
            let names = image.tags.iter().chain(&image.digests);
            let registry = registry_label(names.map(String::as_str).next());
            let label = RegistryLabel { registry };
            self.bytes.get_or_create(&label).inc_by(image.size);
        }
    }

    /// Records where the layers of a pull came from.
    pub fn moved(&self, sources: Sources) {
        let Sources {
            peers,
            registry,
            wasted,
        } = sources;
        for (source, bytes) in [("peer", peers), ("registry", registry), ("wasted", wasted)] {
            let label = SourceLabel { source };
            self.layers.get_or_create(&label).inc_by(bytes);
        }
    }

    /// Records bytes that were handed to another node.
    pub fn uploaded(&self, bytes: u64) {
        self.uploaded.inc_by(bytes);
    }

    /// Sets the number of layers that are being handed on.
    pub fn uploads(&self, count: usize) {
        self.uploads.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Records a failed pull call whose text is unknown.
    pub fn unknown(&self, code: &str) {
        let code = code.to_owned();
        self.unknown.get_or_create(&CodeLabel { code }).inc();
    }

    /// Records the end of a removal.
    pub fn removed(&self, result: &RemoveResult) {
        let result = removal_label(result);
        self.removals.get_or_create(&ResultLabel { result }).inc();
    }

    /// Records a call to the runtime.
    pub fn called(&self, method: &'static str, answer: &Input, took: Duration) {
        let Input::Answered(_, answer) = answer else {
            return;
        };
        let labels = CallLabels {
            method,
            code: code(answer).to_owned(),
        };
        self.calls
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Sets the number of waiting and running pulls.
    pub fn queued(&self, waiting: usize, running: usize) {
        for (state, count) in [("waiting", waiting), ("running", running)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.queue.get_or_create(&StateLabel { state }).set(count);
        }
    }

    /// Measures the disk before a scrape is answered.
    pub fn measure(&self, path: Option<&Path>) {
        if let Some(Ok(Disk {
            capacity,
            available,
            ..
        })) = path.map(disk::usage)
        {
            let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.used.set(bytes(capacity.saturating_sub(available)));
            self.size.set(bytes(capacity));
        }
    }
}

/// Returns the method of a call to the runtime. `None` for other calls of the queue.
pub fn method(call: &Call) -> Option<&'static str> {
    match call {
        Call::Inspect(_) => Some("ImageStatus"),
        Call::Pull(..) => Some("PullImage"),
        Call::Containers => Some("ListContainers"),
        Call::Remove(_) => Some("RemoveImage"),
        Call::Untag(_) => Some("Untag"),
        Call::Pins => Some("ListPins"),
        Call::Pin(..) => Some("Pin"),
        Call::Mark(_) => Some("Mark"),
        Call::Trace(_) => Some("Trace"),
        Call::Progress(_) => Some("Progress"),
        Call::Credentials(_) | Call::FsInfo => None,
    }
}

/// Returns the gRPC code of an answer.
fn code(answer: &Answer) -> &str {
    let error = match answer {
        Answer::Inspected(result) => result.as_ref().err(),
        Answer::Containers(result) => result.as_ref().err(),
        Answer::Disk(result) => result.as_ref().err(),
        Answer::Pins(result) => result.as_ref().err(),
        Answer::Progress(result) => result.as_ref().err(),
        Answer::Traced(result) => result.as_ref().err(),
        Answer::Pulled(result) => result.as_ref().err(),
        Answer::Removed(result) | Answer::Pinned(result) | Answer::Marked(result) => {
            result.as_ref().err()
        }
        Answer::Credentials(..) => None,
    };
    error.map_or("OK", |error| &error.code)
}

fn registry_label(name: Option<&str>) -> &'static str {
    let image = name.and_then(|name| ImageRef::parse(name).ok());
    metrics::registry_label(image.as_ref().map_or("", ImageRef::registry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubefledged_testkit::assert_documented;

    #[test]
    fn names_types_labels_and_help_are_those_of_the_documentation() {
        let mut registry = kubefledged_process::metrics::registry("1");
        let metrics = Metrics::register(&mut registry);
        kubefledged_process::tls::Failures::register(&mut registry).example();
        metrics.unknown("Unknown");
        metrics.pulled(&PullOutcome {
            index: 0,
            result: PullResult::Pulled,
            image: Some(kubefledged_queue::Image {
                tags: vec!["nginx:1".to_owned()],
                size: 7,
                ..Default::default()
            }),
            pin: kubefledged_queue::PinResult::NotAsked,
            attempts: 1,
            took: Duration::from_secs(1),
            sources: kubefledged_queue::Sources::default(),
        });
        metrics.moved(Sources::default());
        metrics.uploaded(1);
        metrics.uploads(1);
        metrics.removed(&RemoveResult::Removed);
        let id = kubefledged_queue::CallId(1);
        metrics.called(
            "PullImage",
            &Input::Answered(
                id,
                Answer::Pulled(Ok(kubefledged_queue::Sources::default())),
            ),
            Duration::ZERO,
        );
        metrics.queued(1, 2);
        assert_documented("puller", &registry);
    }

    #[test]
    fn a_registry_that_is_not_well_known_is_other() {
        assert_eq!(registry_label(Some("nginx:1")), "docker.io");
        assert_eq!(registry_label(Some("ghcr.io/a/b:1")), "ghcr.io");
        for other in [Some("my.registry:5000/a:1"), Some("UPPER/x"), None] {
            assert_eq!(registry_label(other), "other");
        }
    }
}
