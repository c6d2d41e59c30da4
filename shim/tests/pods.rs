//! Several containers in one pod: one shim and one VM, as long as the sandbox exists.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::Command;

use containerd_shim_protos::api::Status;
use hull_shim::client::{Code, Process, Reach, TaskClient};
use hull_shim::record::{ExitRecord, Record, ShimRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{PATIENCE, Pod, soon};

const SANDBOX: Process<'static> = Process { container: "pod", exec: "" };

async fn running(pod: &Pod) -> (TaskClient, u32) {
    let client = pod.connect().await;
    let pid = soon(client.create(&pod.request)).await.unwrap();
    assert_eq!(soon(client.start(SANDBOX)).await.unwrap(), pid);
    (client, pid)
}

async fn end(pod: &Pod, client: &TaskClient, members: &[&str]) {
    client.kill(SANDBOX, 9, Reach::Process).await.unwrap();
    assert_eq!(soon(client.wait(SANDBOX)).await.unwrap().exit_status, 137);
    for id in members {
        assert_eq!(soon(client.delete(Process::init(id))).await.unwrap().exit_status, 137, "{id}");
    }
    soon(client.delete(SANDBOX)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_sandbox_answers_without_a_process_of_its_own() {
    let pod = Pod::sandbox("pod");
    let (client, pid) = running(&pod).await;
    assert!(fs::exists(format!("/proc/{pid}/ns/net")).unwrap(), "the pid is of this host");
    assert_eq!(client.state(SANDBOX).await.unwrap().status.unwrap(), Status::RUNNING);
    assert_eq!(client.pids("pod").await.unwrap()[0].pid, pid);
    assert!(client.stats("pod").await.unwrap().memory.usage > 0);
    let error = client.exec(&pod.exec_request("e", &["true"])).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::UNIMPLEMENTED));
    assert_eq!(client.delete(SANDBOX).await.unwrap_err().code(), Some(Code::UNKNOWN));
    client.kill(SANDBOX, 28, Reach::Process).await.unwrap();
    assert_eq!(client.state(SANDBOX).await.unwrap().status.unwrap(), Status::RUNNING);
    client.kill(SANDBOX, 15, Reach::Process).await.unwrap();
    assert_eq!(soon(client.wait(SANDBOX)).await.unwrap().exit_status, 0);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "the VM ends with its sandbox");
    assert!(client.kill(SANDBOX, 9, Reach::Process).await.unwrap_err().is_not_found());
    assert_eq!(soon(client.delete(SANDBOX)).await.unwrap().exit_status, 0);
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn containers_come_and_go_in_one_vm() {
    let pod = Pod::sandbox("pod");
    let (client, vm) = running(&pod).await;
    for round in 0..3 {
        // The same id again, and the only container of the pod.
        let request = pod.member("web", &["sh", "-c", "exit 4"]);
        let pid = soon(client.create(&request)).await.unwrap();
        assert!(pid != vm && pid != 0, "round {round}");
        let web = Process::init("web");
        assert_eq!(client.state(web).await.unwrap().status.unwrap(), Status::CREATED);
        assert_eq!(client.create(&request).await.unwrap_err().code(), Some(Code::ALREADY_EXISTS));
        assert_eq!(soon(client.start(web)).await.unwrap(), pid);
        assert_eq!(soon(client.wait(web)).await.unwrap().exit_status, 4);
        assert_eq!(soon(client.delete(web)).await.unwrap().exit_status, 4);
        assert!(client.state(web).await.unwrap_err().is_not_found());
        soon(client.shutdown("web")).await.unwrap();
        assert_eq!(client.state(SANDBOX).await.unwrap().status.unwrap(), Status::RUNNING);
    }
    let record = ShimRecord::read(&pod.file("web")).unwrap().unwrap();
    assert_eq!((record.sandbox.as_deref(), record.vmm_pid), (Some("pod"), Some(vm)));
    // One that was never started, and one that is refused, leave the others alone.
    let created = pod.member("created", &["sleep", "1000"]);
    soon(client.create(&created)).await.unwrap();
    assert_eq!(soon(client.delete(Process::init("created"))).await.unwrap().exit_status, 137);
    let mut refused = pod.member("refused", &["true"]);
    refused.stdout = pod.file("no-such-fifo").display().to_string();
    soon(client.create(&refused)).await.unwrap_err();
    refused.stdout.clear();
    soon(client.create(&refused)).await.expect("nothing is left of the first try");
    end(&pod, &client, &["refused"]).await;
}

#[tokio::test]
async fn delete_of_one_container_does_not_touch_the_others() {
    let pod = Pod::sandbox("pod");
    let (client, vm) = running(&pod).await;
    for id in ["one", "two"] {
        soon(client.create(&pod.member(id, &["sleep", "1000"]))).await.unwrap();
        soon(client.start(Process::init(id))).await.unwrap();
    }
    let bundle = pod.file("one").display().to_string();
    let args = ["-namespace", "test", "-id", "one", "-address", "none", "-bundle", &bundle, "delete"];
    let output = Command::new(&pod.shim.binary).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(client.state(Process::init("two")).await.unwrap().status.unwrap(), Status::RUNNING);
    assert!(fs::exists(format!("/proc/{vm}")).unwrap());
    end(&pod, &client, &["one", "two"]).await;
    for id in ["one", "two"] {
        assert_eq!(
            ExitRecord::read(&pod.file(id)).unwrap().unwrap().exit_code,
            137,
            "{id} ended with the VM"
        );
    }
}

#[tokio::test]
async fn the_death_of_the_vm_is_the_end_of_every_container() {
    let pod = Pod::sandbox("pod");
    let (client, vm) = running(&pod).await;
    for id in ["one", "two"] {
        soon(client.create(&pod.member(id, &["sleep", "1000"]))).await.unwrap();
        soon(client.start(Process::init(id))).await.unwrap();
    }
    kill(Pid::from_raw(i32::try_from(vm).unwrap()), Signal::SIGKILL).unwrap();
    for id in ["one", "two", "pod"] {
        assert_eq!(soon(client.wait(Process::init(id))).await.unwrap().exit_status, 137, "{id}");
    }
    let error = client.create(&pod.member("late", &["true"])).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION));
    for id in ["two", "pod", "one"] {
        assert_eq!(soon(client.delete(Process::init(id))).await.unwrap().exit_status, 137, "{id}");
    }
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_does_not_answer_sigkill_loses_its_vm() {
    let pod = Pod::sandbox("pod");
    let (client, vm) = running(&pod).await;
    let web = Process::init("web");
    soon(client.create(&pod.member("web", &["sleep", "1000"]))).await.unwrap();
    soon(client.start(web)).await.unwrap();
    // Agent and monitor are one process here.
    kill(Pid::from_raw(i32::try_from(vm).unwrap()), Signal::SIGSTOP).unwrap();
    let ended = async { tokio::join!(client.kill(web, 9, Reach::Process), client.wait(web)) };
    let (_, exit) = tokio::time::timeout(2 * PATIENCE, ended).await.unwrap();
    assert_eq!(exit.unwrap().exit_status, 137);
    assert_eq!(soon(client.wait(SANDBOX)).await.unwrap().exit_status, 137);
    for id in ["web", "pod"] {
        soon(client.delete(Process::init(id))).await.unwrap();
    }
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_container_without_its_sandbox_is_refused() {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    let request = pod.member("web", &["true"]);
    let error = client.create(&request).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION), "{error}");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[test]
