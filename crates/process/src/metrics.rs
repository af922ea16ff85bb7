//! Answers `/metrics`: in the `OpenMetrics` format if the client accepts it, as Prometheus does, and
//! otherwise in the older text format.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::info::Info,
    registry::Registry,
};

use crate::usage::{self, Usage};

/// Prefix of all metric names.
const PREFIX: &str = "kubefledged";

/// Content type of the `OpenMetrics` format.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Image registries with a label value of their own. All others share the label value `other`,
/// because anybody who writes an `ImageCache` can invent hosts.
const REGISTRIES: [&str; 9] = [
    "docker.io",
    "ghcr.io",
    "quay.io",
    "gcr.io",
    "registry.k8s.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "nvcr.io",
    "registry.gitlab.com",
];

type Before = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A metrics registry, and work that updates it before each answer.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// Metrics whose names have no prefix.
    conventional: Arc<Registry>,
    before: Option<Before>,
}

impl Metrics {
    /// Answers with the metrics of this registry.
    pub fn new(registry: Registry) -> Self {
        Self::from(Arc::new(Mutex::new(registry)))
    }

    /// Runs `work` before each answer, for gauges that are computed on demand.
    #[must_use]
    pub fn before<F, W>(mut self, work: F) -> Self
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        self.before = Some(Arc::new(move || Box::pin(work())));
        self
    }

    /// Returns content type and body of an answer to a client with this `Accept` header.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug of ours.
    pub async fn answer(&self, accept: &str) -> Result<(&'static str, String), std::fmt::Error> {
        if let Some(before) = &self.before {
            before().await;
        }
        let mut body = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode_registry(&mut body, &registry)?;
        drop(registry);
        encode_registry(&mut body, &self.conventional)?;
        encode_eof(&mut body)?;
        if accept.contains("application/openmetrics-text") {
            return Ok((OPEN_METRICS, body));
        }
        Ok((TEXT, text(&body)))
    }
}

impl From<Arc<Mutex<Registry>>> for Metrics {
    fn from(registry: Arc<Mutex<Registry>>) -> Self {
        Self {
            registry,
            conventional: Arc::new(usage::conventional()),
            before: None,
        }
    }
}

/// Returns a metrics registry with `kubefledged_build_info` and the resource metrics of this process.
pub fn registry(version: &'static str) -> Registry {
    let revision = option_env!("KUBEFLEDGED_REVISION").unwrap_or("unknown");
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Info::new([("version", version), ("revision", revision)]);
    registry.register(
        "build",
        "Version and source revision of this process",
        build,
    );
    registry.register_collector(Box::new(Usage));
    registry
}

/// Returns the label value of an image registry's host.
pub fn registry_label(host: &str) -> &'static str {
    let known = REGISTRIES.iter().find(|known| **known == host);
    known.copied().unwrap_or("other")
}

/// Converts `OpenMetrics` to the older text format. There HELP and TYPE of a counter carry its suffix
/// too, and units and infos do not exist.
fn text(open: &str) -> String {
    use std::fmt::Write as _;

    let mut out = String::with_capacity(open.len());
    let mut help = "";
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => {}
            (Some("#"), Some("HELP"), _, text) => help = text.unwrap_or_default(),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                // Writing to a String cannot fail.
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
                let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            }
            _ => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn prometheus_gets_openmetrics_and_everybody_else_the_text_format() {
        let mut registry = registry("1.2.3");
        let pulls = prometheus_client::metrics::counter::Counter::<u64>::default();
        registry.register("image_pulls", "Ended pulls", pulls.clone());
        pulls.inc();
        let metrics = Metrics::new(registry);
        let (kind, body) = metrics
            .answer("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
            .await
            .unwrap();
        assert_eq!(kind, OPEN_METRICS);
        assert!(
            body.contains(
                "# TYPE kubefledged_image_pulls counter\nkubefledged_image_pulls_total 1\n"
            )
        );
        assert!(body.ends_with("# EOF\n"));
        let (kind, body) = metrics.answer("*/*").await.unwrap();
        assert_eq!(kind, TEXT);
        let (body, usage) = body.split_once("# HELP kubefledged_process_").unwrap();
        for name in [
            "kubefledged_process_tasks",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_open_fds",
        ] {
            assert!(usage.contains(&format!("\n{name} ")), "{name}: {usage}");
        }
        assert_eq!(
            body,
            "# HELP kubefledged_build_info Version and source revision of this process.\n\
             # TYPE kubefledged_build_info gauge\n\
             kubefledged_build_info{version=\"1.2.3\",revision=\"unknown\"} 1\n\
             # HELP kubefledged_image_pulls_total Ended pulls.\n\
             # TYPE kubefledged_image_pulls_total counter\n\
             kubefledged_image_pulls_total 1\n"
        );
    }

    #[tokio::test]
    async fn what_is_counted_on_demand_is_counted_before_the_answer() {
        let mut registry = registry("1");
        let nodes = prometheus_client::metrics::gauge::Gauge::<i64>::default();
        registry.register("nodes", "Nodes", nodes.clone());
        let metrics = Metrics::new(registry).before(move || {
            nodes.set(7);
            async {}
        });
        let (_, body) = metrics.answer("").await.unwrap();
        assert!(body.contains("kubefledged_nodes 7\n"), "{body}");
    }
}
