//! The pod's network, from the spec to the monitor's and the agent's ears; with real namespaces and taps. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use hull_shim::client::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::namespace::{Named, run};
use support::{Pod, eventually, soon};

const INIT: Process<'static> = Process { container: "web", exec: "" };

fn pod_in(path: &str, fault: &str) -> Pod {
    let mut pod = Pod::with("web", &["sleep", "1000"], fault, "");
    pod.config["linux"]["namespaces"] = json!([{"type": "network", "path": path}]);
    pod
}

/// What the monitor and the agent were told, until it ends with this line.
fn told(pod: &Pod, last: &str) -> Vec<String> {
    let read = || fs::read_to_string(pod.file("network")).unwrap_or_default();
    eventually(|| read().lines().last() == Some(last), || format!("not {last:?}: {}\n{}", read(), pod.log()));
    read().lines().map(str::to_owned).collect()
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_namespace_that_is_set_up() {
    let named = Named::new("set-up");
    let before = named.links();
    let pod = pod_in(&named.path(), "");
    let client = pod.connect().await;
    let pid = soon(client.create(&pod.request)).await.unwrap();
    assert_eq!(told(&pod, "configured eth0 [10, 6, 0, 2]/24; 1 routes")[0], "device net0 mtu 1450");
    let links = named.links();
    assert!(links.contains(r#"["lo", "eth0@"#) && links.contains(r#""hull0"] ["eth0@"#), "{links}");
    let seen = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(seen.ino(), fs::metadata(named.path()).unwrap().ino(), "the task's pid stands for the pod");
    soon(client.start(INIT)).await.unwrap();

    // What changes later reaches the guest too.
    named.ip("addr add 10.6.0.3/24 dev eth0");
    named.ip("route add 10.7.0.0/16 via 10.6.0.1");
    told(&pod, "configured eth0 [10, 6, 0, 2]/24,[10, 6, 0, 3]/24; 2 routes");

    soon(client.kill(INIT, 9, hull_shim::client::Reach::Process)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    soon(client.delete(INIT)).await.unwrap();
    assert_eq!(named.links(), before);
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_network_that_comes_between_create_and_start() {
    let pod = Pod::with("web", &["sleep", "1000"], "", "");
    let client = pod.connect().await;
    let pid = soon(client.create(&pod.request)).await.unwrap();
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_ne!(fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino(), own);
    // As docker and `ctr --cni` do it, by the task's pid.
    let far = format!("hs{pid}");
    run("ip", &format!("link add {far} type veth peer name eth0 netns {pid}"));
    for words in ["ip addr add 10.8.0.2/24 dev eth0", "ip link set eth0 up"] {
        run("nsenter", &format!("-t {pid} -n {words}"));
    }
    run("ip", &format!("link set {far} up"));
    soon(client.start(INIT)).await.unwrap();
    let lines = told(&pod, "configured eth0 [10, 8, 0, 2]/24; 1 routes");
    // The watcher may have seen the link before its address was there.
    assert_eq!(lines[..2], ["plugged net0 mtu 1500", "bound 9"]);
    soon(client.kill(INIT, 9, hull_shim::client::Reach::Process)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
    // The namespace had no other holder, and takes the pair with it.
    let gone = || !fs::exists(format!("/sys/class/net/{far}")).unwrap();
    eventually(gone, || format!("{far} is left"));
}

#[tokio::test]
async fn every_failure_leaves_the_namespace_as_it_was() {
    let named = Named::new("faults");
    let before = named.links();
    for fault in ["jail", "network", "boot", "info", "create"] {
        let pod = pod_in(&named.path(), fault);
        let client = pod.connect().await;
        soon(client.create(&pod.request)).await.unwrap_err();
        assert_eq!(named.links(), before, "{fault}");
        soon(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_killed_shim_is_cleaned_up_after() {
    let named = Named::new("killed");
    let before = named.links();
    let pod = pod_in(&named.path(), "");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(pod.bundle().join("shim.json")).unwrap()).unwrap();
    kill_9(u32::try_from(record["shim_pid"].as_u64().unwrap()).unwrap());
    pod.shim.delete().unwrap();
    assert_eq!(named.links(), before);
    // Twice is as good.
    pod.shim.delete().unwrap();
    pod.assert_nothing_left();
}

/// Killed while the VM is prepared: the redirections are there, and nobody has been told of a pod.
#[tokio::test]
async fn a_shim_killed_in_the_first_steps_of_a_create_is_cleaned_up_after() {
    let named = Named::new("early");
    let before = named.links();
    for step in 0..=8 {
        let pod = pod_in(&named.path(), &format!("shim@{step}"));
        if step == 0 {
            // By the monitor's first act, before it is recorded or just after.
            support::script(&pod.file("vmm"), "kill -9 $PPID");
        }
        let client = pod.connect().await;
        assert!(soon(client.create(&pod.request)).await.unwrap_err().is_gone(), "step {step}");
        assert_ne!(named.links(), before, "step {step} comes after the first change");
        for _ in 0..2 {
            assert_eq!(pod.shim.delete().unwrap().exit_status, 137);
            assert_eq!(named.links(), before, "step {step}");
        }
        pod.assert_nothing_left();
    }
}

/// A late `delete` of one pod leaves the next one's network alone.
#[tokio::test]
async fn a_delete_spares_the_next_pod_of_the_namespace() {
    let named = Named::new("next");
    let first = pod_in(&named.path(), "");
    let client = first.connect().await;
    soon(client.create(&first.request)).await.unwrap();
    soon(client.shutdown_now("web")).await.unwrap();
    first.assert_nothing_left();
    let next = pod_in(&named.path(), "");
    let client = next.connect().await;
    soon(client.create(&next.request)).await.unwrap();
    let links = named.links();
    first.shim.delete().unwrap();
    assert_eq!(named.links(), links);
    soon(client.shutdown_now("web")).await.unwrap();
    next.assert_nothing_left();
}

#[tokio::test]
async fn the_hosts_network_is_refused() {
    for namespaces in [json!([]), json!([{"type": "network", "path": "/proc/self/ns/net"}])] {
        let mut pod = Pod::with("web", &["true"], "", "");
        pod.config["linux"]["namespaces"] = namespaces;
        let client = pod.connect().await;
        let error = soon(client.create(&pod.request)).await.unwrap_err().to_string();
        assert!(error.starts_with("hostNetwork is not supported"), "{error}");
        soon(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
    }
}