fn starts_at_the_same_time_find_one_shim() {
    let pod = Pod::sandbox("pod");
    fs::write(pod.bundle().join("config.json"), pod.config.to_string()).unwrap();
    let address = pod.shim.start().unwrap();
    // Even if the pod's shim is gone, there is one new one.
    let client = |address: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { TaskClient::connect(address).await.unwrap().shutdown("pod").await.unwrap() });
    };
    client(&address);
    pod.assert_nothing_left();
    for id in ["one", "two", "three", "four"] {
        fs::create_dir(pod.file(id)).unwrap();
        let mut config = pod.config.clone();
        config["annotations"]["io.kubernetes.cri.container-type"] = "container".into();
        fs::write(pod.file(id).join("config.json"), config.to_string()).unwrap();
    }
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = ["one", "two", "three", "four"]
            .map(|id| {
                let shim =
                    hull_shim::client::Shim { id: id.into(), bundle: pod.file(id), ..pod.shim.clone() };
                scope.spawn(move || shim.start().unwrap())
            })
            .into();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(addresses.iter().all(|other| *other == address), "{addresses:?}");
    let shims = pod.processes().iter().filter(|(_, line)| line.contains("serve")).count();
    assert_eq!(shims, 1, "{:?}", pod.processes());
    client(&address);
    pod.assert_nothing_left();
}
