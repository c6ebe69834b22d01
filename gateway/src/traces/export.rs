//! Spans on their way to the collector: a bounded queue, and a task that sends what is in it, many together (OTLP by
//! HTTP). Nobody waits for it. What finds no room, or cannot be sent, is counted and gone.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use crate::http_client::{self, BodyError};

/// Spans that wait to be sent; more are dropped. Each takes some hundred bytes, and 4 KiB at most.
const WAITING: usize = 2048;

/// Spans that are sent together, and how long the first of them waits for more.
const TOGETHER: usize = 512;
const EVERY: Duration = Duration::from_secs(2);

/// How long the collector may take; and when the node leaves.
const ANSWER: Duration = Duration::from_secs(10);
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Bytes of its answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Why spans did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the collector cannot be reached")]
    Http(#[source] reqwest::Error),
    #[error("the collector's answer cannot be read")]
    Body(#[source] BodyError),
    #[error("the collector does not answer in time")]
    Late,
    #[error("the collector answers {0}")]
    Status(StatusCode),
    #[error("the collector refuses {0} spans: {1}")]
    Refused(i64, String),
}

/// Is told how a turn ended.
type Note = Box<dyn Fn(&Result<(), Failure>) + Send + Sync>;

/// Whom to tell how it goes.
pub(crate) struct Report {
    /// Spans that found no room.
    pub(crate) overflowed: Counter,
    /// Spans that could not be sent.
    pub(crate) failed: Counter,
    pub(crate) sent: Counter,
    pub(crate) note: Note,
}

/// Where spans go in.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    overflowed: Counter,
}

/// What sends them.
struct Exporter {
    http: reqwest::Client,
    endpoint: reqwest::Url,
    headers: Arc<RwLock<HeaderMap>>,
    resource: ResourceAttributesWithSchema,
    report: Report,
}

/// Whose spans these are. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` count, as everywhere.
pub(super) fn resource(node_id: &str) -> Resource {
    let name = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let mut resource = Resource::builder_empty()
        .with_attributes([KeyValue::new("service.name", "channel-gateway"), version])
        .with_detector(Box::new(EnvResourceDetector::new()));
    if let Some(name) = name {
        resource = resource.with_attribute(KeyValue::new("service.name", name));
    }
    resource.with_attribute(KeyValue::new("service.instance.id", node_id.to_owned())).build()
}

/// Starts the task.
pub(super) fn start(
    settings: &Settings,
    headers: Arc<RwLock<HeaderMap>>,
    node_id: &str,
    report: Report,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Queue, reqwest::Error> {
    let (spans, waiting) = mpsc::channel(WAITING);
    let queue = Queue { spans, overflowed: report.overflowed.clone() };
    let exporter = Exporter {
        http: http_client::builder().pool_max_idle_per_host(1).build()?,
        endpoint: settings.endpoint.clone(),
        headers,
        resource: (&resource(node_id)).into(),
        report,
    };
    tasks.spawn(exporter.run(waiting, stop.clone()));
    Ok(queue)
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.overflowed.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // Who sends ends with the node.
        Ok(())
    }
}

impl Exporter {
    async fn run(self, mut waiting: mpsc::Receiver<SpanData>, stop: CancellationToken) {
        let mut batch = Vec::new();
        while let Some(1..) = stop.run_until_cancelled(waiting.recv_many(&mut batch, TOGETHER)).await {
            let until = Instant::now() + EVERY;
            let more = async {
                while batch.len() < TOGETHER {
                    let room = TOGETHER - batch.len();
                    if !matches!(timeout_at(until, waiting.recv_many(&mut batch, room)).await, Ok(1..)) {
                        break;
                    }
                }
            };
            stop.run_until_cancelled(more).await;
            self.send(std::mem::take(&mut batch), ANSWER).await;
        }
        // What came while the node was leaving.
        while let Ok(span) = waiting.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.send(batch, LAST_ANSWER).await;
        }
    }

    async fn send(&self, batch: Vec<SpanData>, patience: Duration) {
        let count = batch.len() as u64;
        let turn = timeout(patience, self.try_send(batch)).await.unwrap_or(Err(Failure::Late));
        let lost = match &turn {
            Ok(()) => 0,
            Err(Failure::Refused(spans, _)) => u64::try_from(*spans).unwrap_or_default().min(count),
            Err(_) => count,
        };
        self.report.failed.inc_by(lost);
        self.report.sent.inc_by(count - lost);
        (self.report.note)(&turn);
    }

    async fn try_send(&self, batch: Vec<SpanData>) -> Result<(), Failure> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let mut headers = self.headers.read().clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let request = self.http.post(self.endpoint.clone()).headers(headers).body(body);
        let answer = request.send().await.map_err(|error| Failure::Http(error.without_url()))?;
        if !answer.status().is_success() {
            return Err(Failure::Status(answer.status()));
        }
        let body = http_client::body(answer, MAX_ANSWER).await.map_err(Failure::Body)?;
        // What is no answer of the protocol is a good one: some collectors say `{}`.
        let refused = ExportTraceServiceResponse::decode(&body[..]).ok().and_then(|answer| answer.partial_success);
        match refused.filter(|refused| refused.rejected_spans > 0) {
            Some(refused) => Err(Failure::Refused(refused.rejected_spans, refused.error_message)),
            None => Ok(()),
        }
    }
}
