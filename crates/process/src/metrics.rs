//! What `/metrics` shows: `OpenMetrics` for whoever asks for it, as Prometheus does, and the older text
//! format for everybody else.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{metrics::info::Info, registry::Registry};

use crate::usage::Usage;

/// Every name begins with it.
const PREFIX: &str = "kubefledged";

/// Of the `OpenMetrics` format.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Of the older text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Registries with a label of their own; names are chosen by whoever writes an `ImageCache`, so that
/// everything else is one: `other`.
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

/// A registry and what brings it up to date.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    before: Option<Before>,
}

impl Metrics {
    /// Shows what is registered.
    pub fn new(registry: Registry) -> Self {
        Self {
            registry: Arc::new(Mutex::new(registry)),
            before: None,
        }
    }

    /// Runs this before each answer: gauges that are counted when somebody asks.
    #[must_use]
    pub fn before<F, W>(mut self, work: F) -> Self
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        self.before = Some(Arc::new(move || Box::pin(work())));
        self
    }

    /// Content type and body.
    ///
    /// # Errors
    /// A metric that cannot be written: a mistake of ours.
    pub async fn answer(&self, accept: &str) -> Result<(&'static str, String), std::fmt::Error> {
        if let Some(before) = &self.before {
            before().await;
        }
        let mut body = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut body, &registry)?;
        drop(registry);
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
            before: None,
        }
    }
}

/// A registry with what every process tells: `kubefledged_build_info`, and what it uses.
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

/// The label of a registry's host.
pub fn registry_label(host: &str) -> &'static str {
    let known = REGISTRIES.iter().find(|known| **known == host);
    known.copied().unwrap_or("other")
}

/// The older text format: counters carry their suffix in HELP and TYPE too, and there are no units
/// and no infos.
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
        assert!(usage.contains("\nkubefledged_process_tasks "), "{usage}");
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
