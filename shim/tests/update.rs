//! New limits: those that the VM has room for reach the guest, others are an error that changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Code, Process, Reach, TaskClient};
use serde_json::json;
use support::{Pod, soon};

const INIT: Process<'static> = Process { container: "web", exec: "" };

/// How often the guest was told of limits.
fn updates(pod: &Pod) -> usize {
    steps_of(pod, "update")
}

fn memory(mib: i64) -> Vec<u8> {
    json!({"memory": {"limit": mib << 20}}).to_string().into_bytes()
}

/// What the guest was asked to have in memory besides what it has booted with, in MiB.
fn memory_asked(pod: &Pod) -> Vec<u32> {
    let asked = fs::read_to_string(pod.file("memory")).unwrap_or_default();
    asked.lines().map(|line| line.parse().unwrap()).collect()
}

fn steps_of(pod: &Pod, name: &str) -> usize {
    let steps = fs::read_to_string(pod.file("steps")).unwrap();
    steps.lines().filter(|step| *step == name).count()
}

/// A running container with a limit of 64 MiB.
async fn running_in_a_vm_that_may_grow() -> (Pod, TaskClient) {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "vm.resize = \"allow\"\n").unwrap();
    let environment = format!("HULL_CONFIG={}", config.path().display());
    let mut pod = Pod::with("web", &["sleep", "1000"], "", &environment);
    pod.config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    (pod, client)
}

#[tokio::test]
async fn the_vm_grows_and_shrinks_with_the_limits() {
    let (pod, client) = running_in_a_vm_that_may_grow().await;
    assert_eq!(steps_of(&pod, "plug"), 0, "nothing is plugged that nobody wants");
    for mib in [65, 312, 100, 100, 32] {
        soon(client.update("web", memory(mib))).await.unwrap();
    }
    assert_eq!(memory_asked(&pod), [2, 256, 38, 0]);
    assert_eq!((steps_of(&pod, "plug"), steps_of(&pod, "bind")), (1, 1));
    soon(client.kill(INIT, 9, Reach::Process)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

/// It takes as long as a guest has to part with memory.
#[tokio::test]
async fn an_update_whose_memory_the_guest_keeps_changes_nothing() {
    let (pod, client) = running_in_a_vm_that_may_grow().await;
    soon(client.update("web", memory(312))).await.unwrap();
    fs::write(pod.file("keeps"), "100").unwrap();
    let error = client.update("web", memory(100)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::RESOURCE_EXHAUSTED), "{error}");
    assert!(error.to_string().contains("unplugged only 156 of 218 MiB of memory"), "{error}");
    assert_eq!(memory_asked(&pod), [256, 38, 256], "the VM is as large as before");
    assert_eq!((updates(&pod), steps_of(&pod, "revert")), (2, 1), "the container has the limit of before");
    // And the shim knows.
    fs::remove_file(pod.file("keeps")).unwrap();
    for mib in [312, 100] {
        soon(client.update("web", memory(mib))).await.unwrap();
    }
    assert_eq!(memory_asked(&pod), [256, 38, 256, 38]);
    soon(client.kill(INIT, 9, Reach::Process)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn limits_beyond_the_vm_are_refused_and_change_nothing() {
    let mut pod = Pod::new("web", &["sleep", "1000"]);
    pod.config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    for (update, words) in [
        (
            memory(65),
            "take a VM of 1 vCPU and 196 MiB of memory, 128 MiB and a 32nd part of the limits for the guest itself among them",
        ),
        (
            json!({"cpu": {"quota": 150_000, "period": 100_000}}).to_string().into_bytes(),
            "take a VM of 2 vCPUs and 194 MiB",
        ),
    ] {
        let error = soon(client.update("web", update)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::RESOURCE_EXHAUSTED), "{error}");
        let words = format!("the limits {words}");
        assert!(
            error.to_string().contains(&words)
                && error.to_string().contains("this one can have 1 vCPU and 194 MiB"),
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
