//! Somebody dies, or something goes, at each step of a pod's life, one step after the other: each time the requests end with the right errors and
//! the right exits, the events keep their laws, nothing is left, and the next pod works. Needs root.
//!
//! A step is whatever the shim asks of the monitor or of the agent. A life without a fault shows how many there are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use hull_shim::client::{ClientError, Code, Process, Reach};
use hull_shim::record::{Record, ShimRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::life::{Life, Said, Shape};
use support::soon;

/// Lives that are lived at the same time: most of each is waiting.
const AT_ONCE: usize = 8;

/// Whether an error is what a client should hear of this death.
fn is_fitting(victim: &str, error: &ClientError) -> bool {
    let words = error.to_string();
    match error.code() {
        None => victim == "shim",
        Some(Code::UNKNOWN) if victim == "room" && words.contains("No space left on device") => true,
        // The process is gone, or the sandbox is; clients take it for that.
        Some(Code::NOT_FOUND | Code::FAILED_PRECONDITION) => true,
        Some(Code::UNKNOWN) => {
            ["ended", "stopped", "the connection to the agent in the guest broke", "file broker"]
                .iter()
                .any(|part| words.contains(part))
                // One request after the first error.
                || words.starts_with("cannot ")
        }
        Some(_) => false,
    }
}

/// The steps of a life without a fault.
async fn steps(shape: Shape) -> Vec<String> {
    let mut life = Life::new(shape);
    let said = life.once("").await;
    assert!(said.errors.is_empty(), "{said:?}");
    assert_eq!(said.exit, Some(137));
    fs::read_to_string(life.pod.file("steps")).unwrap().lines().map(str::to_owned).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

fn every_step(shape: Shape, victim: &str) {
    let steps = block_on(steps(shape));
    assert!(steps.len() > 20, "{steps:?}");
    let (next, noticed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let step = next.fetch_add(1, Ordering::SeqCst)
                    && step < steps.len()
                {
                    let said = block_on(one_step(shape, victim, step, &steps[step]));
                    noticed.fetch_add(said.errors.len(), Ordering::SeqCst);
                }
            });
        }
    });
    // A pod that runs has no need of room on the disk, nor of its namespace's name.
    let needed = !["room", "namespace"].contains(&victim);
    assert!(noticed.into_inner() > 0 || !needed, "it is nothing to anybody");
}

async fn one_step(shape: Shape, victim: &str, step: usize, name: &str) -> Said {
    let fault = format!("{victim}@{}", step + 1);
    let mut life = Life::new(shape);
    if victim == "room" {
        life = life.on_small_disk();
    }
    let said = life.once(&fault).await;
    assert!(victim != "room" || life.pod.file("disk/ballast-0").exists(), "{fault} ({name}) was not");
    for (what, error) in &said.errors {
        assert!(is_fitting(victim, error), "{fault} ({name}): {what}: {:?} {error}", error.code());
    }
    assert!(matches!(said.exit, None | Some(137)), "{fault} ({name}): {said:?}");
    if victim == "shim" || victim == "monitor" {
        // A VM that ends while its container is taken out of it has nothing left to be said.
        let quiet = ["wait", "stats", "delete", "unbind", "unplug"];
        assert!(!said.errors.is_empty() || quiet.contains(&name), "{fault} ({name}) was not noticed");
    }
    let next = life.once("").await;
    assert!(next.errors.is_empty() && next.exit == Some(137), "the pod after {fault} ({name}): {next:?}");
    said
}

/// Of the monitor, from its start, and of the agent. The bound only goes down.
#[test]
fn a_pod_is_ready_after_so_many_requests() {
    let steps = block_on(steps(Shape::Sandboxed));
    let ready = steps.iter().position(|step| step == "plug").unwrap();
    assert!(ready <= 12, "{:?}", &steps[..ready]);
}

#[test]
fn the_monitor_dies() {
    every_step(Shape::Alone, "monitor");
}

#[test]
fn the_monitor_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "monitor");
}

#[test]
fn the_monitor_of_a_pod_by_the_sandbox_api_dies() {
    every_step(Shape::ByApi, "monitor");
}

#[test]
fn the_agent_breaks_off() {
    every_step(Shape::Alone, "agent");
}

#[test]
fn the_agent_of_a_pod_breaks_off() {
    every_step(Shape::Sandboxed, "agent");
}

#[test]
fn the_shim_dies() {
    every_step(Shape::Alone, "shim");
}

#[test]
fn the_shim_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "shim");
}

#[test]
fn the_shim_of_a_pod_by_the_sandbox_api_dies() {
    every_step(Shape::ByApi, "shim");
}

#[test]
fn the_file_broker_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "broker");
}

#[test]
fn the_disk_is_full() {
    every_step(Shape::Alone, "room");
}

#[test]
fn the_disk_of_a_pod_is_full() {
    every_step(Shape::Sandboxed, "room");
}

#[test]
fn the_disk_of_a_pod_by_the_sandbox_api_is_full() {
    every_step(Shape::ByApi, "room");
}

#[test]
fn the_network_namespace_goes() {
    every_step(Shape::Alone, "namespace");
}

#[test]
fn the_network_namespace_of_a_pod_goes() {
    every_step(Shape::Sandboxed, "namespace");
}

#[test]
fn the_network_namespace_of_a_pod_by_the_sandbox_api_goes() {
    every_step(Shape::ByApi, "namespace");
}

#[tokio::test]
async fn the_network_namespace_goes_away() {
    let mut life = Life::new(Shape::Alone);
    let client = life.pod.connect().await;
    let web = Process::init("web");
    soon(client.create(&life.pod.request)).await.unwrap();
    soon(client.start(web)).await.unwrap();
    // Its name, and the far end with its interface; the monitor still holds the namespace.
    life.named.remove();
    soon(client.state(web)).await.unwrap();
    soon(client.kill(web, 9, Reach::Process)).await.unwrap();
    assert_eq!(soon(client.wait(web)).await.unwrap().exit_status, 137);
    soon(client.delete(web)).await.unwrap();
    // Before the creation, it is an error that names it.
    let error = soon(client.create(&life.pod.request)).await.unwrap_err().to_string();
    assert!(error.contains(&life.named.path()), "{error}");
    soon(client.shutdown("web")).await.unwrap();
    life.pod.assert_nothing_left();
    life.rename();
    // And after the shim was killed, no obstacle to cleaning up.
    let client = life.pod.connect().await;
    soon(client.create(&life.pod.request)).await.unwrap();
    let record = ShimRecord::read(life.pod.bundle()).unwrap().unwrap();
    life.named.remove();
    kill(Pid::from_raw(record.shim_pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(life.pod.shim.delete().unwrap().exit_status, 137);
    life.pod.assert_nothing_left();
}
