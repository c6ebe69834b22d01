//! Traces of connects, API calls, entries of the event stream and bridged sockets (OpenTelemetry). Off, a span is a null
//! pointer, and so is one of a trace that is not sampled.
//!
//! Spans are begun where their parts are, not through `tracing`: its subscribers are the process's, while a node has a
//! name and an exporter of its own, and what is not traced costs nothing at any line of the log.

mod export;

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use export::Report;
pub(crate) use opentelemetry::trace::{SpanKind, TraceId};

/// Where traces go.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// With its path.
    pub(crate) endpoint: reqwest::Url,
    /// Sent along; secrets, often.
    pub(crate) headers: http::HeaderMap,
    /// Of the traces that begin here, so many are kept.
    pub(crate) ratio: f64,
}

/// Bytes of a `traceparent`; those of today have 55.
const MAX_TRACEPARENT: usize = 128;

/// Bytes of a `tracestate` that is passed on, as the standard asks for.
const MAX_TRACESTATE: usize = 512;

/// Bytes of a text in a span.
const MAX_TEXT: usize = 256;

/// Begins spans, if traces are on.
#[derive(Default)]
pub(crate) struct Traces(Option<On>);

struct On {
    tracer: SdkTracer,
    /// Its spans end with it.
    _provider: SdkTracerProvider,
    headers: Arc<RwLock<http::HeaderMap>>,
}

/// Something that takes time, from when it is begun until it is dropped.
#[derive(Default)]
pub(crate) struct Span(Option<Box<Recorded>>);

struct Recorded {
    span: opentelemetry_sdk::trace::Span,
    tracer: SdkTracer,
}

/// What comes before a span, as the standard has it in headers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parent<'a> {
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) tracestate: Option<&'a str>,
}

impl Traces {
    /// Starts what sends spans away. `node_id` and the version say whose they are.
    pub(crate) fn start(
        settings: &Settings,
        node_id: &str,
        report: Report,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let headers = Arc::new(RwLock::new(settings.headers.clone()));
        let queue = export::start(settings, Arc::clone(&headers), node_id, report, tasks, stop)?;
        let provider = SdkTracerProvider::builder()
            // Whoever has decided before us has decided.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.ratio))))
            .with_span_processor(queue)
            .build();
        Ok(Self(Some(On { tracer: provider.tracer("channel-gateway"), _provider: provider, headers })))
    }

    /// Whether there are any.
    pub(crate) fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Headers that are sent along from now on.
    pub(crate) fn set_headers(&self, headers: &http::HeaderMap) {
        if let Some(on) = &self.0 {
            *on.headers.write() = headers.clone();
        }
    }

    /// Begins a span; the first of a trace where it has no parent.
    pub(crate) fn begin(&self, name: &'static str, kind: SpanKind, parent: Parent<'_>) -> Span {
        let Some(on) = &self.0 else { return Span(None) };
        let context = match parent.context() {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        Span::of(&on.tracer, name, kind, &context)
    }

    /// The same, of what is only traced as a part of something else.
    pub(crate) fn begin_under(&self, name: &'static str, kind: SpanKind, traceparent: Option<&str>) -> Span {
        match traceparent {
            Some(_) if self.0.is_some() => self.begin(name, kind, Parent { traceparent, tracestate: None }),
            _ => Span(None),
        }
    }

    /// Begins a part of each of the traces that these are, and puts it in their place.
    pub(crate) fn begin_parts(&self, name: &'static str, traces: &mut [Option<Arc<str>>]) -> Vec<Span> {
        let mut parts: Vec<(Arc<str>, Span)> = Vec::new();
        if self.0.is_none() {
            return Vec::new();
        }
        for trace in traces.iter_mut().flatten() {
            let known = parts.iter().position(|(of, _)| of == trace);
            let part = known.unwrap_or_else(|| {
                parts.push((Arc::clone(trace), self.begin_under(name, SpanKind::Internal, Some(trace))));
                parts.len() - 1
            });
            if let Some(own) = parts.get(part).and_then(|(_, span)| span.traceparent()) {
                *trace = own;
            }
        }
        parts.into_iter().map(|(_, span)| span).collect()
    }
}

impl Span {
    fn of(tracer: &SdkTracer, name: &'static str, kind: SpanKind, context: &Context) -> Self {
        let span = tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), context);
        Self(span.is_recording().then(|| Box::new(Recorded { span, tracer: tracer.clone() })))
    }

    /// Begins a part of this.
    pub(crate) fn child(&self, name: &'static str, kind: SpanKind) -> Self {
        let Some(own) = &self.0 else { return Self(None) };
        // Its own context says that it came from elsewhere, which only counts for sampling: that is the same.
        let context = Context::new().with_remote_span_context(own.span.span_context().clone());
        Self::of(&own.tracer, name, kind, &context)
    }

    /// Notes something about it.
    pub(crate) fn set<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(own) = &mut self.0 {
            own.span.set_attribute(KeyValue::new(key, cut(value().into())));
        }
    }

    /// Gives it a name, once that is known. There are few of them.
    pub(crate) fn rename(&mut self, name: impl FnOnce() -> String) {
        if let Some(own) = &mut self.0 {
            own.span.update_name(name());
        }
    }

    /// It has failed, and that is the node's business. A word of the program's says why.
    pub(crate) fn fail(&mut self, why: &'static str) {
        if let Some(own) = &mut self.0 {
            own.span.set_status(Status::error(why));
        }
    }

    /// What others need to go on with it.
    pub(crate) fn traceparent(&self) -> Option<Arc<str>> {
        let own = self.0.as_ref()?.span.span_context();
        Some(format!("00-{}-{}-{:02x}", own.trace_id(), own.span_id(), own.trace_flags()).into())
    }

    /// The trace, if it is kept.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.0.as_ref().map(|own| own.span.span_context().trace_id())
    }
}

