//! A collector of OpenTelemetry traces that remembers its spans.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, status::StatusCode},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, transport::Server};

/// A span that a collector received.
#[derive(Clone, Debug)]
pub struct SeenSpan {
    /// Name of the span.
    pub name: String,
    /// Id of its trace.
    pub trace: Vec<u8>,
    /// Its id.
    pub id: Vec<u8>,
    /// Id of its parent. Empty: it has none.
    pub parent: Vec<u8>,
    /// Ids of the spans to which it has links.
    pub links: Vec<Vec<u8>>,
    /// Its begin and its end, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Its status is an error.
    pub failed: bool,
    /// Its attributes, and those of its process.
    pub attributes: BTreeMap<String, String>,
}

impl SeenSpan {
    /// Returns an attribute. Empty: the span does not have it.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// A running collector. It ends when it is dropped.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<SeenSpan>>>,
    _running: DropGuard,
}

impl Collector {
    /// Starts a collector on a free port of the loopback interface.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let spans = Arc::default();
        let service = TraceServiceServer::new(Seen(Arc::clone(&spans)));
        let ends = CancellationToken::new();
        let served = Server::builder().add_service(service);
        let connections = TcpListenerStream::new(listener);
        let ended = ends.clone().cancelled_owned();
        tokio::spawn(served.serve_with_incoming_shutdown(connections, ended));
        Ok(Self {
            address,
            spans,
            _running: ends.drop_guard(),
        })
    }

    /// Returns the value for `--otlp-endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the spans with this name that were received, in the order of their begin.
    pub fn spans(&self, name: &str) -> Vec<SeenSpan> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<SeenSpan> = spans.iter().filter(|s| s.name == name).cloned().collect();
        found.sort_by_key(|span| span.time);
        found
    }
}

struct Seen(Arc<Mutex<Vec<SeenSpan>>>);

#[tonic::async_trait]
impl TraceService for Seen {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for process in request.into_inner().resource_spans {
            let resource = process.resource.map(|resource| resource.attributes);
            let resource = resource.unwrap_or_default();
            let spans = process.scope_spans.into_iter().flat_map(|one| one.spans);
            seen.extend(spans.map(|span| self::seen(span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn seen(span: Span, resource: &[KeyValue]) -> SeenSpan {
    let attributes = span.attributes.iter().chain(resource);
    SeenSpan {
        name: span.name,
        trace: span.trace_id,
        id: span.span_id,
        parent: span.parent_span_id,
        links: span.links.into_iter().map(|link| link.span_id).collect(),
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
        failed: span
            .status
            .is_some_and(|status| status.code() == StatusCode::Error),
        attributes: attributes.map(|one| (one.key.clone(), text(one))).collect(),
    }
}

fn text(attribute: &KeyValue) -> String {
    let value = attribute
        .value
        .as_ref()
        .and_then(|value| value.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}
