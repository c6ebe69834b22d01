//! A collector of traces: takes what a node sends by OTLP over HTTP, and shows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::eventually;

/// Ends when it is dropped.
pub struct Collector {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    received: Mutex<Vec<(String, ExportTraceServiceRequest)>>,
    /// What is answered. With 206 one span of each batch is refused.
    status: AtomicU16,
}

/// A span, as a test wants to see it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty for the first of a trace.
    pub parent: String,
    pub kind: i32,
    pub failed: bool,
    attributes: Vec<KeyValue>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { received: Mutex::default(), status: AtomicU16::new(200) });
        let mut tasks = JoinSet::new();
        let own = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut visitors = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                visitors.spawn(Arc::clone(&own).serve(stream));
            }
        });
        Self { address, shared, _tasks: tasks }
    }

    /// What `--otlp-endpoint` is to say.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn answers(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    pub fn spans(&self) -> Vec<Seen> {
        let received = self.shared.received.lock();
        let resources = received.iter().flat_map(|(_, request)| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans).map(Seen::of).collect()
    }

    /// Waits for a span of this name that fits.
    pub async fn span(&self, name: &str, fits: impl Fn(&Seen) -> bool) -> Seen {
        let find = || self.spans().into_iter().find(|span| span.name == name && fits(span));
        eventually(&format!("a span {name} is here"), async || find().is_some()).await;
        find().unwrap()
    }

    /// An attribute of whom they are from.
    pub fn resource(&self, key: &str) -> Option<String> {
        let received = self.shared.received.lock();
        text(&received.first()?.1.resource_spans.first()?.resource.as_ref()?.attributes, key)
    }

    /// The head of the newest request.
    pub fn head(&self) -> String {
        self.shared.received.lock().last().map(|(head, _)| head.clone()).unwrap_or_default()
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut read = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length: usize = length.unwrap_or_default();
            while read.len() < end + length {
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let request = ExportTraceServiceRequest::decode(&read[end..end + length]).unwrap();
            read.drain(..end + length);
            let mut status = self.status.load(Ordering::Relaxed);
            let mut body = Vec::new();
            if status == 206 {
                status = 200;
                let partial_success =
                    Some(ExportTracePartialSuccess { rejected_spans: 1, error_message: "too many".to_owned() });
                body = ExportTraceServiceResponse { partial_success }.encode_to_vec();
            }
            if status == 200 {
                self.received.lock().push((head, request));
            }
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                return;
            }
        }
    }
}

impl Seen {
    fn of(span: &Span) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Self {
            name: span.name.clone(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            kind: span.kind,
            failed: span.status.as_ref().is_some_and(|status| status.code == 2),
            attributes: span.attributes.clone(),
        }
    }

    pub fn get(&self, key: &str) -> String {
        text(&self.attributes, key).unwrap_or_default()
    }

    /// What goes on with it.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}
