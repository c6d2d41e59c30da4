//! The task service's contract: every request in every state, with its status code, against a fake monitor.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::TaskClient as TaskClientV3;
use hull_shim::client::{ClientError, Code, Process, Reach, TaskClient};
use hull_shim::record::{ExitRecord, Record, ShimRecord};
use support::{Pod, eventually, reader, soon};
use ttrpc::asynchronous::Client;
use ttrpc::context::Context;

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Code {
    match result {
        Ok(value) => panic!("it succeeded: {value:?}"),
        Err(error) => error.code().unwrap_or_else(|| panic!("{error}")),
    }
}

async fn end(pod: &Pod, client: &TaskClient) {
    soon(client.shutdown(&pod.id)).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_container_from_create_to_delete() {
    let mut pod = Pod::new("web", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    pod.request.stdout = pod.fifo("out");
    pod.request.stderr = pod.fifo("err");
    let (out, err) = (reader(&pod.request.stdout), reader(&pod.request.stderr));
    let client = pod.connect().await;
    let init = Process::init("web");

    let pid = soon(client.create(&pod.request)).await.unwrap();
    assert!(fs::exists(format!("/proc/{pid}")).unwrap(), "the pid is of this host");
    let state = soon(client.state(init)).await.unwrap();
    assert_eq!(state.status.unwrap(), api::Status::CREATED);
    assert_eq!((state.pid, state.stdout), (pid, pod.request.stdout.clone()));
    assert_eq!(soon(client.pids("web")).await.unwrap()[0].pid, pid, "a created container has a process");

    assert_eq!(soon(client.start(init)).await.unwrap(), pid);
    let exit = soon(client.wait(init)).await.unwrap();
    assert_eq!(exit.exit_status, 7);
    assert_eq!((out.finish(), err.finish()), (b"out\n".to_vec(), b"err\n".to_vec()));
    let record = ExitRecord::read(pod.bundle()).unwrap().unwrap();
    assert_eq!((record.exit_code, record.oom_killed, record.reason), (7, false, String::new()));
    let shim = ShimRecord::read(pod.bundle()).unwrap().unwrap();
    assert_eq!((shim.container_pid, shim.vmm_pid), (Some(pid), Some(pid)));
    assert!(shim.started_at.is_some());

    assert_eq!(soon(client.state(init)).await.unwrap().status.unwrap(), api::Status::STOPPED);
    assert_eq!(soon(client.wait(init)).await.unwrap().exit_status, 7, "a later waiter gets the same");
    assert_eq!(soon(client.delete(init)).await.unwrap().exit_status, 7);
    assert_eq!(code(soon(client.delete(init)).await), Code::NOT_FOUND);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "the VM is gone with its container");
    end(&pod, &client).await;
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let pod = Pod::new("web", &["true"]);
    let client = pod.connect().await;
    let nobody = Process::init("nobody");
    assert_eq!(code(client.state(nobody).await), Code::NOT_FOUND);
    assert_eq!(code(client.start(nobody).await), Code::NOT_FOUND);
    assert_eq!(code(client.wait(nobody).await), Code::NOT_FOUND);
    assert_eq!(code(client.kill(nobody, 9, Reach::Process).await), Code::NOT_FOUND);
    assert_eq!(code(client.delete(nobody).await), Code::NOT_FOUND);
    assert_eq!(code(client.pids("nobody").await), Code::NOT_FOUND);
    assert_eq!(code(client.pause("nobody").await), Code::NOT_FOUND);
    assert_eq!(code(client.resume("nobody").await), Code::NOT_FOUND);
    assert_eq!(code(client.close_io(nobody).await), Code::NOT_FOUND);
    assert_eq!(code(client.resize(nobody, 80, 25).await), Code::NOT_FOUND);
    assert_eq!(code(client.update("nobody", b"{}".to_vec()).await), Code::NOT_FOUND);
    assert_eq!(code(client.stats("nobody").await), Code::NOT_FOUND);
    let connected = client.connect_task("nobody").await.unwrap();
    assert_eq!(connected.task_pid, 0);
    assert!(fs::exists(format!("/proc/{}", connected.shim_pid)).unwrap());
    end(&pod, &client).await;
}

#[tokio::test]
async fn every_state_answers_as_the_contract_says() {
    let pod = Pod::new("web", &["sleep", "1000"]);
    let client = pod.connect().await;
    let init = Process::init("web");
    let exec = Process::exec("web", "e");
    soon(client.create(&pod.request)).await.unwrap();

    // Created.
    assert_eq!(code(client.create(&pod.request).await), Code::ALREADY_EXISTS);
    assert_eq!(code(client.pause("web").await), Code::UNKNOWN);
    client.resize(init, 80, 25).await.unwrap();
    client.exec(&pod.exec_request("e", &["sleep", "1000"])).await.unwrap();
    assert_eq!(code(client.exec(&pod.exec_request("e", &["true"])).await), Code::ALREADY_EXISTS);
    assert_eq!(code(client.exec(&pod.exec_request("../e", &["true"])).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(client.start(exec).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(client.kill(exec, 9, Reach::Process).await), Code::FAILED_PRECONDITION);

    // Running.
    let pid = soon(client.start(init)).await.unwrap();
    assert_eq!(code(client.start(init).await), Code::UNKNOWN);
    assert_eq!(code(client.delete(init).await), Code::UNKNOWN);
    let exec_pid = soon(client.start(exec)).await.unwrap();
    assert!(exec_pid != 0 && exec_pid != pid);
    assert_eq!(client.pids("web").await.unwrap().len(), 2);
    assert_eq!(code(client.delete(exec).await), Code::UNKNOWN);
    assert_eq!(code(client.start(Process::exec("web", "x")).await), Code::NOT_FOUND);
    assert_eq!(code(client.state(Process::exec("web", "x")).await), Code::NOT_FOUND);
    assert_eq!(client.stats("web").await.unwrap().memory.usage, 4096);
    assert_eq!(code(client.kill(init, 65, Reach::Process).await), Code::INVALID_ARGUMENT);
    client.kill(init, 0, Reach::Process).await.unwrap();
    client.shutdown("web").await.unwrap();
    client.state(init).await.expect("a shutdown with a container left does nothing");

    // Paused.
    client.pause("web").await.unwrap();
    assert_eq!(code(client.pause("web").await), Code::UNKNOWN);
    assert_eq!(client.state(exec).await.unwrap().status.unwrap(), api::Status::PAUSED);
    assert_eq!(code(client.exec(&pod.exec_request("p", &["true"])).await), Code::UNKNOWN);
    client.resume("web").await.unwrap();
    assert_eq!(code(client.resume("web").await), Code::UNKNOWN);

    // Stopped.
    client.kill(exec, 9, Reach::Process).await.unwrap();
    assert_eq!(soon(client.wait(exec)).await.unwrap().exit_status, 137);
    assert_eq!(code(client.kill(exec, 9, Reach::Process).await), Code::NOT_FOUND);
    assert_eq!(client.delete(exec).await.unwrap().exit_status, 137);
    client.exec(&pod.exec_request("late", &["true"])).await.unwrap();
    client.kill(init, 15, Reach::Container).await.unwrap();
    assert_eq!(soon(client.wait(init)).await.unwrap().exit_status, 143);
    assert_eq!(code(client.kill(init, 9, Reach::Process).await), Code::NOT_FOUND);
    assert_eq!(code(client.start(init).await), Code::UNKNOWN);
    assert_eq!(code(client.start(Process::exec("web", "late")).await), Code::FAILED_PRECONDITION);
    soon(client.wait(Process::exec("web", "late"))).await.expect("nobody waits for ever");
    assert_eq!(code(client.exec(&pod.exec_request("n", &["true"])).await), Code::UNKNOWN);
    assert_eq!(code(client.stats("web").await), Code::NOT_FOUND);
    assert_eq!(code(client.update("web", b"{}".to_vec()).await), Code::UNKNOWN);
    client.close_io(init).await.unwrap();
    assert_eq!(soon(client.delete(init)).await.unwrap().pid, pid);
    end(&pod, &client).await;
}

#[tokio::test]
async fn both_versions_of_the_service_answer() {
    let pod = Pod::new("web", &["true"]);
    let client = pod.connect().await;
    let address = fs::read_to_string(pod.bundle().join("address")).unwrap();
    let v3 = TaskClientV3::new(Client::connect(&address).await.unwrap());
    let request = api::ConnectRequest { id: "web".into(), ..Default::default() };
    let connected = v3.connect(Context::default(), &request).await.unwrap();
    assert_eq!(connected.shim_pid, client.connect_task("web").await.unwrap().shim_pid);
    match v3.checkpoint(Context::default(), &api::CheckpointTaskRequest::new()).await {
        Err(ttrpc::Error::RpcStatus(status)) => assert_eq!(status.code(), Code::UNIMPLEMENTED),
        other => panic!("{other:?}"),
    }
    end(&pod, &client).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_in_runcs_words() {
    let pod = Pod::new("web", &["no-such-program"]);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    let error = soon(client.start(Process::init("web"))).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::UNKNOWN));
    assert_eq!(error.to_string(), "exec: \"no-such-program\": executable file not found in $PATH");
    soon(client.delete(Process::init("web"))).await.unwrap();
    end(&pod, &client).await;
}

#[tokio::test]
async fn bad_requests_leave_nothing() {
    let mut pod = Pod::new("web", &["true"]);
    pod.config["mounts"] = serde_json::json!([{"destination": "/d", "source": "srv", "options": ["bind"]}]);
    let client = pod.connect().await;
    assert_eq!(code(soon(client.create(&pod.request)).await), Code::UNIMPLEMENTED);
    let mut xfs = pod.request.clone();
    xfs.rootfs[0].type_ = "xfs".into();
    pod.config["mounts"] = serde_json::json!([]);
    fs::write(pod.bundle().join("config.json"), pod.config.to_string()).unwrap();
    assert_eq!(code(soon(client.create(&xfs)).await), Code::UNIMPLEMENTED);
    let mut logger = pod.request.clone();
    logger.stdout = "npipe:///bin/logger".into();
    assert_eq!(code(soon(client.create(&logger)).await), Code::UNIMPLEMENTED);
    let mut missing = pod.request.clone();
    missing.stdout = pod.file("no-such-fifo").display().to_string();
    let error = soon(client.create(&missing)).await.unwrap_err();
    assert!(error.to_string().contains("no-such-fifo"), "{error}");
    fs::write(pod.bundle().join("config.json"), "{").unwrap();
    assert_eq!(code(soon(client.create(&pod.request)).await), Code::INVALID_ARGUMENT);
    fs::write(pod.bundle().join("config.json"), pod.config.to_string()).unwrap();
    soon(client.create(&pod.request)).await.expect("after every failure the pod is as new");
    soon(client.delete(Process::init("web"))).await.unwrap();
    end(&pod, &client).await;
}

#[tokio::test]
async fn an_oom_kill_is_recorded() {
    let pod = Pod::new("oom", &["sh", "-c", "kill -9 $$"]);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(Process::init("oom"))).await.unwrap();
    assert_eq!(soon(client.wait(Process::init("oom"))).await.unwrap().exit_status, 137);
    assert!(ExitRecord::read(pod.bundle()).unwrap().unwrap().oom_killed);
    soon(client.delete(Process::init("oom"))).await.unwrap();
    end(&pod, &client).await;
}

#[tokio::test]
async fn a_kept_pod_ends_by_itself() {
    let mut pod = Pod::new("web", &["sh", "-c", "echo log; exit 3"]);
    pod.annotate("dev.hull.lifecycle", "keep");
    pod.request.stdout = format!("file://{}/deep/stdout.log", pod.bundle().display());
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    // Asked before the start: once the exit is on disk the shim answers who waits, and goes.
    let (waited, started) =
        tokio::join!(client.wait(Process::init("web")), client.start(Process::init("web")));
    started.unwrap();
    assert_eq!(waited.unwrap().exit_status, 3);
    pod.assert_nothing_left();
    assert_eq!(fs::read(pod.bundle().join("deep/stdout.log")).unwrap(), b"log\n");
    assert_eq!(ExitRecord::read(pod.bundle()).unwrap().unwrap().exit_code, 3);
}

#[tokio::test]
async fn a_removed_pod_takes_its_bundle_along() {
    let mut pod = Pod::new("web", &["true"]);
    pod.annotate("dev.hull.lifecycle", "remove");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(Process::init("web"))).await.unwrap();
    eventually(|| !pod.bundle().exists(), || "the bundle is still there".into());
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_writable_disk_is_shut_down_in_good_order() {
    let mut pod = Pod::new("web", &["true"]);
    let mut upper = pod.request.rootfs[0].clone();
    upper.type_ = "ext4".into();
    upper.options = vec!["rw".into()];
    upper.source = pod.file("upper").display().to_string();
    fs::write(&upper.source, vec![0; 8192]).unwrap();
    pod.request.rootfs.push(upper);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(Process::init("web"))).await.unwrap();
    soon(client.wait(Process::init("web"))).await.unwrap();
    soon(client.delete(Process::init("web"))).await.unwrap();
    assert!(pod.log().contains("the guest shut down"), "{}", pod.log());
    end(&pod, &client).await;
}
