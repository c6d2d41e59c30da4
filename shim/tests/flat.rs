//! A shim holds no more after the thousandth exec, nor after the three hundredth container, than after the first few.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Process, Reach, TaskClient};
use support::counters::Counters;
use support::{Pod, soon};

/// What its memory may grow by, in KiB: less than 300 bytes a round.
const SLACK: u64 = 256;
/// Rounds before it is looked at first.
const WARM: u32 = 100;

const SANDBOX: Process<'static> = Process { container: "pod", exec: "" };

async fn running() -> (Pod, TaskClient, u32) {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(SANDBOX)).await.unwrap();
    let shim = soon(client.connect_task("pod")).await.unwrap().shim_pid;
    (pod, client, shim)
}

async fn end(pod: &Pod, client: &TaskClient) {
    soon(client.kill(SANDBOX, 9, Reach::Process)).await.unwrap();
    soon(client.wait(SANDBOX)).await.unwrap();
    soon(client.delete(SANDBOX)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

fn assert_flat(early: Counters, late: Counters) {
    assert_eq!(late.descriptors, early.descriptors, "{early:?}, {late:?}");
    assert!(late.threads <= early.threads, "{early:?}, {late:?}");
    assert!(late.written_kib <= early.written_kib + SLACK, "{early:?}, {late:?}");
}

#[tokio::test]
async fn a_thousand_execs() {
    let (pod, client, shim) = running().await;
    let web = Process::init("web");
    soon(client.create(&pod.member("web", &["sleep", "1000"]))).await.unwrap();
    soon(client.start(web)).await.unwrap();
    let fifos = ["in", "out", "err"].map(|name| pod.fifo(name));
    let log = pod.file("log");
    let mut early = None;
    for number in 0..1000 {
        // One that is known before, and one by each kind of address.
        let id = format!("e{}", number % 7);
        let mut request = pod.exec_request(&id, &["true"]);
        request.id = "web".into();
        if number % 2 == 0 {
            let [stdin, stdout, stderr] = fifos.clone();
            (request.stdin, request.stdout, request.stderr) = (stdin, stdout, stderr);
        } else {
            request.stdout = format!("file://{}", log.display());
        }
        let exec = Process::exec("web", &id);
        soon(client.exec(&request)).await.unwrap();
        soon(client.start(exec)).await.unwrap();
        assert_eq!(soon(client.wait(exec)).await.unwrap().exit_status, 0);
        soon(client.delete(exec)).await.unwrap();
        if number == WARM {
            early = Some(Counters::of(shim));
        }
    }
    assert_flat(early.unwrap(), Counters::of(shim));
    soon(client.kill(web, 9, Reach::Process)).await.unwrap();
    soon(client.wait(web)).await.unwrap();
    soon(client.delete(web)).await.unwrap();
    end(&pod, &client).await;
}

#[tokio::test]
async fn three_hundred_containers() {
    let (pod, client, shim) = running().await;
    let mut early = None;
    for number in 0..300 {
        let id = format!("c{number}");
        let mut request = pod.member_request(&id, &["sleep", "1000"]);
        request.stdout = format!("file://{}", pod.file("log").display());
        let container = Process::init(&id);
        soon(client.create(&request)).await.unwrap();
        // One in ten is deleted before its start.
        if number % 10 != 0 {
            soon(client.start(container)).await.unwrap();
            soon(client.kill(container, 9, Reach::Container)).await.unwrap();
            assert_eq!(soon(client.wait(container)).await.unwrap().exit_status, 137);
        }
        assert_eq!(soon(client.delete(container)).await.unwrap().exit_status, 137);
        fs::remove_dir_all(request.bundle).unwrap();
        if number == WARM {
            early = Some(Counters::of(shim));
        }
    }
    assert_flat(early.unwrap(), Counters::of(shim));
    end(&pod, &client).await;
}
