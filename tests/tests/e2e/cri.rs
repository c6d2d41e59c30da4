//! Pods through containerd's CRI plugin, as a kubelet makes them: several containers in one microVM.

use std::fs;
use std::path::Path;

use hull_tests::containerd::{Containerd, busybox};
use hull_tests::cri::*;
use hull_tests::eventually;
use protobuf::MessageField;

/// A kubelet for one pod.
struct Pod<'a> {
    containerd: &'a Containerd,
    cri: Cri,
    config: PodSandboxConfig,
    id: String,
}

fn some<T>(message: T) -> MessageField<T> {
    MessageField::some(message)
}

fn namespaces(pid: NamespaceMode) -> MessageField<NamespaceOption> {
    some(NamespaceOption { pid: pid.into(), ..NamespaceOption::default() })
}

impl<'a> Pod<'a> {
    /// Runs a sandbox; its containers share the process id namespace, or do not.
    fn run(containerd: &'a Containerd, name: &str, pid: NamespaceMode) -> Self {
        let cri = Cri::connect(&containerd.socket());
        cri.pull(&busybox());
        let logs = containerd.file("hull-logs");
        fs::create_dir_all(&logs).unwrap();
        let config = PodSandboxConfig {
            metadata: some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "tests".into(),
                ..PodSandboxMetadata::default()
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            dns_config: some(DNSConfig { servers: vec!["192.0.2.53".into()], ..DNSConfig::default() }),
            linux: some(LinuxPodSandboxConfig {
                security_context: some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(pid),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: some(config.clone()),
            runtime_handler: "hull".into(),
            ..RunPodSandboxRequest::default()
        };
        let pod: RunPodSandboxResponse = cri.ok("RunPodSandbox", &request);
        Self { containerd, cri, config, id: pod.pod_sandbox_id }
    }

    /// Creates and starts a container.
    fn container(&self, name: &str, attempt: u32, script: &str, mounts: &[Mount]) -> String {
        let linux = self.config.linux.security_context.namespace_options.clone();
        let config = ContainerConfig {
            metadata: some(ContainerMetadata { name: name.into(), attempt, ..ContainerMetadata::default() }),
            image: some(ImageSpec { image: busybox(), ..ImageSpec::default() }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            mounts: mounts.to_vec(),
            log_path: format!("{name}-{attempt}.log"),
            linux: some(LinuxContainerConfig {
                security_context: some(LinuxContainerSecurityContext {
                    namespace_options: linux,
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: some(config),
            sandbox_config: some(self.config.clone()),
            ..CreateContainerRequest::default()
        };
        let created: CreateContainerResponse = self.cri.ok("CreateContainer", &request);
        let _: Empty = self.cri.ok("StartContainer", &of(&created.container_id));
        created.container_id
    }

    fn exec(&self, id: &str, words: &[&str], timeout: i64) -> Result<ExecSyncResponse, Refused> {
        let cmd = words.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout, ..ExecSyncRequest::default() };
        self.cri.call("ExecSync", &request)
    }

    /// What a script says in a container.
    #[track_caller]
    fn says(&self, id: &str, script: &str) -> String {
        let said = self.exec(id, &["sh", "-c", script], 60).unwrap();
        assert_eq!(said.exit_code, 0, "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    fn status(&self, id: &str) -> ContainerStatus {
        let response: ContainerStatusResponse = self.cri.ok("ContainerStatus", &of(id));
        response.status.unwrap()
    }

    /// Waits for the end; the exit code.
    fn exited(&self, id: &str) -> i32 {
        let exited =
            || Some(self.status(id)).filter(|status| status.state == ContainerState::CONTAINER_EXITED.into());
        eventually("the container has exited", exited).exit_code
    }

    fn stop(&self, id: &str, timeout: i64) {
        let request =
            StopContainerRequest { container_id: id.into(), timeout, ..StopContainerRequest::default() };
        let _: Empty = self.cri.ok("StopContainer", &request);
    }

    fn remove(&self, id: &str) {
        let _: Empty = self.cri.ok("RemoveContainer", &of(id));
    }

    /// The lines of a container's log: stream and text.
    fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.containerd.file("hull-logs").join(name)).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).to_owned()).collect()
    }

    /// Ends the pod and everything in it, as often as one likes.
    fn end(self) {
        let request = PodRequest { pod_sandbox_id: self.id.clone(), ..PodRequest::default() };
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"] {
            let _: Empty = self.cri.ok(method, &request);
        }
        fs::remove_dir_all(self.containerd.file("hull-logs")).unwrap();
    }
}

fn of(container: &str) -> ContainerRequest {
    ContainerRequest { container_id: container.into(), ..ContainerRequest::default() }
}

fn mount(host: &Path, container: &str, readonly: bool) -> Mount {
    let host_path = host.display().to_string();
    Mount { host_path, container_path: container.into(), readonly, ..Mount::default() }
}

#[test]
fn two_containers_share_what_a_pod_shares() {
    let containerd = Containerd::for_pods();
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
    pod.end();
    containerd.left_nothing();
}

#[test]
fn containers_are_restarted_also_when_there_is_no_other() {
    let containerd = Containerd::for_pods();
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

#[test]
fn volumes_are_the_hosts_and_shared_by_containers() {
    let containerd = Containerd::for_pods();
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

#[test]
fn processes_can_be_shared() {
    let containerd = Containerd::for_pods();
    let pod = Pod::run(&containerd, "open", NamespaceMode::POD);
    let one = pod.container("one", 0, "exec sleep 1111", &[]);
    let two = pod.container("two", 0, "exec sleep 2222", &[]);
    assert_eq!(pod.says(&two, "ps | grep -c '[s]leep 1111'"), "1\n");
    assert_eq!(pod.says(&one, "ps | grep -c '[s]leep 2222'"), "1\n");
    pod.end();
    containerd.left_nothing();
}

#[test]
fn the_death_of_the_vm_is_the_end_of_the_pod() {
    let containerd = Containerd::for_pods();
    let pod = Pod::run(&containerd, "mortal", NamespaceMode::CONTAINER);
    let ids = ["one", "two"].map(|name| pod.container(name, 0, "sleep 1000", &[]));
    let record = fs::read(
        containerd.file("state/io.containerd.runtime.v2.task/k8s.io").join(&pod.id).join("shim.json"),
    );
    let record: serde_json::Value = serde_json::from_slice(&record.unwrap()).unwrap();
    let vmm = nix::unistd::Pid::from_raw(record["vmm_pid"].as_i64().unwrap().try_into().unwrap());
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
    for id in &ids {
        assert_eq!(pod.exited(id), 137);
    }
    pod.end();
    containerd.left_nothing();
}
