//! Pods through containerd's sandbox API, which has the shim make them: what is not the same as with a pause container. What
//! is, `cri`, `kubelet`, `cgroups` and `devices` ask of both.

use std::fs;

use hull_tests::containerd::Containerd;
use hull_tests::cri::*;
use hull_tests::eventually;
use hull_tests::kubelet::{Pod, some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn kill_9(pid: &serde_json::Value) {
    kill(Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
}

fn is_not_ready(pod: &Pod<'_>) {
    let not_ready = || (pod.sandbox_status().0 == PodSandboxState::SANDBOX_NOTREADY).then_some(());
    eventually("the pod is not ready", not_ready);
}

#[test]
fn a_pod_without_a_container_that_stands_for_it() {
    let Some(containerd) = Containerd::for_sandboxes() else { return };
    let pod = Pod::try_run(&containerd, "bare", |config| {
        let dns = config.dns_config.mut_or_insert_default();
        dns.searches = vec!["svc.example".into(), "example".into()];
        dns.options = vec!["ndots:5".into()];
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/hull-e2e-bare".into();
        linux.sysctls = [("net.core.somaxconn".to_owned(), "77".to_owned())].into();
        linux.resources = some(LinuxContainerResources {
            memory_limit_in_bytes: 512 << 20,
            cpu_quota: 150_000,
            cpu_period: 100_000,
            ..LinuxContainerResources::default()
        });
    })
    .unwrap();
    let (state, info) = pod.sandbox_status();
    assert_eq!(state, PodSandboxState::SANDBOX_READY);
    let hull: serde_json::Value = serde_json::from_str(&info["hull"]).unwrap();
    // 512 MiB, a 32nd of them, and the guest's 128.
    assert_eq!((hull["vcpus"].as_u64(), hull["memoryMiB"].as_u64()), (Some(2), Some(656)), "{info:?}");
    assert!(!pod.bundle().join("config.json").exists());
    let tasks = || containerd.ok(["-n", "k8s.io", "task", "ls", "-q"]).lines().count();
    assert_eq!(tasks(), 0);

    let plain = pod.container("plain", 0, "sleep 1000", &[]);
    let read_only = pod.container_with("read-only", "sleep 1000", |config| {
        let context = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        context.readonly_rootfs = true;
        context.run_as_user = some(Int64Value { value: 1234, ..Int64Value::default() });
    });
    assert_eq!(tasks(), 2);
    for id in [&plain, &read_only] {
        let said =
            pod.says(id, "hostname; cat /etc/hostname /etc/resolv.conf; grep -c localhost /etc/hosts; nproc");
        let resolv_conf = "search svc.example example\nnameserver 192.0.2.53\noptions ndots:5\n";
        let hosts = fs::read_to_string("/etc/hosts")
            .unwrap()
            .lines()
            .filter(|line| line.contains("localhost"))
            .count();
        assert_eq!(said, format!("bare\nbare\n{resolv_conf}{hosts}\n2\n"));
        assert_eq!(pod.says(id, "cat /proc/sys/net/core/somaxconn"), "77\n");
    }
    assert_eq!(
        pod.says(&plain, "echo mine >>/etc/hosts; tail -n 1 /etc/hosts; echo seen >/dev/shm/file"),
        "mine\n"
    );
    assert_eq!(
        pod.says(&read_only, "cat /dev/shm/file; echo x 2>/dev/null >>/etc/hosts || echo refused"),
        "seen\nrefused\n"
    );
    // As with a pause container: any port, for any user.
    let serve = "nc -l -p 80 -e true & sleep 1; netstat -tln | grep -c ':80 '; kill %1";
    assert_eq!(pod.says(&read_only, serve), "1\n");
    let request = PodRequest { pod_sandbox_id: pod.id.clone(), ..PodRequest::default() };
    // Of the cgroup, or of the shim, as the version of containerd has it.
    let stats: PodSandboxStatsResponse = pod.cri.ok("PodSandboxStats", &request);
    assert!(stats.stats.linux.memory.working_set_bytes.value > 24 << 20, "{stats:?}");
    assert!(stats.stats.linux.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    pod.end();
    containerd.left_nothing();
}

#[test]
fn pods_of_both_kinds_run_beside_each_other() {
    let Some(containerd) = Containerd::for_sandboxes() else { return };
    let pods = ["hull", "hull-sandbox"]
        .map(|handler| Pod::try_run_by(&containerd, handler, handler, |_| {}).unwrap());
    let ids = pods.each_ref().map(|pod| pod.container("app", 0, "sleep 1000", &[]));
    for (pod, id) in pods.iter().zip(&ids) {
        assert_eq!(pod.says(id, "hostname"), format!("{}\n", pod.config.hostname));
    }
    let check = containerd.hull(["check", "--containerd"]);
    assert_eq!(check.code, 0, "{check:?}");
    for words in ["handler \"hull\" is Hull", "handler \"hull-sandbox\" is Hull, and makes its pods"] {
        assert!(check.out.contains(words), "{check:?}");
    }
    let metrics = containerd.hull(["metrics"]).out;
    assert!(metrics.contains("\nhull_pods 2"), "{metrics}");
    pods[0].take_down();
    assert_eq!(pods[1].says(&ids[1], "echo alive"), "alive\n");
    pods[1].take_down();
    fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    containerd.left_nothing();
}

#[test]
fn containerd_comes_back_to_its_pods() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(mut containerd) = Containerd::for_sandboxes() else { return };
        let pod = Pod::run(&containerd, "kept", NamespaceMode::CONTAINER);
        let script = "i=0; while [ $i -lt 15 ]; do i=$((i+1)); echo line $i; sleep 1; done; exit 7";
        let (counter, steady) =
            (pod.container("counter", 0, script, &[]), pod.container("steady", 0, "sleep 1000", &[]));
        eventually("the first lines", || (pod.log("counter-0.log").len() >= 3).then_some(()));
        let Pod { id, config, .. } = pod;
        containerd.restart(signal);
        let pod = Pod::known(&containerd, id, config);
        assert_eq!(pod.sandbox_status().0, PodSandboxState::SANDBOX_READY, "{signal}");
        assert_eq!(pod.says(&steady, "echo still"), "still\n", "{signal}");
        assert_eq!(pod.exited(&counter), 7, "{signal}");
        let later = pod.container("later", 0, "echo later; sleep 1000", &[]);
        assert_eq!(pod.says(&later, "hostname"), "kept\n", "{signal}");
        // And without it: what ends meanwhile is told to the next one.
        let dying = pod.container("dying", 0, "until [ -e /go ]; do sleep 0.1; done; sleep 2; exit 5", &[]);
        pod.says(&dying, "touch /go");
        let Pod { id, config, .. } = pod;
        containerd.stop(signal);
        std::thread::sleep(std::time::Duration::from_secs(4));
        containerd.run_daemon();
        let pod = Pod::known(&containerd, id, config);
        assert_eq!(pod.exited(&dying), 5, "{signal}");
        pod.end();
        containerd.left_nothing();
    }
}

#[test]
fn the_death_of_the_vm_or_of_the_shim_is_seen_and_can_be_cleaned_up() {
    for victim in ["vmm_pid", "shim_pid"] {
        let Some(containerd) = Containerd::for_sandboxes() else { return };
        let pod = Pod::run(&containerd, "mortal", NamespaceMode::CONTAINER);
        let ids = ["one", "two"].map(|name| pod.container(name, 0, "sleep 1000", &[]));
        kill_9(&pod.shim_record()[victim]);
        for id in &ids {
            // Where the shim is gone, containerd may be the first to say how it ended, in its own number.
            let expected: &[i32] = if victim == "shim_pid" { &[137, 255] } else { &[137] };
            let exit = pod.exited(id);
            assert!(expected.contains(&exit), "{victim}: {exit}");
        }
        is_not_ready(&pod);
        let refused = pod.try_container("late", "true", |_| {}).unwrap_err();
        assert_ne!(refused.message, "", "{victim}");
        pod.end();
        // The next one of the same name works.
        let pod = Pod::run(&containerd, "mortal", NamespaceMode::CONTAINER);
        let id = pod.container("one", 0, "sleep 1000", &[]);
        assert_eq!(pod.says(&id, "hostname"), "mortal\n");
        pod.end();
        containerd.left_nothing();
    }
}

#[test]
fn what_a_pod_may_not_ask_for_is_refused_and_nothing_is_left() {
    let Some(containerd) = Containerd::for_sandboxes() else { return };
    let annotated = Pod::try_run(&containerd, "greedy", |config| {
        config.annotations = [("dev.hull.vm.vcpus".to_owned(), "8".to_owned())].into();
    });
    let sysctl = Pod::try_run(&containerd, "greedy", |config| {
        let linux = config.linux.mut_or_insert_default();
        linux.sysctls = [("kernel.shmmax".to_owned(), "1".to_owned())].into();
    });
    for (refused, words) in [(annotated, "annotations.allow"), (sysctl, "kernel.shmmax")] {
        let error = refused.err().expect("it was not refused");
        assert!(error.message.contains(words), "{error:?}");
    }
    fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    containerd.left_nothing();
}

#[test]
fn the_hosts_network_is_refused() {
    let Some(containerd) = Containerd::for_sandboxes() else { return };
    if containerd.version() < (2, 2) {
        eprintln!("skipped: such a request ends this containerd itself, before the shim is asked");
        return containerd.left_nothing();
    }
    crate::kubelet::refuses_the_hosts_network(containerd);
}

#[test]
fn a_drop_in_file_is_all_that_containerd_needs() {
    let Some(containerd) = Containerd::for_pods_by_drop_in() else { return };
    let pod = Pod::try_run(&containerd, "dropped-in", |_| {}).unwrap();
    let id = pod.container("app", 0, "sleep 1000", &[]);
    assert_eq!(pod.says(&id, "hostname"), "dropped-in\n");
    let check = containerd.hull(["check", "--containerd"]);
    assert!(check.out.contains("handler \"hull\" is Hull"), "{check:?}");
    pod.end();
    containerd.left_nothing();
}
