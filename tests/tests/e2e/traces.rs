//! Spans for OpenTelemetry: what containerd asks is one, below containerd's own.

use std::fs;

use hull_tests::containerd::Containerd;
use serde_json::Value;

#[test]
fn what_containerd_asks_is_a_span_and_a_start_is_made_of_steps() {
    let folder = tempfile::TempDir::with_prefix("hull-e2e-").unwrap();
    let file = folder.path().join("traces.jsonl");
    let chosen = format!("[trace]\nfile = {file:?}\n");
    // Nobody listens there: containerd makes spans all the same, and says so to the shim.
    let tracing = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")];
    let containerd = Containerd::traced(&chosen, &tracing);
    for id in ["first", "second"] {
        let said = containerd.run_container(&["--rm"], id, &["true"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let text = fs::read_to_string(&file).unwrap();
    let spans = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone()
    });
    let spans: Vec<Value> = spans.collect();
    let creates: Vec<&Value> = spans.iter().filter(|span| span["name"] == "Task/Create").collect();
    assert_eq!(creates.len(), 2, "of each pod one, in one file: {text}");
    for create in creates {
        assert_eq!(create.get("parentSpanId").is_some(), containerd.version() >= (2, 0), "{create}");
        let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        let took = |span: &Value| nanos(span, "endTimeUnixNano") - nanos(span, "startTimeUnixNano");
        let steps: Vec<&Value> =
            spans.iter().filter(|span| span["parentSpanId"] == create["spanId"]).collect();
        let boot = steps.iter().find(|span| span["name"] == "the guest boots").unwrap();
        assert!(took(boot) > 0 && took(boot) < took(create), "{text}");
        for name in ["monitor/Jail", "monitor/Boot", "agent/ConfigurePod", "agent/CreateContainer"] {
            let found = steps.iter().filter(|span| span["name"] == name).count();
            assert_eq!(found, 1, "{name}: {text}");
        }
    }
    for name in ["Task/Start", "Task/Delete"] {
        assert_eq!(spans.iter().filter(|span| span["name"] == name).count(), 2, "{name}: {text}");
    }
    containerd.left_nothing();
}
