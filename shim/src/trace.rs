//! What a request took and the steps it was made of, as spans for OpenTelemetry. Off unless `trace.file` names a file.
//!
//! A span begins where containerd's request comes in, under the client's own where the request says which (W3C Trace Context), and
//! each question to the monitor and to the agent is one below it. What is outside of a request has none. A trace is worth having, and
//! not worth failing for: a span that cannot be written is lost. Arguments, environment and output are never in one.

mod context;
mod otlp;

use std::fmt::Display;
use std::sync::Arc;
use std::time::SystemTime;

pub use context::Parent;
use context::{Context, Sampled};
pub use otlp::Tracer;

tokio::task_local! {
    /// Within a request: where its next span belongs.
    static CURRENT: Current;
}

#[derive(Clone)]
struct Current {
    tracer: Arc<Tracer>,
    context: Context,
}

/// Which side of a call a span is (OpenTelemetry's `SpanKind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    Internal = 1,
    /// The one that is asked.
    Server = 2,
    /// The one that asks.
    Client = 3,
}

/// A request of containerd's.
#[derive(Debug)]
pub struct Call {
    /// The method, as `Task/Create`.
    pub method: &'static str,
    /// The container that it is about, or the pod.
    pub container: String,
    /// The client's span.
    pub parent: Parent,
}

/// What has been begun. One that is dropped before its [`end`](Self::end) was given up.
pub struct Span {
    tracer: Arc<Tracer>,
    name: String,
    kind: Kind,
    context: Context,
    container: Option<String>,
    begun: SystemTime,
    error: Option<String>,
}

impl Span {
    fn begin(current: Current, name: String, kind: Kind, container: Option<String>) -> Self {
        let Current { tracer, context } = current;
        let error = Some("given up".to_owned());
        Self { tracer, name, kind, context, container, begun: SystemTime::now(), error }
    }

    fn end<T, E: Display>(mut self, result: &Result<T, E>) {
        self.error = result.as_ref().err().map(ToString::to_string);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.tracer.write(self, SystemTime::now());
    }
}

/// Does the work of a request.
pub async fn request<T, E: Display>(
    tracer: Option<Arc<Tracer>>,
    call: Call,
    work: impl Future<Output = Result<T, E>> + Unpin,
) -> Result<T, E> {
    let Some(tracer) = tracer else { return work.await };
    let Sampled::Yes(context) = Context::below(&call.parent) else { return work.await };
    let current = Current { tracer, context };
    let span = Span::begin(current.clone(), call.method.to_owned(), Kind::Server, Some(call.container));
    let result = CURRENT.scope(current, work).await;
    span.end(&result);
    result
}

/// Begins a step of the request that is under way, if it has spans: a question to another process of the pod, or something that is
/// waited for.
pub fn step(kind: Kind, name: impl FnOnce() -> String) -> Option<Span> {
    let Current { tracer, context } = CURRENT.try_with(Clone::clone).ok()?;
    Some(Span::begin(Current { tracer, context: context.child() }, name(), kind, None))
}

/// Ends a step.
pub fn done<T, E: Display>(span: Option<Span>, result: Result<T, E>) -> Result<T, E> {
    if let Some(span) = span {
        span.end(&result);
    }
    result
}