impl<'a> Parent<'a> {
    /// As headers say it; what is longer than it may be means nothing.
    pub(crate) fn of(headers: &'a http::HeaderMap) -> Self {
        let text = |name, most| {
            let value: &http::HeaderValue = headers.get(name)?;
            value.to_str().ok().filter(|text| text.len() <= most)
        };
        Self { traceparent: text("traceparent", MAX_TRACEPARENT), tracestate: text("tracestate", MAX_TRACESTATE) }
    }

    fn context(self) -> Option<SpanContext> {
        let text = self.traceparent.filter(|text| is_traceparent(text))?;
        let mut parts = text.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
        let state = self.tracestate.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        Some(SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, state))
    }
}

/// Whether a text is a `traceparent` of the W3C. What is none means nothing, as the standard has it.
pub(crate) fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut next = |length: usize| {
        let part = parts.next().unwrap_or_default();
        let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (part.len() == length && is_hex).then_some(part)
    };
    let (version, trace, span, flags) = (next(2), next(32), next(16), next(2));
    let is_set = |id: Option<&str>| id.is_some_and(|id| id.bytes().any(|digit| digit != b'0'));
    let is_known = version.is_some_and(|version| version != "ff" && (version != "00" || text.len() == 55));
    text.len() <= MAX_TRACEPARENT && is_known && is_set(trace) && is_set(span) && flags.is_some()
}

/// A text within its bound.
fn cut(value: Value) -> Value {
    match value {
        Value::String(text) if text.as_str().len() > MAX_TEXT => {
            let text = text.as_str();
            let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            text[..end].to_owned().into()
        }
        other => other,
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Traces(on)" } else { "Traces(off)" })
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.trace_id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_what_the_standard_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good) && is_traceparent(&format!("01{}-more", &good[2..])));
        for bad in [
            "",
            &good[..54],
            &format!("{good}-more"),
            &good.to_uppercase(),
            &format!("ff{}", &good[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("01{}-{}", &good[2..], "x".repeat(100)),
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = format!("{}é", "x".repeat(MAX_TEXT - 1));
        assert_eq!(cut(long.into()), Value::from("x".repeat(MAX_TEXT - 1)));
        assert_eq!(cut("é".into()), Value::from("é"));
        assert_eq!(cut(7.into()), Value::from(7));
    }

    #[test]
    fn without_traces_there_is_nothing() {
        let (traces, traceparent) =
            (Traces::default(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        let span = traces.begin("connect", SpanKind::Server, Parent { traceparent, tracestate: None });
        assert_eq!((span.traceparent(), span.child("store", SpanKind::Internal).trace_id()), (None, None));
        assert_eq!(size_of::<Span>(), size_of::<usize>());
    }
}
