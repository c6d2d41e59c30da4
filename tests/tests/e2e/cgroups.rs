//! What a VM takes of the host is counted in the cgroup that the engine names.

use std::fs;
use std::path::{Path, PathBuf};

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::eventually;
use hull_tests::hull::Hull;
use hull_tests::kubelet::Pod;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup as a kubelet makes it for a pod; removed with what is above it.
struct Made(PathBuf);

impl Made {
    fn new(path: &str) -> Self {
        let path = Path::new(ROOT).join(path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn number(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for above in self.0.ancestors().take_while(|above| *above != Path::new(ROOT)) {
            let removed = fs::remove_dir(above);
            assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", above.display());
        }
    }
}

/// The cgroup of a process, below the root.
fn cgroup_of(pid: u64) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.trim().strip_prefix("0::/").unwrap().to_owned()
}

fn processes_in(cgroup: &str) -> Vec<u64> {
    let text = fs::read_to_string(Path::new(ROOT).join(cgroup).join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn program(pid: u64) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

fn a_pod_is_counted_where_its_kubelet_counts(containerd: Containerd) {
    let kubelets = Made::new("hull-e2e/pod1");
    let pod = Pod::try_run(&containerd, "counted", |config| {
        config.linux.mut_or_insert_default().cgroup_parent = "/hull-e2e/pod1".into();
    })
    .unwrap();
    let monitor = pod.shim_record()["vmm_pid"].as_u64().unwrap();
    let cgroup = format!("hull-e2e/pod1/{}", pod.id);
    assert_eq!(cgroup_of(monitor), cgroup);
    // The kernel's thread for the VM (kvm-nx-lpage-recovery) is there as well.
    let programs = processes_in(&cgroup).into_iter().map(program);
    let mut programs: Vec<String> = programs.filter(|name| name.starts_with("hull-")).collect();
    programs.sort();
    assert_eq!(programs, ["hull-fsd", "hull-vmm"]);
    // Guest memory is not touched before: what the boot took is here.
    let booted = kubelets.number("memory.current", "");
    assert!(booted > 24 << 20, "{booted} bytes");
    let web = pod.container("web", 0, "sleep 1000", &[]);
    assert_eq!(fs::read_dir(&kubelets.0).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count(), 1);
    pod.says(&web, "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null");
    let used = kubelets.number("memory.current", "");
    assert!(used > booted + (90 << 20), "{booted} bytes, then {used}");
    assert!(kubelets.number("cpu.stat", "usage_usec") > 100_000);
    pod.end();
    assert!(!Path::new(ROOT).join(&cgroup).exists());
    assert!(kubelets.0.exists(), "the kubelet's is the kubelet's");
    drop(kubelets);
    containerd.left_nothing();
}

fn the_systemd_driver_names_a_scope_in_a_slice(containerd: Containerd) {
    let pod = Pod::try_run(&containerd, "sliced", |config| {
        config.linux.mut_or_insert_default().cgroup_parent = "/hulle2e.slice/hulle2e-pod1.slice".into();
    })
    .unwrap();
    let monitor = pod.shim_record()["vmm_pid"].as_u64().unwrap();
    let scope = format!("hulle2e.slice/hulle2e-pod1.slice/cri-containerd-{}.scope", pod.id);
    assert_eq!(cgroup_of(monitor), scope);
    pod.end();
    // Nobody else has made the slices here.
    containerd.left_nothing();
}

#[test]
fn a_lone_containers_cgroup_goes_with_it_whatever_ends_it() {
    let containerd = Containerd::start();
    for id in ["a", "b"] {
        containerd.detached(&[], id, &["sleep", "1000"]);
        assert_eq!(
            cgroup_of(containerd.shim_record(id)["vmm_pid"].as_u64().unwrap()),
            format!("default/{id}")
        );
    }
    containerd.remove("a");
    assert!(!Path::new(ROOT).join("default/a").exists());
    let shim = containerd.shim_record("b")["shim_pid"].as_i64().unwrap();
    kill(Pid::from_raw(shim.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("the cgroup is gone", || (!Path::new(ROOT).join("default").exists()).then_some(()));
    eventually("containerd has noticed", || (containerd.status("b") != "RUNNING").then_some(()));
    containerd.remove("b");
    let image = busybox();
    let said = containerd.run(["run", "--runtime", RUNTIME, "--cgroup", "/../x", &image, "bad", "true"]);
    assert!(said.code != 0 && said.err.contains("linux.cgroupsPath \"/../x\" names no cgroup"), "{said:?}");
    containerd.run(["container", "rm", "bad"]);
    containerd.left_nothing();
}

#[test]
fn a_vm_that_the_host_has_no_memory_for_is_told_apart() {
    let containerd = Containerd::start();
    let mut events = containerd.events();
    containerd.detached(&[], "web", &["sleep", "1000"]);
    // Less than the VM has already: nothing of it can be swapped or dropped.
    let cgroup = Path::new(ROOT).join("default/web");
    fs::write(cgroup.join("memory.max"), (16 << 20).to_string()).unwrap();
    let told = events.until("/tasks/exit", "web");
    assert_eq!(told, ["create", "start", "oom", "exit"]);
    containerd.becomes("web", "STOPPED");
    let exit: serde_json::Value =
        serde_json::from_slice(&fs::read(containerd.bundle("web").join("exit.json")).unwrap()).unwrap();
    assert!(exit["reason"].as_str().unwrap().contains("the host's OOM killer ended it"), "{exit}");
    assert_eq!(containerd.exit_code("web"), 137);
    assert!(!cgroup.exists());
    containerd.ok(["container", "rm", "web"]);
    drop(events);
    containerd.left_nothing();
}

#[test]
fn the_overhead_of_a_pod_is_measured() {
    let hull = Hull::new();
    let said = hull.ok(["check", "--overhead", "--format", "json"]);
    println!("{}", said.lines().last().unwrap());
    let overhead: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let of = |path: &str| overhead.pointer(path).unwrap().as_u64().unwrap();
    for path in ["/Shim/Pss", "/Monitor/Pss", "/Broker/Pss", "/Kernel"] {
        assert!((64 << 10..32 << 20).contains(&of(path)), "{path}: {overhead}");
    }
    let taken = of("/Guest/Ram") - of("/Guest/Available");
    assert!((8 << 20..of("/ConfiguredMib") << 20).contains(&taken), "{taken} bytes: {overhead}");
    // A guest that touches all that it has, and what the host has for it, fit into what is recommended.
    let host = of("/Shim/Pss") + of("/Monitor/Pss") + of("/Broker/Pss") + of("/Kernel");
    assert!(of("/PodFixedMib") << 20 >= (of("/ConfiguredMib") << 20) + host, "{overhead}");
    assert!(hull.ok(["check", "--overhead"]).contains("overhead.podFixed.memory: "));
    hull.left_nothing();
}

#[test]
fn the_command_lines_containers_have_their_place() {
    let hull = Hull::new();
    let id = hull.detached(&[], "busybox", &["sleep", "1000"]);
    assert_eq!(cgroup_of(hull.shim_record(&id)["vmm_pid"].as_u64().unwrap()), format!("hull/{id}"));
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

crate::in_pods_of_both_kinds!(
    a_pod_is_counted_where_its_kubelet_counts,
    the_systemd_driver_names_a_scope_in_a_slice
);
