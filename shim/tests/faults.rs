//! What dies, and when: each time the right error, the right exit, and nothing left.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, Status};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use hull_shim::client::{Process, Reach, TaskClient};
use hull_shim::record::{ExitRecord, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Pod, eventually, soon};
use ttrpc::asynchronous::{Server, TtrpcContext};

const INIT: Process<'static> = Process { container: "web", exec: "" };

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_vm_that_dies_on_the_way_up_leaves_an_error_and_nothing_else() {
    for (fault, words) in [
        ("hello", "ended without a word"),
        ("jail", "ended without a word"),
        ("machine", "ended without a word"),
        ("disk", "ended without a word"),
        ("vsock", "ended without a word"),
        ("boot", "ended without a word"),
        ("info", "ended without a word"),
        ("create", "ended without a word"),
        ("refuse-boot", "KVM is on holiday"),
        ("panic", "VFS: Unable to mount root fs"),
        ("silent", "did not come up within 1 s"),
    ] {
        let pod = Pod::with("web", &["true"], fault, "HULL_BOOT_TIMEOUT_SECS=1");
        let client = pod.connect().await;
        let error = soon(client.create(&pod.request)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{fault}: {error}");
        assert!(soon(client.state(INIT)).await.unwrap_err().is_not_found());
        soon(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_missing_artifact_is_named() {
    let pod = Pod::with("web", &["true"], "", "HULL_KERNEL=/no/such/vmlinux");
    let client = pod.connect().await;
    let error = soon(client.create(&pod.request)).await.unwrap_err().to_string();
    assert_eq!(error, "HULL_KERNEL names /no/such/vmlinux, which is no file");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn the_guests_refusal_is_passed_on() {
    let mut pod = Pod::new("web", &["true"]);
    pod.config["hostname"] = "refused-by-the-guest".into();
    let client = pod.connect().await;
    let error = soon(client.create(&pod.request)).await.unwrap_err().to_string();
    assert_eq!(error, "the guest does not like this");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_dead_vm_is_exit_137_for_every_process() {
    let pod = Pod::new("web", &["sleep", "1000"]);
    let client = pod.connect().await;
    let pid = soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    let exec = Process::exec("web", "e");
    soon(client.exec(&pod.exec_request("e", &["sleep", "1000"]))).await.unwrap();
    soon(client.start(exec)).await.unwrap();
    let waiting = (client.clone(), client.clone());
    let waits = async { tokio::join!(waiting.0.wait(INIT), waiting.1.wait(exec)) };
    kill_9(pid);
    let (init_exit, exec_exit) = soon(waits).await;
    assert_eq!((init_exit.unwrap().exit_status, exec_exit.unwrap().exit_status), (137, 137));
    let record = ExitRecord::read(pod.bundle()).unwrap().unwrap();
    assert_eq!(record.exit_code, 137);
    assert!(record.reason.contains("signal: 9"), "{}", record.reason);
    assert!(soon(client.kill(INIT, 9, Reach::Container)).await.unwrap_err().is_not_found());
    assert_eq!(soon(client.state(exec)).await.unwrap().exit_status, 137);
    assert_eq!(soon(client.delete(exec)).await.unwrap().exit_status, 137);
    assert_eq!(soon(client.delete(INIT)).await.unwrap().exit_status, 137);
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_vm_that_dies_at_start_is_an_error_and_an_exit() {
    for fault in ["start", "exec"] {
        let pod = Pod::with("web", &["sleep", "1000"], fault, "");
        let client = pod.connect().await;
        soon(client.create(&pod.request)).await.unwrap();
        let error = if fault == "start" {
            soon(client.start(INIT)).await.unwrap_err()
        } else {
            soon(client.start(INIT)).await.unwrap();
            soon(client.exec(&pod.exec_request("e", &["true"]))).await.unwrap();
            soon(client.start(Process::exec("web", "e"))).await.unwrap_err()
        };
        assert!(error.to_string().contains("the VM ended"), "{error}");
        assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 137);
        soon(client.delete(INIT)).await.unwrap();
        soon(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_undo_its_create() {
    let mut pod = Pod::new("web", &["true"]);
    pod.config["hostname"] = "slow".into();
    let client = pod.connect().await;
    let address = fs::read_to_string(pod.bundle().join("address")).unwrap();
    let create = client.create(&pod.request);
    // The request is on its way, and then the connection is gone.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(150), create).await.is_err());
    drop(client);
    let again = TaskClient::connect(&address).await.unwrap();
    soon(async {
        while again.state(INIT).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    soon(again.delete(INIT)).await.unwrap();
    soon(again.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_create_that_nobody_wants_is_given_up() {
    let pod = Pod::with("web", &["true"], "silent", "");
    let client = pod.connect().await;
    let other = client.clone();
    let (created, shut_down) = soon(async {
        tokio::join!(client.create(&pod.request), async {
            eventually_async(|| !pod.processes().iter().all(|(_, line)| !line.contains("fake-vmm"))).await;
            other.shutdown_now("web").await
        })
    })
    .await;
    assert!(created.is_err());
    shut_down.unwrap();
    pod.assert_nothing_left();
}

async fn eventually_async(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_killed_shim_is_cleaned_up_from_disk_alone() {
    let pod = Pod::new("web", &["sleep", "1000"]);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    kill_9(client.connect_task("web").await.unwrap().shim_pid);
    for _ in 0..2 {
        assert_eq!(pod.shim.delete().unwrap().exit_status, 137);
        pod.assert_nothing_left();
    }
    assert_eq!(ExitRecord::read(pod.bundle()).unwrap().unwrap().exit_code, 137);
    fs::remove_dir_all(pod.bundle()).unwrap();
    assert_eq!(pod.shim.delete().unwrap().exit_status, 137, "without a bundle, too");
}

#[tokio::test]
async fn delete_ends_what_still_runs() {
    let pod = Pod::new("web", &["sleep", "1000"]);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    assert_eq!(pod.shim.delete().unwrap().exit_status, 137);
    pod.assert_nothing_left();
}

#[tokio::test]
async fn starts_at_the_same_time_find_one_shim() {
    let pod = Pod::new("web", &["true"]);
    let client = pod.connect().await;
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let shim = pod.shim.clone();
            std::thread::spawn(move || shim.start().unwrap())
        })
        .collect();
    let addresses: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    eventually(|| pod.processes().len() == 1, || format!("{:?}", pod.processes()));
    let client = TaskClient::connect(&addresses[0]).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

/// What a guest tells unasked is heard at a bounded rate, is about containers that run, and holds nothing up.
#[tokio::test]
async fn a_guest_that_tells_without_end_is_heard_now_and_then() {
    let pod = Pod::with("web", &["sleep", "1000"], "flood", "");
    let containerd = pod.containerd();
    let client = pod.connect().await;
    let began = std::time::Instant::now();
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(soon(client.state(INIT)).await.unwrap().status.unwrap(), Status::RUNNING);
    soon(client.kill(INIT, 9, Reach::Process)).await.unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 137);
    let log = pod.log();
    let most = usize::try_from(began.elapsed().as_millis()).unwrap() / 2000 + 1;
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    // The shim ends when all is told.
    pod.assert_nothing_left();
    let told = containerd.told();
    let topics: Vec<&str> = told.iter().map(|event| event.topic.as_str()).collect();
    let kills = topics.iter().filter(|topic| **topic == "oom").count();
    assert!((1..=most).contains(&kills), "{kills} of {most}: {topics:?}");
    assert_eq!(topics[topics.len() - 2..], ["exit", "delete"], "{topics:?}");
    assert!(told.iter().all(|event| event.container == "web"), "{told:?}");
    assert_eq!(log.matches("the guest is short of memory").count(), 1, "{log}");
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.envelope.namespace, "test");
        assert!(request.envelope.event.type_url.starts_with("containerd.events.Task"));
        self.0.lock().unwrap().push(request.envelope.topic.clone());
        Ok(Empty::new())
    }
}

#[tokio::test]
async fn events_come_in_order_and_survive_a_restart_of_their_reader() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("events");
    let pod =
        Pod::with("oom", &["sh", "-c", "kill -9 $$"], "", &format!("TTRPC_ADDRESS={}", socket.display()));
    let client = pod.connect().await;
    let init = Process::init("oom");
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.exec(&pod.exec_request("e", &["true"]))).await.unwrap();
    // Nobody listens so far.
    let recorder = Recorder::default();
    let mut server = Server::new()
        .bind(&format!("unix://{}", socket.display()))
        .unwrap()
        .register_service(create_events(Arc::new(recorder.clone())));
    server.start().await.unwrap();
    soon(client.start(init)).await.unwrap();
    soon(client.wait(init)).await.unwrap();
    soon(client.delete(init)).await.unwrap();
    soon(client.shutdown("oom")).await.unwrap();
    // Not on this thread: it serves the events that are still to come.
    tokio::task::spawn_blocking(move || pod.assert_nothing_left()).await.unwrap();
    let expected =
        ["create", "exec-added", "start", "oom", "exit", "delete"].map(|name| format!("/tasks/{name}"));
    assert_eq!(*recorder.0.lock().unwrap(), expected);
    server.shutdown().await.unwrap();
}
