//! The processes of a VM are in the cgroup that the engine names, and it goes with them. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Code, Process, Reach};
use hull_shim::record::{ExitRecord, Record, ShimRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Pod, soon};

const SANDBOX: Process<'static> = Process { container: "pod", exec: "" };

/// The monitor and the file broker of a pod.
fn processes(pod: &Pod) -> Vec<u32> {
    let processes = pod.processes();
    let of_vm = processes.iter().filter(|(_, line)| line.contains("fake-vmm"));
    let of_vm: Vec<u32> = of_vm.map(|(pid, _)| *pid).collect();
    assert_eq!(of_vm.len(), 2, "{processes:?}");
    of_vm
}

fn assert_counted(pod: &Pod) {
    let cgroups = pod.cgroups();
    assert!(!cgroups.is_empty(), "no hierarchy lets a cgroup be made: {}", pod.log());
    let mut expected = processes(pod);
    expected.sort_unstable();
    for cgroup in cgroups {
        let there = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        let mut there: Vec<u32> = there.lines().map(|line| line.parse().unwrap()).collect();
        there.sort_unstable();
        assert_eq!(there, expected, "{}", cgroup.display());
    }
}

#[tokio::test]
async fn monitor_and_broker_are_in_the_pods_cgroup() {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    assert_counted(&pod);
    soon(client.start(SANDBOX)).await.unwrap();
    // A member's own path makes none.
    let before = pod.cgroups();
    let member = pod.member("web", &["sleep", "1000"]);
    soon(client.create(&member)).await.unwrap();
    assert_eq!(pod.cgroups(), before);
    let record = ShimRecord::read(std::path::Path::new(&member.bundle)).unwrap().unwrap();
    assert_eq!(record.cgroup, None);
    soon(client.kill(SANDBOX, 9, Reach::Process)).await.unwrap();
    soon(client.wait(SANDBOX)).await.unwrap();
    soon(client.delete(Process::init("web"))).await.unwrap();
    soon(client.delete(SANDBOX)).await.unwrap();
    assert!(pod.cgroups().is_empty(), "it goes with the VM");
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn the_cgroup_of_a_killed_shim_goes_with_its_delete() {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    let record = ShimRecord::read(pod.bundle()).unwrap().unwrap();
    kill(Pid::from_raw(record.shim_pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    for _ in 0..2 {
        assert_eq!(pod.shim.delete().unwrap().exit_status, 137);
        assert!(pod.cgroups().is_empty());
    }
    pod.assert_nothing_left();
}

/// Bounds what the pod's VM may take of the host.
fn bound(pod: &Pod, bytes: u64) {
    let bounds = ["memory.swap.max", "memory.max", "memory.limit_in_bytes"];
    let files = pod.cgroups().into_iter().flat_map(|cgroup| bounds.map(|name| cgroup.join(name)));
    let files: Vec<_> = files.filter(|file| file.exists()).collect();
    assert!(!files.is_empty(), "no hierarchy bounds memory");
    for file in files {
        let bytes = if file.ends_with("memory.swap.max") { 0 } else { bytes };
        fs::write(file, bytes.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_vm_that_the_host_has_no_memory_for_is_told_apart() {
    for (limited, reason) in
        [(true, "the VM ended: the host's OOM killer ended it"), (false, "without a word")]
    {
        let pod = Pod::with("web", &["sleep", "1000"], "greedy", "");
        let containerd = pod.containerd();
        let client = pod.connect().await;
        let web = Process::init("web");
        soon(client.create(&pod.request)).await.unwrap();
        soon(client.start(web)).await.unwrap();
        if limited {
            bound(&pod, 64 << 20);
        }
        let error = soon(client.stats("web")).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::NOT_FOUND), "{error}");
        assert_eq!(soon(client.wait(web)).await.unwrap().exit_status, 137);
        let exit = ExitRecord::read(pod.bundle()).unwrap().unwrap();
        assert!(exit.reason.contains(reason) && exit.oom_killed == limited, "{exit:?}");
        assert!(pod.log().contains(reason), "{}", pod.log());
        soon(client.delete(web)).await.unwrap();
        soon(client.shutdown("web")).await.unwrap();
        // The shim ends when all is told.
        pod.assert_nothing_left();
        let topics: Vec<String> = containerd.told().into_iter().map(|event| event.topic).collect();
        let expected: &[&str] = if limited {
            &["create", "start", "oom", "exit", "delete"]
        } else {
            &["create", "start", "exit", "delete"]
        };
        assert_eq!(topics, expected);
    }
}

#[tokio::test]
async fn a_path_that_names_no_cgroup_is_one_clear_error() {
    for (path, words) in [
        (
            "/../escaped",
            "linux.cgroupsPath \"/../escaped\" names no cgroup: it must not have the part \"..\"",
        ),
        ("/", "linux.cgroupsPath \"/\" names no cgroup: it is the root of all cgroups"),
        ("a--b.slice:x:y", "its slice is none of systemd's"),
    ] {
        let mut pod = Pod::sandbox("pod");
        pod.config["linux"]["cgroupsPath"] = path.into();
        let client = pod.connect().await;
        let error = soon(client.create(&pod.request)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::INVALID_ARGUMENT), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        soon(client.shutdown("pod")).await.unwrap();
        pod.assert_nothing_left();
    }
}

#[tokio::test]
async fn what_cannot_be_made_is_logged_and_done_without() {
    let mut pod = Pod::sandbox("pod");
    // A file of the kernel's in every cgroup.
    pod.config["linux"]["cgroupsPath"] = "/cgroup.procs/web".into();
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    assert!(pod.log().contains("the pod's cgroup cannot be made"), "{}", pod.log());
    soon(client.delete(SANDBOX)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}
