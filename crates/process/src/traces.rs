//! Traces of OpenTelemetry, sent to a collector by OTLP over gRPC. They are off without `--otlp-endpoint`.
//!
//! A thread of its own sends the spans. It has a bounded queue; spans that come while the queue is full are dropped, so
//! that a collector that is away delays nothing.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use http::Uri;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
pub use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    context::FutureExt,
    trace::{Link, SpanBuilder, SpanKind, Status, TraceContextExt},
};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::log::Pace;

/// Time limit for sending one batch of spans.
const SEND: Duration = Duration::from_secs(5);
/// Time for which a shutdown waits until the last spans are sent.
const FLUSH: Duration = Duration::from_secs(2);
/// Time in which at most one warning says that spans cannot be sent.
const WARNING: Duration = Duration::from_secs(300);

/// Flags for traces.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// OpenTelemetry collector that gets traces by OTLP over gRPC, such as http://collector.monitoring:4317. Not set:
    /// there are no traces
    #[expect(clippy::doc_markdown, reason = "--help would show the brackets")]
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    pub otlp_endpoint: Option<Uri>,
}

fn endpoint(text: &str) -> Result<Uri, String> {
    let example = "write a URL such as http://collector.monitoring:4317";
    let uri: Uri = text
        .parse()
        .map_err(|error| format!("{error}: {example}"))?;
    if uri.scheme_str() == Some("https") {
        return Err(
            "https is not supported: send traces by http to a collector in the cluster, which can forward them by TLS"
                .to_owned(),
        );
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("a URL with a password would be logged: set the variable OTEL_EXPORTER_OTLP_HEADERS instead".to_owned());
    }
    if uri.scheme_str() != Some("http") || uri.port_u16().is_none() || uri.host() == Some("") {
        return Err(format!("it needs http://, a host and a port: {example}"));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(format!("OTLP over gRPC has no path: {example}"));
    }
    Ok(uri)
}

impl TraceArgs {
    /// Starts to send traces of this process. `resource` says which process it is.
    ///
    /// Call it inside a tokio runtime.
    pub fn start(
        &self,
        service: &'static str,
        version: &'static str,
        resource: &[(&'static str, &str)],
    ) -> anyhow::Result<Traces> {
        let Some(uri) = self.otlp_endpoint.clone() else {
            return Ok(Traces::default());
        };
        let channel = Endpoint::from(uri.clone())
            .connect_timeout(SEND)
            .timeout(SEND)
            .connect_lazy();
        let otlp = Otlp::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(SEND)
            .build()
            .context("cannot send traces to --otlp-endpoint")?;
        let attributes = resource
            .iter()
            .map(|(key, value)| KeyValue::new(*key, (*value).to_owned()));
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", version))
            .with_attributes(attributes)
            .build();
        let sender = Sender {
            otlp,
            pace: Pace::new(1, WARNING),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(sender)
            .build();
        let tracer = provider.tracer("kubefledged");
        tracing::info!(endpoint = %uri, "sending traces");
        Ok(Traces(Some(Arc::new(On { provider, tracer }))))
    }
}

/// Makes spans. Clones belong to the same process. The default makes none, and costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<On>>);

#[derive(Debug)]
struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Whether there are traces.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span, and returns the parent of the spans within it. The span ends when its last context is dropped,
    /// or earlier if `context.span().end()` is called.
    #[must_use = "the span ends when it is dropped"]
    pub fn begin(&self, parent: &Context, span: impl FnOnce() -> SpanBuilder) -> Context {
        let Some(on) = &self.0 else {
            return Context::new();
        };
        parent.with_span(on.tracer.build_with_context(span(), parent))
    }

    /// Sends the spans that have ended, or gives up after 2 s. Spans that end later are lost.
    pub async fn flush(self) {
        let Some(on) = self.0 else { return };
        // On a thread of its own, because it blocks, and the runtime has to go on sending.
        let flush = tokio::task::spawn_blocking(move || on.provider.shutdown_with_timeout(FLUSH));
        if let Ok(Err(error)) = flush.await {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Sends spans, and says at times if that fails.
#[derive(Debug)]
struct Sender {
    otlp: Otlp,
    pace: Pace,
}

impl SpanExporter for Sender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.otlp.export(batch).await;
        if let Err(error) = &result
            && let Some(failures_before) = self.pace.due(Instant::now())
        {
            tracing::warn!(
                %error, spans, failures_before,
                "spans are lost: check that the collector of --otlp-endpoint runs and may be reached from this pod"
            );
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_cannot_work_is_refused_with_what_to_write() {
        for good in ["http://collector.monitoring:4317", "http://[::1]:4317/"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "write a URL such as http://"),
            ("collector:4317", "needs http://, a host and a port"),
            ("http://collector", "needs http://, a host and a port"),
            ("http://:4317", "write a URL such as http://"),
            ("grpc://collector:4317", "needs http://, a host and a port"),
            ("https://collector:4317", "https is not supported"),
            ("http://collector:4318/v1/traces", "has no path"),
            (
                "http://me:secret@collector:4317",
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let said = endpoint(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_collector_that_is_silent_or_away_delays_neither_spans_nor_the_end() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [&silent, &away].map(|listener| listener.local_addr().unwrap());
        drop(away);
        for address in addresses {
            let otlp_endpoint = Some(endpoint(&format!("http://{address}")).unwrap());
            let args = TraceArgs { otlp_endpoint };
            let traces = args.start("test", "1", &[]).unwrap();
            let began = Instant::now();
            // More than the queue holds.
            for _ in 0..10_000 {
                drop(traces.begin(&Context::new(), || SpanBuilder::from_name("x")));
            }
            assert!(
                began.elapsed() < Duration::from_secs(1),
                "{:?}",
                began.elapsed()
            );
            traces.flush().await;
            assert!(began.elapsed() < FLUSH * 2, "{:?}", began.elapsed());
        }
    }

    #[test]
    fn without_an_endpoint_there_are_no_spans() {
        let traces = TraceArgs::default().start("test", "1", &[]).unwrap();
        let span = traces.begin(&Context::new(), || panic!("a span is built"));
        assert!(!span.has_active_span());
    }
}
