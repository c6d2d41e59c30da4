//! Pods through containerd's CRI plugin, as a kubelet makes them: several containers in one microVM.

use std::fs;

use hull_tests::containerd::Containerd;
use hull_tests::cri::*;
use hull_tests::eventually;
use hull_tests::kubelet::{Pod, mount, of};

fn two_containers_share_what_a_pod_shares(containerd: Containerd) {
    let pod = Pod::run(&containerd, "pair", NamespaceMode::CONTAINER);
    let web = pod.container(
        "web",
        0,
        "echo to the log; echo complaint >&2; echo seen >/dev/shm/file; sleep 1000",
        &[],
    );
    let side = pod.container("side", 0, "sleep 1000", &[]);
    eventually("the log", || (pod.log("web-0.log").len() == 2).then_some(()));
    let mut lines = pod.log("web-0.log");
    lines.sort();
    assert_eq!(lines, ["stderr F complaint", "stdout F to the log"]);

    assert_eq!(pod.says(&side, "cat /dev/shm/file"), "seen\n");
    for id in [&web, &side] {
        assert_eq!(
            pod.says(id, "hostname; cat /etc/hostname; grep -c 192.0.2.53 /etc/resolv.conf"),
            "pair\npair\n1\n"
        );
        assert!(pod.says(id, "cat /etc/hosts").contains("localhost"));
        assert_eq!(pod.says(id, "ps | grep -c '[s]leep 1000'"), "1\n", "processes are a container's own");
    }
    let namespace = |id, kind| pod.says(id, &format!("readlink /proc/self/ns/{kind}"));
    for kind in ["ipc", "uts", "net"] {
        assert_eq!(namespace(&web, kind), namespace(&side, kind), "{kind}");
    }
    assert_ne!(namespace(&web, "pid"), namespace(&side, "pid"));
    assert_eq!(pod.says(&web, "uname -r"), pod.says(&side, "uname -r"));

    let failed = pod.exec(&web, &["sh", "-c", "echo o; echo e >&2; exit 6"], 60).unwrap();
    assert_eq!((failed.exit_code, &*failed.stdout, &*failed.stderr), (6, &b"o\n"[..], &b"e\n"[..]));
    let error = pod.exec(&web, &["sleep", "1000"], 2).unwrap_err();
    assert!(error.message.contains("timeout"), "{error:?}");
    assert_eq!(pod.says(&web, "ps | grep -c '[s]leep 1000'"), "1\n", "what ran out of time is ended");

    let stats: ContainerStatsResponse = pod.cri.ok("ContainerStats", &of(&web));
    assert!(stats.stats.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    assert!(stats.stats.memory.working_set_bytes.value > 0, "{stats:?}");

    let metrics = containerd.hull(["metrics"]).out;
    for id in [&web, &side] {
        let ends = format!(",container=\"{id}\"}} ");
        let of = |line: &&str| line.starts_with("hull_container_pids{namespace=\"k8s.io\",pod=\"");
        assert!(metrics.lines().filter(of).any(|line| line.contains(&ends)), "no {id} in:\n{metrics}");
    }
    let check = containerd.hull(["check", "--containerd"]);
    assert_eq!(check.code, 0, "{check:?}");
    for words in ["containerd's shim: ", "handler \"hull\" is Hull"] {
        assert!(check.out.contains(words), "{check:?}");
    }
    pod.end();
    containerd.left_nothing();
}

fn containers_are_restarted_also_when_there_is_no_other(containerd: Containerd) {
    let pod = Pod::run(&containerd, "again", NamespaceMode::CONTAINER);
    for attempt in 0..3 {
        let id = pod.container("app", attempt, "echo run; exit 3", &[]);
        assert_eq!(pod.exited(&id), 3, "attempt {attempt}");
        assert_eq!(pod.log(&format!("app-{attempt}.log")), ["stdout F run"]);
        pod.remove(&id);
    }
    let graceful = pod.container("graceful", 0, "trap 'exit 9' TERM; while :; do sleep 0.1; done", &[]);
    let stubborn = pod.container("stubborn", 0, "trap '' TERM; echo deaf; while :; do sleep 0.1; done", &[]);
    eventually("its trap", || (pod.log("stubborn-0.log").len() == 1).then_some(()));
    pod.stop(&graceful, 60);
    assert_eq!(pod.status(&graceful).exit_code, 9);
    pod.stop(&stubborn, 1);
    assert_eq!(pod.status(&stubborn).exit_code, 137);
    pod.remove(&graceful);
    // The other one, and one that still runs, go with the pod.
    pod.container("left", 0, "sleep 1000", &[]);
    pod.end();
    containerd.left_nothing();
}

fn volumes_are_the_hosts_and_shared_by_containers(containerd: Containerd) {
    let (folder, map) = (containerd.file("hull-volume"), containerd.file("hull-map"));
    fs::create_dir(&folder).unwrap();
    // As a kubelet lays out a ConfigMap: a link that is swapped.
    for version in ["one", "two"] {
        fs::create_dir_all(map.join(version)).unwrap();
        fs::write(map.join(version).join("key"), version).unwrap();
    }
    std::os::unix::fs::symlink("one", map.join("data")).unwrap();
    std::os::unix::fs::symlink("data/key", map.join("key")).unwrap();
    let termination = containerd.file("hull-termination");
    fs::write(&termination, "").unwrap();

    let pod = Pod::run(&containerd, "files", NamespaceMode::CONTAINER);
    let mounts = [
        mount(&folder, "/data", false),
        mount(&map, "/map", true),
        mount(&termination, "/dev/termination-log", false),
    ];
    let script = "echo from one >/data/file; while [ ! -e /data/end ]; do sleep 0.1; done; echo reason >/dev/termination-log; exit 2";
    let one = pod.container("one", 0, script, &mounts);
    let two = pod.container("two", 0, "sleep 1000", &mounts[..2]);
    eventually("the file", || {
        fs::read_to_string(folder.join("file")).ok().filter(|text| text == "from one\n")
    });
    assert_eq!(pod.says(&two, "cat /data/file; echo from two >/data/end"), "from one\n");
    assert_eq!(pod.exited(&one), 2);
    assert_eq!(fs::read_to_string(&termination).unwrap(), "reason\n");
    assert_eq!(pod.says(&two, "cat /map/key"), "one");
    assert_eq!(pod.says(&two, "touch /map/new 2>/dev/null || echo refused"), "refused\n");
    std::os::unix::fs::symlink("two", map.join("new")).unwrap();
    fs::rename(map.join("new"), map.join("data")).unwrap();
    eventually("the swapped link", || (pod.says(&two, "cat /map/key") == "two").then_some(()));
    pod.end();
    for path in [folder, map] {
        fs::remove_dir_all(path).unwrap();
    }
    fs::remove_file(termination).unwrap();
    containerd.left_nothing();
}

fn processes_can_be_shared(containerd: Containerd) {
    let pod = Pod::run(&containerd, "open", NamespaceMode::POD);
    let one = pod.container("one", 0, "exec sleep 1111", &[]);
    let two = pod.container("two", 0, "exec sleep 2222", &[]);
    assert_eq!(pod.says(&two, "ps | grep -c '[s]leep 1111'"), "1\n");
    assert_eq!(pod.says(&one, "ps | grep -c '[s]leep 2222'"), "1\n");
    pod.end();
    containerd.left_nothing();
}

fn the_death_of_the_vm_is_the_end_of_the_pod(containerd: Containerd) {
    let pod = Pod::run(&containerd, "mortal", NamespaceMode::CONTAINER);
    let ids = ["one", "two"].map(|name| pod.container(name, 0, "sleep 1000", &[]));
    let vmm = pod.shim_record()["vmm_pid"].as_i64().unwrap();
    let vmm = nix::unistd::Pid::from_raw(vmm.try_into().unwrap());
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
    for id in &ids {
        assert_eq!(pod.exited(id), 137);
    }
    pod.end();
    containerd.left_nothing();
}

crate::in_pods_of_both_kinds!(
    two_containers_share_what_a_pod_shares,
    containers_are_restarted_also_when_there_is_no_other,
    volumes_are_the_hosts_and_shared_by_containers,
    processes_can_be_shared,
    the_death_of_the_vm_is_the_end_of_the_pod,
);
