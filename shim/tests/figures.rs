//! What a pod measures, asked of its shim.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use hull_shim::client::{Process, Reach};
use hull_shim::pod_sockets;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Pod, eventually, soon};

const SANDBOX: Process<'static> = Process { container: "pod", exec: "" };

/// Whether every thread has come to its stop, which the signal alone does not mean.
fn is_stopped(pid: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |thread: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap()
    };
    threads.map(status).all(|status| status.contains("State:\tT"))
}

#[tokio::test]
async fn a_pod_tells_what_it_measures_also_when_its_vm_is_stuck() {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    let empty = soon(client.pod_metrics()).await.unwrap();
    assert_eq!((empty.namespace.as_str(), empty.pod.as_str()), ("test", "pod"));
    assert!(empty.shim.unwrap().resident_bytes > 1 << 20, "{empty:?}");
    assert!(empty.monitor.is_none() && empty.vm.is_none() && empty.containers.is_empty(), "{empty:?}");

    let monitor = soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(SANDBOX)).await.unwrap();
    for id in ["a", "b"] {
        soon(client.create(&pod.member(id, &["sleep", "1000"]))).await.unwrap();
    }
    soon(client.start(Process::init("a"))).await.unwrap();
    let full = soon(client.pod_metrics()).await.unwrap();
    let states: Vec<_> = full.containers.iter().map(|c| (c.id.as_str(), c.state.as_str())).collect();
    assert_eq!(states, [("a", "running"), ("b", "created")], "the sandbox is not one of them");
    assert_eq!(full.containers[0].usage.unwrap().memory_bytes, 4096, "as the agent says");
    assert_eq!(full.vm.unwrap().vm_exits, 7, "as the monitor says");
    assert!(full.boot.is_some() && full.monitor.unwrap().threads >= 1);

    // Agent and monitor are one process here, and do not answer.
    let monitor = Pid::from_raw(monitor.cast_signed());
    kill(monitor, Signal::SIGSTOP).unwrap();
    eventually(|| is_stopped(monitor), || "its threads go on".into());
    let asked = Instant::now();
    let stuck = soon(client.pod_metrics()).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10), "it gives up on them");
    assert!(stuck.vm.is_none() && stuck.containers.iter().all(|c| c.usage.is_none()), "{stuck:?}");
    assert!(stuck.monitor.is_some() && stuck.containers.len() == 2, "{stuck:?}");
    kill(monitor, Signal::SIGCONT).unwrap();

    assert_eq!(pod_sockets(&pod.file("r")).unwrap().len(), 1, "one for the pod, and others with an ending");
    client.kill(SANDBOX, 9, Reach::Process).await.unwrap();
    soon(client.wait(SANDBOX)).await.unwrap();
    for id in ["a", "b", "pod"] {
        soon(client.delete(Process::init(id))).await.unwrap();
    }
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}
