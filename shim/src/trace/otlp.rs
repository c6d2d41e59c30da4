//! Spans as lines of a file: OTLP in its JSON encoding, one `ExportTraceServiceRequest` a line, as OpenTelemetry's collector reads it
//! (its file receiver) and its file exporter writes it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Span;
use crate::pod::printable;

/// OpenTelemetry's `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Writes a pod's spans.
pub struct Tracer {
    file: PathBuf,
    resource: Value,
    complained: AtomicBool,
}

impl Tracer {
    /// One that appends to `file`, which other shims append to as well. It is opened for each span, so that it can be taken away
    /// and begun anew at any time.
    pub fn new(file: PathBuf, namespace: &str, pod: &str) -> Self {
        let resource = attributes(&[
            ("service.name", "hull"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.namespace", namespace),
            ("service.instance.id", pod),
        ]);
        Self { file, resource: json!({ "attributes": resource }), complained: AtomicBool::new(false) }
    }

    pub(super) fn write(&self, span: &Span, ended: SystemTime) {
        let mut line = self.line(span, ended).to_string();
        line.push('\n');
        if let Err(error) = self.append(line.as_bytes())
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            log::warn!("spans are lost: {}: {error}", self.file.display());
        }
    }

    /// With one write, so that the lines of several shims do not mix.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file =
            OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(&self.file)?;
        if file.write(line)? == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn line(&self, span: &Span, ended: SystemTime) -> Value {
        let mut json = json!({
            "traceId": format!("{:032x}", span.context.trace),
            "spanId": format!("{:016x}", span.context.span),
            "name": span.name,
            "kind": span.kind as u8,
            "startTimeUnixNano": nanos(span.begun),
            "endTimeUnixNano": nanos(ended),
            "status": {},
        });
        if let Some(parent) = span.context.parent {
            json["parentSpanId"] = format!("{parent:016x}").into();
        }
        if let Some(container) = &span.container {
            json["attributes"] = attributes(&[("container.id", container)]);
        }
        if let Some(error) = &span.error {
            json["status"] = json!({ "code": ERROR, "message": printable(error) });
        }
        let scope = json!({ "scope": { "name": "hull" }, "spans": [json] });
        json!({ "resourceSpans": [{ "resource": self.resource, "scopeSpans": [scope] }] })
    }
}

fn attributes(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } })).collect()
}

/// A 64-bit number is text in JSON.
fn nanos(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}
