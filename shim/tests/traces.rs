//! Spans: which there are, below what, and what is never in one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hull_shim::client::{Process, Reach, TaskClient};
use serde_json::{Value, json};
use support::{Pod, soon};
use ttrpc::asynchronous::Client;
use ttrpc::proto::{KeyValue, Request};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A request of a client that has a span of its own.
async fn ask(pod: &Pod, method: &str, request: &dyn protobuf::MessageDyn, flags: &str) {
    let address = fs::read_to_string(pod.file("b").join("address")).unwrap();
    let client = Client::connect(&address).await.unwrap();
    let mut envelope = Request::new();
    envelope.service = "containerd.task.v3.Task".into();
    envelope.method = method.into();
    envelope.payload = request.write_to_bytes_dyn().unwrap();
    let mut parent = KeyValue::new();
    parent.key = "traceparent".into();
    parent.value = format!("00-{TRACE}-{PARENT}-{flags}");
    envelope.metadata.push(parent);
    soon(client.request(envelope)).await.unwrap();
}

/// A pod whose shim writes spans to this file.
fn traced(file: &Path) -> (Pod, tempfile::NamedTempFile) {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), format!("trace.file = {file:?}\n")).unwrap();
    let environment = format!("HULL_CONFIG={}", config.path().display());
    let pod = Pod::with("web", &["sh", "-c", "exec sleep 100", "argument-5ecret"], "", &environment);
    (pod, config)
}

async fn end(pod: &Pod, client: &TaskClient) {
    let init = Process::init("web");
    soon(client.wait(init)).await.unwrap();
    soon(client.delete(init)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_request_is_a_span_below_the_clients_and_its_steps_are_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traces.jsonl");
    let (pod, _config) = traced(&file);
    let client = pod.connect().await;
    ask(&pod, "Create", &pod.request, "01").await;
    soon(client.start(Process::init("web"))).await.unwrap();
    soon(client.start(Process::init("web"))).await.unwrap_err();
    let mut kill = containerd_shim_protos::api::KillRequest::new();
    (kill.id, kill.signal) = ("web".into(), 9);
    ask(&pod, "Kill", &kill, "00").await;
    end(&pod, &client).await;

    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains("5ecret"), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let spans: Vec<&Value> =
        lines.iter().map(|line| &line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]).collect();
    let named = |name: &str| spans.iter().filter(|span| span["name"] == name).copied().collect::<Vec<_>>();
    assert_eq!(lines[0]["resourceSpans"][0]["resource"]["attributes"][3]["value"]["stringValue"], "web");

    let [create] = named("Task/Create")[..] else { panic!("{text}") };
    assert_eq!((&create["traceId"], &create["parentSpanId"]), (&json!(TRACE), &json!(PARENT)));
    assert_eq!((&create["kind"], &create["status"]), (&json!(2), &json!({})));
    let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    for name in
        ["monitor/Machine", "monitor/Boot", "the guest boots", "agent/ConfigurePod", "agent/CreateContainer"]
    {
        let [step] = named(name)[..] else { panic!("{name}: {text}") };
        assert_eq!((&step["traceId"], &step["parentSpanId"]), (&json!(TRACE), &create["spanId"]), "{name}");
        assert!(nanos(step, "startTimeUnixNano") >= nanos(create, "startTimeUnixNano"), "{name}");
        assert!(nanos(step, "endTimeUnixNano") <= nanos(create, "endTimeUnixNano"), "{name}");
    }

    let [started, again] = named("Task/Start")[..] else { panic!("{text}") };
    assert_ne!(started["traceId"], TRACE, "nobody said of which it is");
    assert!(started.get("parentSpanId").is_none());
    assert_eq!((&started["status"], &again["status"]["code"]), (&json!({}), &json!(2)));
    assert!(named("Task/Kill").is_empty(), "its client does not record it");
    assert!(!named("Task/Delete").is_empty());
}

#[tokio::test]
async fn spans_that_cannot_be_written_are_lost_and_said_so_once() {
    let (pod, _config) = traced(Path::new("/nowhere/traces.jsonl"));
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(Process::init("web"))).await.unwrap();
    soon(client.kill(Process::init("web"), 9, Reach::Process)).await.unwrap();
    let log = pod.log();
    assert_eq!(log.matches("spans are lost: /nowhere/traces.jsonl").count(), 1, "{log}");
    end(&pod, &client).await;
}
