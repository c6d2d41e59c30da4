//! New limits: those that the VM has room for reach the guest, others are an error that changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Code, Process, Reach};
use serde_json::json;
use support::{Pod, soon};

const INIT: Process<'static> = Process { container: "web", exec: "" };

/// How often the guest was told of limits.
fn updates(pod: &Pod) -> usize {
    let steps = fs::read_to_string(pod.file("steps")).unwrap();
    steps.lines().filter(|step| *step == "update").count()
}

fn memory(mib: i64) -> Vec<u8> {
    json!({"memory": {"limit": mib << 20}}).to_string().into_bytes()
}

#[tokio::test]
async fn limits_beyond_the_vm_are_refused_and_change_nothing() {
    let mut pod = Pod::new("web", &["sleep", "1000"]);
    pod.config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    for (update, words) in [
        (memory(65), "take a VM of 1 vCPU and 193 MiB of memory, 128 MiB of them for the guest itself"),
        (
            json!({"cpu": {"quota": 150_000, "period": 100_000}}).to_string().into_bytes(),
            "take a VM of 2 vCPUs and 192 MiB",
        ),
    ] {
        let error = soon(client.update("web", update)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::RESOURCE_EXHAUSTED), "{error}");
        let words = format!("the limits {words}");
        assert!(
            error.to_string().contains(&words) && error.to_string().contains("this one has 1 vCPU"),
            "{error}"
        );
    }
    assert_eq!(updates(&pod), 0);
    for mib in [32, 64, -1] {
        soon(client.update("web", memory(mib))).await.unwrap();
    }
    assert_eq!(updates(&pod), 3);
    soon(client.kill(INIT, 9, Reach::Process)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}
